// SPDX-License-Identifier: Apache-2.0

package flow_test

import (
	"strings"
	"testing"

	"github.com/openvwire/nsm/sdk/flow"
)

func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"", "80", "8080-8090", "0", "1-0", "65536", "-", "1-2-3", " 5 - 6 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := flow.ParsePorts(s)
		if err != nil {
			return
		}
		if p.From > p.To {
			t.Errorf("%q became %+v", s, p)
		}
		if again, err := flow.ParsePorts(p.String()); err != nil || again != p {
			t.Errorf("%q printed as %q, which became %+v, %v", s, p, again, err)
		}
	})
}

func FuzzParseProto(f *testing.F) {
	for _, s := range []string{"", "tcp", "UDP", "6", "255", "256", "-1", "ipv6-icmp", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := flow.ParseProto(s); err == nil && n == 0 && s != "" && strings.Trim(s, "0") != "" {
			t.Errorf("%q means any protocol", s)
		}
	})
}

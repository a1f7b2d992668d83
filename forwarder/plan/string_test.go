// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"net/netip"
	"testing"

	"github.com/openvwire/nsm/forwarder/plan"
)

// Routes and rules print as `ip route` and `ip rule` have them.
func TestRoutesAndRulesPrint(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	for _, tt := range []struct {
		got  interface{ String() string }
		want string
	}{
		{plan.Route{Dst: prefix("10.0.0.1/32")}, "10.0.0.1 scope link"},
		{plan.Route{Dst: prefix("10.9.0.0/16"), Via: addr("10.0.0.1")}, "10.9.0.0/16 via 10.0.0.1"},
		{plan.Route{Dst: prefix("0.0.0.0/0"), Via: addr("10.0.0.1"), OnLink: true}, "default via 10.0.0.1 onlink"},
		{plan.Route{Dst: prefix("fd00::1/128")}, "fd00::1"},
		{plan.Route{Dst: prefix("::/0"), Via: addr("fd00::1")}, "default via fd00::1"},
		{plan.Rule{Table: 1}, "table 1"},
		{plan.Rule{From: prefix("10.0.0.1/32"), Proto: 6, SrcPort: plan.PortRange{From: 1, To: 9}, DstPort: plan.PortRange{From: 80, To: 80}, Table: 7},
			"from 10.0.0.1/32 ipproto 6 sport 1-9 dport 80 table 7"},
	} {
		if got := tt.got.String(); got != tt.want {
			t.Errorf("%#v prints %q, want %q", tt.got, got, tt.want)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"strings"
	"testing"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/nstest"
)

// A wire whose addresses are the underlay's does not get into the node's own
// namespace, where it would cut the node off. In a namespace of its own a client
// may have it.
func TestUnderlayIsSpared(t *testing.T) {
	needTUN(t)
	l := newMesh(t, lab.Config{})
	a := l.Node("a")
	serve(t, workload(t, l.Node("b"), "over"), "over", "--cidr", "10.99.0.0/28") // the nodes have 10.99.0.1 and 2
	serve(t, workload(t, l.Node("b"), "db"), "db", "--cidr", "10.60.0.0/24")
	here := workload(t, a, "here")
	serve(t, here, "here", "--cidr", "10.99.0.0/28")
	for _, service := range []string{"over", "here"} {
		_, err := a.NetNS.Run(t.Context(), nstest.Program(), "connect", "kernel://"+service)
		for _, want := range []string{"NSM-1013", "10.99.0.1/24, the node's underlay", "give the endpoint a --cidr that the nodes do not use"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", service, err, want)
			}
		}
	}
	connect(t, a.NetNS, "kernel://db")
	connect(t, workload(t, a, "web"), "kernel://over")
}

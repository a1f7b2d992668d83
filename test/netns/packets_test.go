// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/lab/blackhole"
)

// A firewall between the nodes that stops the tunnels, and nothing else, is told by
// everything that an operator looks at: the client, the list of wires on both nodes, the
// description of one. A wire that moves to an endpoint that is reached says so.
func TestTunnelIsBlocked(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, tt := range []struct {
		payload, mechanism string
		env                []string
	}{
		{"IP", "WIREGUARD", ownDevices}, {"ETHERNET", "VXLAN", ownDevices},
		{"IP", "TUNNEL", sharedTunnel}, {"ETHERNET", "TUNNEL", sharedTunnel},
	} {
		payload, mechanism := tt.payload, tt.mechanism
		t.Run(payload+" "+mechanism, func(t *testing.T) {
			if mechanism != "VXLAN" {
				needTUN(t)
			}
			l := newMesh(t, lab.Config{Env: tt.env})
			a, b := l.Node("a"), l.Node("b")
			serve(t, workload(t, b, "db"), "db", "--payload", payload, "--cidr", "10.60.1.0/24")
			w := connect(t, workload(t, a, "web"), "kernel://db/nsm-1", "--name", "web")
			said := func(text string) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				if _, err := w.client.WaitLine(ctx, func(line string) bool { return strings.Contains(line, text) }); err != nil {
					t.Fatalf("the client has not said %q: %v", text, err)
				}
			}
			shown := func(want string, args ...string) {
				t.Helper()
				for _, n := range []*lab.Node{a, b} {
					eventually(t, 20*time.Second, func() error {
						out, err := n.Nsm(t.Context(), args...)
						if err != nil || !strings.Contains(out, want) {
							return fmt.Errorf("no %q: %v, %s", want, err, out)
						}
						return nil
					})
				}
			}
			shown(" UP ", "get", "wires")
			hole, err := blackhole.Dig(b.NetNS, lab.Underlay, blackhole.UDP)
			if err != nil {
				t.Fatal(err)
			}
			said("no packets come back through the wire")
			said("(" + mechanism + "); the control plane is well")
			shown(" UP(no-packets) ", "get", "wires")
			shown("in both directions ("+mechanism+")", "describe", "wire", "web-0")
			if out, err := a.Nsm(t.Context(), "describe", "wire", "web-0"); err != nil || strings.Count(out, "Warning ") < 2 {
				t.Errorf("%v, described as\n%s", err, out)
			}
			if err := hole.Fill(); err != nil {
				t.Fatal(err)
			}
			said("packets come back through the wire again")
			shown(" UP ", "get", "wires")
			if out, err := a.Nsm(t.Context(), "describe", "wire", "web-0"); err != nil || strings.Contains(out, "Warning") {
				t.Errorf("%v, described as\n%s", err, out)
			}

			serve(t, workload(t, a, "db2"), "db", "--name", "db-near", "--payload", payload, "--cidr", "10.60.2.0/24")
			if hole, err = blackhole.Dig(b.NetNS, lab.Underlay, blackhole.UDP); err != nil {
				t.Fatal(err)
			}
			said("wire moved")
			said("nsm: db has moved: 10.60.2.1 on nsm-1, the endpoint db-near has 10.60.2.0")
			if err := hole.Fill(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

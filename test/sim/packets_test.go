// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"testing"
	"time"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
)

// A wire whose packets get lost while the control plane is well is shown as such at
// both nodes, and no longer when packets come back.
func TestNoPacketsIsShown(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		b.Serve(Service{Name: "db", CIDR: "10.60.0.0/24"})
		c := a.Client("web", m.Pings)
		w := c.Connect("kernel://db/nsm-1")
		show := func(n *Node) *adminv1.WireSummary {
			t.Helper()
			stream, err := m.Admin(t, c.part, n).Wires(t.Context(), &adminv1.WiresRequest{})
			if err != nil {
				t.Fatal(err)
			}
			event, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			return event.GetWire()
		}
		Pass(time.Minute)
		for range 2 {
			m.SetHole(b, true)
			Pass(2 * time.Minute)
			tries, _, err := w.Status()
			for _, n := range []*Node{a, b} {
				w := show(n)
				if said := int(w.GetAttempts()); said < tries-1 || said < 5 || w.GetLastError() != nserr.NoPackets.Code || nserr.From(err).Reason != nserr.NoPackets {
					t.Errorf("node %s shows %v; the client has tried %d times: %v", n.Name, w, tries, err)
				}
				if w.GetState() != adminv1.WireState_WIRE_STATE_UP {
					t.Errorf("node %s shows %v", n.Name, w)
				}
			}
			m.SetHole(b, false)
			Pass(6 * time.Second) // as flapping is answered
			if tries, _, err := w.Status(); tries != 0 || err != nil {
				t.Errorf("%d tries, %v", tries, err)
			}
			for _, n := range []*Node{a, b} {
				if w := show(n); w.GetAttempts() != 0 || w.GetLastError() != "" || w.GetState() != adminv1.WireState_WIRE_STATE_UP {
					t.Errorf("node %s shows %v when packets come back", n.Name, w)
				}
			}
		}
		c.Close(w)
		m.CheckEmpty()
	})
}

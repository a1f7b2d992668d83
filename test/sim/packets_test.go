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

// While packets flow on no path others are asked for every second at first, and more and
// more rarely, in the second hole that comes soon after another as in the first: whoever
// is behind one has a tunnel that was made after its end as soon as that.
func TestHolesSoonAfterEachOther(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		for _, name := range []string{"db-1", "db-2"} {
			b.Serve(Service{Name: "db", Endpoint: name, CIDR: "10.60.0.0/24"})
		}
		c := a.Client("web", m.Pings)
		w := c.Connect("kernel://db/nsm-1")
		Pass(time.Minute)
		for range 5 {
			m.Network.Forget()
			m.SetHole(a, true)
			for second := range 4 {
				Pass(1200 * time.Millisecond)
				if n := m.Network.CallsBy("web", "Request"); n < second+1 || n > second+2 {
					t.Errorf("%d Requests after %d s without packets", n, second+1)
				}
			}
			Pass(5 * time.Minute)
			if n := m.Network.CallsBy("web", "Request"); n > 20 {
				t.Errorf("%d Requests in five minutes without packets", n)
			}
			m.SetHole(a, false)
			Pass(5 * time.Second)
			if tries, _, err := w.Status(); tries != 0 || err != nil {
				t.Errorf("%d tries, %v", tries, err)
			}
		}
		c.Close(w)
		m.CheckEmpty()
	})
}

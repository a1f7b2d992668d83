// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"
	"testing"
	"time"
)

// A forwarder that is killed while a wire heals comes back and finds the device of the
// old path. The new path, to another node, has another VNI: the old one's other end
// stands until it expires, and its packets would be taken for the new one's.
func TestOtherPathOtherVNI(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := &rig{Mesh: m, a: m.Node("a"), b: m.Node("b")}
		dead := r.b.Serve(Service{Name: "db", Payload: "ETHERNET", CIDR: "10.60.0.0/24"})
		r.c = r.a.Client("web", m.Pings)
		r.w = r.c.Connect("kernel://db/nsm-1")
		c := m.Node("c")
		c.Serve(Service{Name: "db", Payload: "ETHERNET", CIDR: "10.60.0.0/24"})
		Pass(5 * time.Second)
		old := r.b.Kernel.VNIs()
		m.Network.SetFate(func(call Call) Fate {
			if call.To == c.ManagerURL() && call.Method == "Request" {
				return LoseRequest
			}
			return Deliver
		})
		dead.Vanish()
		Pass(time.Second)
		m.Network.SetFate(nil)
		r.a.Forwarder().Stop()
		r.a.StartForwarder("forwarder-a", map[string]string{"p2p": "true"})
		Pass(5 * time.Second)
		if name := r.w.Connection().GetNetworkServiceEndpointName(); name != "db-c" || !Up(r.w) {
			t.Fatalf("at %s, %v", name, r.w.Connection().GetState())
		}
		if got := c.Kernel.VNIs(); len(old) != 1 || len(got) != 1 || slices.Equal(got, old) || !slices.Equal(got, r.a.Kernel.VNIs()) {
			t.Errorf("VNIs: %v at the old end, %v at the new one, %v here", old, got, r.a.Kernel.VNIs())
		}
		r.c.Close(r.w)
		Pass(TokenLifetime)
		m.CheckEmpty()
	})
}

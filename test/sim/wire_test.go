// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// shapes are the wires that a mesh makes.
var shapes = []struct {
	name    string
	payload string
	cidr    string
	across  bool // nodes
	hops    int
	links   int    // of one wire, in all kernels
	shown   string // mechanism across nodes
	tunnel  bool
}{
	{"veth on one node", "IP", "10.60.0.0/24", false, 4, 2, "", false},
	{"veth on one node, ethernet, dual stack", "ETHERNET", "10.60.0.0/24,fd00:60::/64", false, 4, 2, "", false},
	{"VXLAN across nodes", "ETHERNET", "10.60.0.0/24", true, 6, 2, "VXLAN", false},
	{"WireGuard across nodes, dual stack", "IP", "10.60.0.0/24,fd00:60::/64", true, 6, 2, "WIREGUARD", false},
	{"tunnel across nodes, dual stack", "IP", "10.60.0.0/24,fd00:60::/64", true, 6, 2, "TUNNEL", true},
	{"tunnel across nodes, ethernet", "ETHERNET", "10.60.0.0/24", true, 6, 2, "TUNNEL", true},
}

// A wire comes up, is refreshed for twelve minutes without touching anything, and
// leaves nothing behind.
func TestLifeOfAWire(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				m.Userspace = shape.tunnel
				a := m.Node("a")
				at := a
				if shape.across {
					at = m.Node("b")
				}
				e := at.Serve(Service{Name: "db", Payload: shape.payload, CIDR: shape.cidr})
				c := a.Client("web")
				w := c.Connect("kernel://db/nsm-1?app=web")

				if n := len(w.Connection().GetPath().GetPathSegments()); n != shape.hops {
					t.Errorf("path of %d segments, want %d", n, shape.hops)
				}
				links := a.Kernel.Links()
				if shape.across {
					links += at.Kernel.Links()
				}
				if links != shape.links {
					t.Errorf("%d links, want %d", links, shape.links)
				}
				if w.Interface() != "nsm-1" || len(w.Addrs()) == 0 || len(w.Addrs()) != len(w.PeerAddrs()) {
					t.Errorf("interface %q, addresses %v and %v", w.Interface(), w.Addrs(), w.PeerAddrs())
				}
				if n := len(e.Pool.Leases()); n != 1 {
					t.Errorf("%d leases", n)
				}

				before, kernel := View(w), a.Kernel.Work()+at.Kernel.Work()
				m.Network.Forget()
				Pass(12 * time.Minute)
				if diff := cmp.Diff(before, View(w)); diff != "" {
					t.Errorf("refreshes changed the wire (-before +after):\n%s", diff)
				}
				if now := a.Kernel.Work() + at.Kernel.Work(); now != kernel {
					t.Errorf("refreshes asked the kernels %d times", now-kernel)
				}
				// A refresh each 108 to 120 s passes every hop once. Nobody looks anything up,
				// save for registrations, which follow their own entry with a Find each.
				per := m.Network.CallsTo(a.ManagerURL(), "Request")
				if per < 6 || per > 7 {
					t.Errorf("%d refreshes in twelve minutes", per)
				}
				if all := m.Network.Calls("Request"); all != per*(shape.hops-1) {
					t.Errorf("%d Requests for %d refreshes over %d hops", all, per, shape.hops)
				}
				for _, f := range []*Forwarder{a.Forwarder(), at.Forwarder()} {
					if n := m.Network.CallsBy(f.name, "Find"); n > m.Network.CallsBy(f.name, "Register")+1 {
						t.Errorf("%s looked up %d times", f.name, n)
					}
				}

				c.Close(w)
				m.CheckEmpty()
			})
		})
	}
}

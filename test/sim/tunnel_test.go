// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/mechanism"
)

// matching fails unless the wires in the tunnels of two nodes are the two ends of each
// other, and returns their number.
func matching(t *testing.T, a, b *Node) int {
	t.Helper()
	near, far := a.Kernel.Tunnels(), b.Kernel.Tunnels()
	if len(near) != len(far) {
		t.Fatalf("%d wires at one end, %d at the other", len(near), len(far))
	}
	for _, w := range near {
		other := slices.IndexFunc(far, func(f plan.Tunnel) bool { return f.Wire == w.Peer.Wire })
		if other < 0 {
			t.Fatalf("no wire %d at the other end", w.Peer.Wire)
		}
		f := far[other]
		for _, way := range [][2]plan.Tunnel{{w, f}, {f, w}} {
			if one, two := way[0], way[1]; one.Peer.ID != two.Own.ID || one.Peer.Wire != two.Wire || one.Peer.Endpoint.Port() != two.Own.Port ||
				mechanism.Key(one.Peer.Key) != mechanism.Key(two.Own.PrivateKey).Public() {
				t.Errorf("%+v does not lead to %+v", one.Peer, two)
			}
		}
	}
	return len(near)
}

// All wires between two nodes, whoever has opened them and whatever they carry, share one
// key, port and id at each node.
func TestTunnelIsShared(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		m.Userspace = true
		a, b := m.Node("a"), m.Node("b")
		b.Serve(Service{Name: "db", CIDR: "10.60.0.0/24"})
		a.Serve(Service{Name: "l2", Payload: "ETHERNET", CIDR: "10.61.0.0/24"})
		near, far := a.Client("web"), b.Client("app")
		one, two := near.Connect("kernel://db/nsm-1"), near.Connect("kernel://db/nsm-2")
		three := far.Connect("kernel://l2/nsm-3")
		if n := matching(t, a, b); n != 3 {
			t.Errorf("%d wires in the tunnel", n)
		}
		owns := make(map[plan.TunnelNode]bool)
		for _, w := range append(a.Kernel.Tunnels(), b.Kernel.Tunnels()...) {
			owns[w.Own] = true
		}
		if len(owns) != 2 {
			t.Errorf("%d ends of tunnels, want one at each node", len(owns))
		}
		near.Close(one)
		near.Close(two)
		far.Close(three)
		m.CheckEmpty()
	})
}

// Where one side has no tunnel, or it is switched off there, each wire has a device of its
// own, and stays as it is.
func TestTunnelIsDeclined(t *testing.T) {
	for _, payload := range []string{"IP", "ETHERNET"} {
		for _, who := range []string{"client's node", "endpoint's node", "client's node is told so", "endpoint's node is told so"} {
			t.Run(payload+"/"+who, func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					a, b := m.BareNode("a"), m.BareNode("b")
					a.Kernel.SetWireGuardKind("tun")
					b.Kernel.SetWireGuardKind("tun")
					switch who {
					case "client's node":
						a.Kernel.SetWireGuardKind("wireguard")
					case "endpoint's node":
						b.Kernel.SetWireGuardKind("wireguard")
					case "client's node is told so":
						a.NoTunnel = true
					default:
						b.NoTunnel = true
					}
					for _, n := range []*Node{a, b} {
						n.StartForwarder("forwarder-"+n.Name, map[string]string{"p2p": "true"})
					}
					b.Serve(Service{Name: "db", Payload: payload, CIDR: "10.60.0.0/24"})
					c := a.Client("web")
					w := c.Connect("kernel://db/nsm-1")
					own := len(a.Kernel.WireGuards()) + len(b.Kernel.WireGuards()) + len(a.Kernel.VNIs()) + len(b.Kernel.VNIs())
					if shared := matching(t, a, b); shared != 0 || own != 2 {
						t.Errorf("%d wires in the tunnel, %d devices of their own", shared, own)
					}
					before, steps := View(w), a.Kernel.Steps.Load()+b.Kernel.Steps.Load()
					// What can be had from now on is for others.
					a.NoTunnel, b.NoTunnel = false, false
					a.Forwarder().Restart()
					b.Forwarder().Restart()
					Pass(12 * time.Minute)
					if diff := cmp.Diff(before, View(w)); diff != "" {
						t.Errorf("the wire has changed (-before +after):\n%s", diff)
					}
					if now := a.Kernel.Steps.Load() + b.Kernel.Steps.Load(); now != steps {
						t.Errorf("the kernels were changed in %d steps", now-steps)
					}
					c.Close(w)
					m.CheckEmpty()
				})
			})
		}
	}
}

// The process that holds a tunnel dies: all is again as it was, with the key, the port and
// the numbers that the other node knows. If the forwarder has died with it there are new
// ones, and the other node follows in place with the next refresh.
func TestTunnelAfterTheHolder(t *testing.T) {
	for _, both := range []bool{false, true} {
		for _, at := range []string{"a", "b"} {
			t.Run(fmt.Sprintf("%s, forwarder too %v", at, both), func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					m.Userspace = true
					r := newRig(m, "ETHERNET", true)
					second := r.c.Connect("kernel://db/nsm-2")
					dies, lives := r.a, r.b
					if at == "b" {
						dies, lives = r.b, r.a
					}
					before, removed := dies.Kernel.Tunnels(), lives.Kernel.Removes.Load()
					dies.Kernel.KillHolder()
					if both {
						dies.Forwarder().Restart()
						Pass(5 * time.Minute)
					}
					dies.Forwarder().Reconcile(t.Context())
					if n := matching(t, r.a, r.b); n != 2 {
						t.Errorf("%d wires in the tunnel", n)
					}
					same := slices.ContainsFunc(dies.Kernel.Tunnels(), func(w plan.Tunnel) bool { return slices.Contains(before, w) })
					if same == both {
						t.Errorf("it is the same as before: %v", same)
					}
					if n := lives.Kernel.Removes.Load() - removed; n != 0 {
						t.Errorf("the other node has removed %d links", n)
					}
					r.c.Close(r.w)
					r.c.Close(second)
					m.CheckEmpty()
				})
			})
		}
	}
}

// A wire that moves from one node to another keeps its interface, whatever it carries.
func TestTunnelMovesInPlace(t *testing.T) {
	for _, payload := range []string{"IP", "ETHERNET"} {
		t.Run(payload, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				m.Userspace = true
				r := newRig(m, payload, true)
				number, removed := r.a.Kernel.Tunnels()[0].Wire, r.a.Kernel.Removes.Load()
				neighbour := macOf(t, r.b)
				c := m.Node("c")
				c.Serve(Service{Name: "db", Endpoint: "other", Payload: payload, CIDR: "10.61.0.0/24"})
				askedToMove(r.e)
				Pass(time.Second)
				if r.w.Connection().GetNetworkServiceEndpointName() != "other" || !Up(r.w) {
					t.Fatalf("it is at %s", r.w.Connection().GetNetworkServiceEndpointName())
				}
				if n := matching(t, r.a, c); n != 1 || r.a.Kernel.Tunnels()[0].Wire != number || r.a.Kernel.Removes.Load() != removed {
					t.Errorf("%d wires, number %d, was %d, %d removals", n, r.a.Kernel.Tunnels()[0].Wire, number, r.a.Kernel.Removes.Load()-removed)
				}
				if now := macOf(t, c); payload == "ETHERNET" && now != neighbour {
					t.Errorf("the far end has the hardware address %s, it had %s", now, neighbour)
				}
				r.c.Close(r.w)
				m.CheckEmpty()
			})
		})
	}
}

// macOf is the hardware address of the only wire that ends at a node.
func macOf(t *testing.T, n *Node) string {
	t.Helper()
	for _, v := range n.Forwarder().Monitor().Visible(ID("observer")) {
		if w, ok, err := n.Forwarder().Desired(t.Context(), v.Conn().GetId()); err == nil && ok {
			return w.Ends[0].MAC.String()
		}
	}
	t.Fatalf("no wire ends at node %s", n.Name)
	return ""
}

// A wire that has to go another way, and whose session in the tunnel is dead since a clock
// was set, has both nodes forget that session. One that may be alive is left alone: it is
// that of other wires.
func TestTunnelOutlived(t *testing.T) {
	for _, tt := range []struct {
		name  string
		age   time.Duration
		renew bool
	}{
		{"young", time.Minute, false},
		{"outlived", 3*time.Minute + time.Second, true},
		{"from the future", -time.Hour, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				m.Userspace = true
				r := newRig(m, "IP", true)
				before := r.a.Kernel.Tunnels()
				for _, n := range []*Node{r.a, r.b} {
					n.Kernel.SetHandshake(time.Now().Add(-tt.age))
				}
				askedToMove(r.e)
				Pass(time.Second)
				if near, far := r.a.Kernel.Renewals(), r.b.Kernel.Renewals(); near > 0 != tt.renew || far > 0 != tt.renew {
					t.Errorf("renewed %d times here and %d times there", near, far)
				}
				if !slices.Equal(r.a.Kernel.Tunnels(), before) {
					t.Error("the wire has changed")
				}
				if !Up(r.w) {
					t.Errorf("wire is %v", r.w.Connection().GetState())
				}
				r.c.Close(r.w)
				m.CheckEmpty()
			})
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

// pair are two nodes with WireGuard in userspace, each with a forwarder that is told so.
func pair(m *Mesh, near, far func(*Node)) (a, b *Node) {
	m.Userspace = true
	a, b = m.BareNode("a"), m.BareNode("b")
	near(a)
	far(b)
	for _, n := range []*Node{a, b} {
		n.StartForwarder("forwarder-"+n.Name, map[string]string{"p2p": "true"})
	}
	return a, b
}

func auto(n *Node)     { n.NoTunnel, n.Encrypted = false, false }
func off(n *Node)      { n.NoTunnel, n.Encrypted = true, false }
func required(n *Node) { n.NoTunnel, n.Encrypted = false, true }
func module(n *Node)   { n.Kernel.SetWireGuardKind("wireguard") }
func moduleRequired(n *Node) {
	module(n)
	required(n)
}

// Where encryption is demanded at one node, a wire with the other is in the tunnel, or has a
// WireGuard device, or is refused: with a reason that says which node has refused it and why,
// and with nothing left of it.
func TestEncryptionRequired(t *testing.T) {
	for _, tt := range []struct {
		name, payload string
		near, far     func(*Node)
		tunnel        int    // wires in it
		says          string // of a refusal; "" means that there is none
	}{
		{"by the client's node", "ETHERNET", required, auto, 1, ""},
		{"by the endpoint's node", "ETHERNET", auto, required, 1, ""},
		{"by both", "ETHERNET", required, required, 1, ""},
		{"by the client's node, off at the endpoint's", "ETHERNET", required, off, 0, "forwarder-a demands encryption, and a wire with payload ETHERNET has none outside of the tunnel of the two nodes: the endpoint's node has not accepted it"},
		{"by the endpoint's node, off at the client's", "ETHERNET", off, required, 0, "forwarder-b demands encryption, and a wire with payload ETHERNET has none outside of the tunnel of the two nodes: the client's node has not offered it"},
		{"by the client's node, the endpoint's has the module", "ETHERNET", required, module, 0, "forwarder-a demands"},
		{"by the endpoint's node, the client's has the module", "ETHERNET", module, required, 0, "forwarder-b demands"},
		{"by the client's node, which has the module", "ETHERNET", moduleRequired, auto, 0, "forwarder-a demands encryption, and a wire with payload ETHERNET has none outside of the tunnel of the two nodes: no WireGuard in userspace"},
		{"by the endpoint's node, which has the module", "ETHERNET", auto, moduleRequired, 0, "forwarder-b demands encryption, and a wire with payload ETHERNET has none outside of the tunnel of the two nodes: no WireGuard in userspace"},
		{"by nobody", "ETHERNET", auto, off, 0, ""},
		{"by the client's node, IP", "IP", required, auto, 1, ""},
		{"by the client's node, off at the endpoint's, IP", "IP", required, off, 0, ""},
		{"by the endpoint's node, off at the client's, IP", "IP", off, required, 0, ""},
		{"by the client's node, which has the module, IP", "IP", moduleRequired, auto, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				a, b := pair(m, tt.near, tt.far)
				b.Serve(Service{Name: "db", Payload: tt.payload, CIDR: "10.60.0.0/24"})
				c := a.Client("web")
				w, err := c.Try(t.Context(), "kernel://db/nsm-1")
				if n := matching(t, a, b); n != tt.tunnel {
					t.Errorf("%d wires in the tunnel", n)
				}
				if tt.says == "" {
					if err != nil {
						t.Fatal(err)
					}
					Pass(12 * time.Minute) // refreshes are not refused either
					if !Up(w) {
						_, _, err := w.Status()
						t.Errorf("wire is down: %v", err)
					}
					c.Close(w)
				} else if !errors.Is(err, nserr.NotEncrypted) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "--wireguard-tunnel") {
					t.Errorf("%v, want %s, which says %q, and how to fix it", err, nserr.NotEncrypted.Code, tt.says)
				}
				m.CheckEmpty()
			})
		})
	}
}

// A workload of the same node is reached without leaving it.
func TestEncryptionRequiredOfNobodyHere(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, _ := pair(m, moduleRequired, auto)
		a.Serve(Service{Name: "db", Payload: "ETHERNET", CIDR: "10.60.0.0/24"})
		c := a.Client("web")
		c.Close(c.Connect("kernel://db/nsm-1"))
		m.CheckEmpty()
	})
}

// A forwarder that demands encryption from now on removes the wires in the clear that stand,
// at once. They are made anew in the tunnel if the other node can, else they stay down, and
// the reason is told.
func TestEncryptionRequiredFromNowOn(t *testing.T) {
	for _, who := range []string{"client's node", "endpoint's node"} {
		for _, can := range []bool{true, false} {
			name := who
			if !can {
				name += ", the other cannot"
			}
			t.Run(name, func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					near, far := off, auto
					if who == "endpoint's node" {
						near, far = auto, off
					}
					a, b := pair(m, near, far)
					b.Serve(Service{Name: "db", Payload: "ETHERNET", CIDR: "10.60.0.0/24"})
					c := a.Client("web")
					w := c.Connect("kernel://db/nsm-1")
					if len(a.Kernel.VNIs()) != 1 || len(b.Kernel.VNIs()) != 1 {
						t.Fatal("it is not in the clear")
					}
					demands, other := a, b
					if who == "endpoint's node" {
						demands, other = b, a
					}
					required(demands)
					within := 10 * time.Second
					if !can {
						within = 15 * time.Minute
						off(other)
						other.Forwarder().Restart()
					}
					demands.Forwarder().Restart()
					if n := len(demands.Kernel.VNIs()); n != 0 {
						t.Errorf("%d wires in the clear are left", n)
					}
					Pass(within)
					if n := len(demands.Kernel.VNIs()); n != 0 {
						t.Errorf("%d wires in the clear again", n)
					}
					if n := matching(t, a, b); (n == 1) != can || Up(w) != can {
						t.Errorf("%d wires in the tunnel, up: %v", n, Up(w))
					}
					if _, _, err := w.Status(); !can && !errors.Is(err, nserr.NotEncrypted) {
						t.Errorf("it is down for %v, want %s", err, nserr.NotEncrypted.Code)
					}
					c.Close(w)
					m.CheckEmpty()
				})
			})
		}
	}
}

// The other node switches the tunnel off while there are wires in it: they are not made anew
// in the clear.
func TestEncryptionRequiredMeanwhile(t *testing.T) {
	for _, at := range []string{"a", "b"} {
		t.Run(at, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				a, b := pair(m, auto, auto)
				demands, other := a, b
				if at == "b" {
					demands, other = b, a
				}
				required(demands)
				demands.Forwarder().Restart()
				b.Serve(Service{Name: "db", Payload: "ETHERNET", CIDR: "10.60.0.0/24"})
				c := a.Client("web")
				w := c.Connect("kernel://db/nsm-1")
				off(other)
				other.Forwarder().Restart()
				Pass(5 * time.Minute)
				if _, _, err := w.Status(); !errors.Is(err, nserr.NotEncrypted) || len(demands.Kernel.VNIs()) != 0 {
					t.Errorf("%d wires in the clear, refreshes fail for %v", len(demands.Kernel.VNIs()), err)
				}
				auto(other)
				other.Forwarder().Restart()
				Pass(5 * time.Minute)
				if n := matching(t, a, b); n != 1 || !Up(w) {
					t.Errorf("%d wires in the tunnel, up: %v", n, Up(w))
				}
				c.Close(w)
				m.CheckEmpty()
			})
		})
	}
}

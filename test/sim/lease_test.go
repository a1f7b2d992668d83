// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/client"
)

// ask has the endpoint ask all its clients for a refresh or for another path.
func (e *Endpoint) ask(state networkservice.State) {
	for _, v := range e.Server.Monitor().Visible(ID("observer")) {
		e.Server.Monitor().Amend(v.Conn().GetId(), func(c *networkservice.Connection) bool {
			c.State = state
			return true
		})
	}
	Settle()
}

func leaseFile(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "db.leases")
}

func views(wires []*client.Wire) (vs []view) {
	for _, w := range wires {
		vs = append(vs, View(w))
	}
	return vs
}

// unique fails the test if two wires have an address in common.
func unique(t *testing.T, wires []*client.Wire) {
	t.Helper()
	has := make(map[netip.Addr]string)
	for _, w := range wires {
		for _, a := range slices.Concat(w.Addrs(), w.PeerAddrs()) {
			if other, taken := has[a]; taken {
				t.Errorf("%s and %s both have %v", other, w.ID(), a)
			}
			has[a] = w.ID()
		}
	}
}

// A client that is new comes to an endpoint that has just restarted before those whose
// wires live have refreshed: it gets addresses that nobody has.
func TestNewClientAfterRestart(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		b := m.Node("b")
		e := b.Serve(Service{Name: "db", CIDR: "10.60.0.0/24,fd00:60::/64", Leases: leaseFile(t)})
		var wires []*client.Wire
		for i := range 3 {
			wires = append(wires, m.Node(fmt.Sprint("a", i)).Client(fmt.Sprint("web-", i)).Connect("kernel://db/nsm-1"))
		}
		before := views(wires)
		m.Network.SetFate(func(c Call) Fate { // the others are late
			if strings.HasPrefix(c.From, "forwarder-a") && c.Method == "Request" {
				return Refuse
			}
			return Deliver
		})
		e.Restart()
		wires = append(wires, b.Client("new").Connect("kernel://db/nsm-1"))
		unique(t, wires)
		m.Network.SetFate(nil)
		Pass(5 * time.Minute)
		unique(t, wires)
		for i, v := range views(wires[:3]) {
			if v.Src != before[i].Src || v.Dst != before[i].Dst {
				t.Errorf("wire %d had %s, %s and has %s, %s", i, before[i].Src, before[i].Dst, v.Src, v.Dst)
			}
		}
	})
}

// Two clients want another path at the same time, there is none for a while, and a
// third one is new: each of the two keeps what it has until then, and its addresses.
func TestHealingTogether(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		e := b.Serve(Service{Name: "db", CIDR: "10.60.0.0/24"})
		var wires []*client.Wire
		for i := range 2 {
			wires = append(wires, a.Client(fmt.Sprint("web-", i)).Connect("kernel://db/nsm-1"))
		}
		before := views(wires)
		m.Network.SetFate(func(c Call) Fate {
			if c.From == "forwarder-a" && c.Method == "Request" {
				return Refuse
			}
			return Deliver
		})
		e.ask(networkservice.State_RESELECT_REQUESTED)
		Pass(time.Second)
		if n := e.Server.Len(); n != 2 {
			t.Fatalf("%d connections at the endpoint, although there is no other path", n)
		}
		wires = append(wires, b.Client("new").Connect("kernel://db/nsm-1"))
		m.Network.SetFate(nil)
		Pass(10 * time.Second)
		unique(t, wires)
		for i, v := range views(wires[:2]) {
			if v.Src != before[i].Src || v.Dst != before[i].Dst || !Up(wires[i]) {
				t.Errorf("wire %d had %s, %s and has %s, %s", i, before[i].Src, before[i].Dst, v.Src, v.Dst)
			}
		}
	})
}

// Whatever is restarted, heals and is new, in whatever order: no address is of two wires
// that live, and every wire that lives keeps its own.
func TestAddressesLast(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				random := rand.New(rand.NewPCG(seed, 3))
				nodes := []*Node{m.Node("a"), m.Node("b"), m.Node("c")}
				e := nodes[0].Serve(Service{Name: "db", CIDR: "10.60.0.0/24,fd00:60::/64", Leases: leaseFile(t)})
				clients := make(map[*client.Wire]*Client)
				had := make(map[*client.Wire]view)
				open := func() {
					c := nodes[random.IntN(len(nodes))].Client(fmt.Sprint("web-", len(had)))
					w := c.Connect("kernel://db/nsm-1")
					clients[w], had[w] = c, View(w)
				}
				any := func() *client.Wire {
					wires := slices.SortedFunc(maps.Keys(clients), func(a, b *client.Wire) int { return strings.Compare(a.ID(), b.ID()) })
					return wires[random.IntN(len(wires))]
				}
				steps := []struct {
					name string
					do   func()
				}{
					{"a new client", open},
					{"a client closes", func() {
						w := any()
						clients[w].Close(w)
						delete(clients, w)
					}},
					{"the endpoint restarts, and a new client is first", func() {
						m.Network.SetFate(func(c Call) Fate {
							if strings.HasPrefix(c.From, "web-") && c.From != fmt.Sprint("web-", len(had)) && c.Method == "Request" {
								return Refuse
							}
							return Deliver
						})
						e = e.Restart()
						open()
						m.Network.SetFate(nil)
					}},
					{"the endpoint restarts twice", func() { e = e.Restart().Restart() }},
					{"all heal at once", func() { e.ask(networkservice.State_RESELECT_REQUESTED) }},
					{"all heal while the endpoint restarts", func() {
						e.ask(networkservice.State_RESELECT_REQUESTED)
						e = e.Restart()
					}},
					{"a forwarder restarts", func() { nodes[random.IntN(3)].Forwarder().Restart() }},
					{"a manager restarts", func() {
						n := nodes[random.IntN(3)]
						n.StopManager()
						n.StartManager()
					}},
					{"time passes", func() { Pass(time.Duration(random.IntN(300)) * time.Second) }},
				}
				open()
				for range 30 {
					step := steps[random.IntN(len(steps))]
					if len(clients) < 2 {
						step = steps[0]
					}
					step.do()
					unique(t, slices.Collect(maps.Keys(clients)))
					Pass(20 * time.Second) // all have healed
					unique(t, slices.Collect(maps.Keys(clients)))
					for w := range clients {
						if v := View(w); v.Src != had[w].Src || v.Dst != had[w].Dst || !Up(w) {
							t.Errorf("%s had %s, %s and has %s, %s, up: %t", w.ID(), had[w].Src, had[w].Dst, v.Src, v.Dst, Up(w))
						}
					}
					if t.Failed() {
						t.Fatalf("seed %d, after: %s", seed, step.name)
					}
				}
				for w, c := range clients {
					c.Close(w)
				}
				m.CheckEmpty()
			})
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/client"
)

// Many wires that are opened at once share nothing that they must not, do not
// refresh all at once, and leave nothing.
func TestManyWires(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		const many = 300
		a, b := m.Node("a"), m.Node("b")
		services := []string{"db", "lan"}
		b.Serve(Service{Name: "db", Payload: "IP", CIDR: "10.60.0.0/20"})
		b.Serve(Service{Name: "lan", Payload: "ETHERNET", CIDR: "10.61.0.0/20"})
		c := a.Client("web")
		m.Space("web") // not made by two at once
		wires := make([]*client.Wire, many)
		var opening sync.WaitGroup
		for i := range many {
			opening.Go(func() {
				w, err := c.Try(t.Context(), fmt.Sprintf("kernel://%s/nsm-%d", services[i%2], i))
				if err != nil {
					t.Error(err)
				}
				wires[i] = w
			})
		}
		opening.Wait()
		if t.Failed() {
			return
		}

		addrs := make(map[string]bool)
		for _, w := range wires {
			addrs[w.Addrs()[0].String()], addrs[w.PeerAddrs()[0].String()] = true, true
		}
		if len(addrs) != 2*many {
			t.Errorf("%d addresses for %d ends", len(addrs), 2*many)
		}
		for _, f := range []*Forwarder{a.Forwarder(), b.Forwarder()} {
			if vnis, ports := f.numbers(t); len(vnis) != many/2 || len(ports) != many/2 {
				t.Errorf("%s has %d VNIs and %d ports for %d wires", f.name, len(vnis), len(ports), many)
			}
		}

		// The first refreshes come between 108 and 120 s, all through that time.
		m.Network.Forget()
		Pass(107 * time.Second)
		if n := m.Network.CallsTo(a.ManagerURL(), "Request"); n != 0 {
			t.Errorf("%d refreshes before 108 s", n)
		}
		for s := range 13 {
			m.Network.Forget()
			Pass(time.Second)
			if n := m.Network.CallsTo(a.ManagerURL(), "Request"); n > many/4 {
				t.Errorf("%d of %d refreshes in second %d", n, many, 107+s)
			}
		}

		var closing sync.WaitGroup
		for _, w := range wires {
			closing.Go(func() {
				if err := w.Close(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		closing.Wait()
		m.CheckEmpty()
	})
}

// numbers returns the VNIs and WireGuard ports of the forwarder's wires.
func (f *Forwarder) numbers(t *testing.T) (vnis map[uint32]bool, ports map[uint16]bool) {
	t.Helper()
	vnis, ports = make(map[uint32]bool), make(map[uint16]bool)
	for _, v := range f.Monitor().Visible(ID("observer")) {
		w, _, err := f.Desired(t.Context(), v.Conn().GetId())
		switch {
		case err != nil:
			t.Fatal(err)
		case w.VXLAN != nil:
			vnis[w.VXLAN.VNI] = true
		case w.WireGuard != nil:
			ports[w.WireGuard.Port] = true
		}
	}
	return vnis, ports
}

var seeds = flag.Uint64("seeds", 3, "how many kinds of disorder TestDisorder tries")

// Messages are lost and doubled, parts restart, clients come and go; with every
// seed the mesh is clean in the end, once messages pass again.
func TestDisorder(t *testing.T) {
	for seed := range *seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				var mu sync.Mutex
				random := rand.New(rand.NewPCG(seed, 0))
				chance := func(n int) bool {
					mu.Lock()
					defer mu.Unlock()
					return random.IntN(n) == 0
				}
				a, b := m.Node("a"), m.Node("b")
				payload := []string{"IP", "ETHERNET"}[seed%2]
				one := a.Serve(Service{Name: "db", Payload: payload})
				two := b.Serve(Service{Name: "db", Payload: payload, CIDR: "10.61.0.0/24"})
				var clients []*Client
				for i := range 4 {
					clients = append(clients, a.Client(fmt.Sprint("web-", i)))
				}
				m.Network.SetFate(func(c Call) Fate {
					if c.Method != "Request" && c.Method != "Close" || !chance(12) {
						return Deliver
					}
					mu.Lock()
					defer mu.Unlock()
					return []Fate{LoseRequest, LoseReply, Double, Refuse}[random.IntN(4)]
				})
				// Always the same id: what a lost Close has left is taken over.
				request := client.Request{ID: "the-wire", Service: "db", Interface: "nsm-1"}
				wires := make([]*client.Wire, len(clients))
				for range 20 {
					for i, c := range clients {
						switch {
						case wires[i] == nil:
							wires[i], _ = c.Ask(t.Context(), request)
						case chance(4):
							_ = wires[i].Close(t.Context())
							wires[i] = nil
						}
					}
					switch {
					case chance(8):
						a.Forwarder().Restart()
					case chance(8):
						b.Forwarder().Restart()
					case chance(8):
						a.StopManager()
						a.StartManager()
					case chance(8):
						b.StopManager()
						b.StartManager()
					case chance(8):
						m.StopRegistry()
						m.StartRegistry()
					case chance(8):
						one = one.Restart()
					case chance(8):
						two = two.Restart()
					}
					Pass(20 * time.Second)
				}
				m.Network.SetFate(nil)
				Pass(time.Minute)
				for i, c := range clients {
					if wires[i] == nil {
						var err error
						if wires[i], err = c.Ask(t.Context(), request); err != nil {
							t.Fatal(err)
						}
					}
					if tries, _, err := wires[i].Status(); tries != 0 || wires[i].Connection().GetState() != networkservice.State_UP {
						t.Errorf("wire %s is not up: %d tries, %v", wires[i].ID(), tries, err)
					}
				}
				if n := a.Kernel.Links() + b.Kernel.Links(); n < 2*len(clients) {
					t.Errorf("%d links for %d wires", n, len(clients))
				}
				for i, c := range clients {
					c.Close(wires[i])
				}
				Pass(2 * TokenLifetime) // what a Close did not reach
				m.CheckEmpty()
			})
		})
	}
}

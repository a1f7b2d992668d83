// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/client"
)

// history is what a wire has been, one view after the other.
type history struct {
	mu    sync.Mutex
	views []view // guarded by mu
	stop  chan struct{}
	done  sync.WaitGroup
}

// follow writes down the history of a wire until the end of the test.
func follow(t *testing.T, w *client.Wire) *history {
	h := &history{views: []view{View(w)}, stop: make(chan struct{})}
	h.done.Go(func() {
		for {
			_, changed, _ := w.Status()
			if v := View(w); Up(w) {
				h.mu.Lock()
				if !reflect.DeepEqual(v, h.views[len(h.views)-1]) {
					h.views = append(h.views, v)
				}
				h.mu.Unlock()
			}
			select {
			case <-changed:
			case <-h.stop:
				return
			}
		}
	})
	t.Cleanup(func() { close(h.stop); h.done.Wait() })
	return h
}

// endpoints are those that the wire led to.
func (h *history) endpoints() (names []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, v := range h.views {
		names = append(names, v.Endpoint)
	}
	return names
}

// Whatever becomes of what hops tell each other, at one of them or at all, a wire moves
// once when its endpoint has gone, does not go back, and stays then.
func TestDisorderedEvents(t *testing.T) {
	for _, fate := range []EventFate{Tell, DropEvent, TellTwice, TellLater} {
		for _, listener := range []string{"everybody", "web", "manager-a", "forwarder-a", "manager-b", "forwarder-b"} {
			t.Run(fmt.Sprintf("%v for %s", fate, listener), func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					r := &rig{Mesh: m, a: m.Node("a"), b: m.Node("b")}
					r.e = r.b.Serve(Service{Name: "db", Endpoint: "one"})
					r.c = r.a.Client("web")
					r.w = r.c.Connect("kernel://db/nsm-1")
					m.Node("c").Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
					h := follow(t, r.w)
					m.Network.SetEventFate(func(told Told) EventFate {
						if listener == "everybody" || listener == told.To {
							return fate
						}
						return Tell
					})
					Pass(3 * time.Minute)
					for range 3 {
						r.e.ask(networkservice.State_REFRESH_REQUESTED)
						Pass(time.Minute)
					}
					if got := h.endpoints(); len(got) != 1 {
						t.Errorf("while nothing happens the wire goes %v", got)
					}
					r.e.Vanish()
					start := time.Now()
					for time.Since(start) < TokenLifetime && len(h.endpoints()) == 1 {
						Pass(100 * time.Millisecond)
					}
					most := time.Second
					if fate == DropEvent || fate == TellLater { // the next refresh finds out
						most += TokenLifetime / 5
					}
					if took := time.Since(start); took > most {
						t.Errorf("nothing flows for %v", took)
					}
					r.e = r.b.Serve(Service{Name: "db", Endpoint: "one"}) // which is no reason to go back
					Pass(5 * time.Minute)
					if got := h.endpoints(); !slices.Equal(got, []string{"one", "two"}) || !Up(r.w) {
						t.Errorf("the wire goes %v, up %v", got, Up(r.w))
					}
					if tries, _, err := r.w.Status(); tries != 0 || err != nil {
						t.Errorf("%d tries, %v", tries, err)
					}
					r.c.Close(r.w)
					Pass(time.Second) // the old path is closed in the background
					m.CheckEmpty()
				})
			})
		}
	}
}

// cuts are ways in which two nodes do not hear each other.
var cuts = []struct {
	name string
	cut  func(a, b *Node)
}{
	{"the far node hears nothing", func(a, b *Node) { a.Deafen(b) }},
	{"the far node is not heard", func(a, b *Node) { b.Deafen(a) }},
}

// A network that carries messages in one direction only is as bad as none. The wire
// moves if it can.
func TestOneWayPartition(t *testing.T) {
	for _, tt := range cuts {
		for _, pings := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, pings %v", tt.name, pings), func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					r := &rig{Mesh: m, a: m.Node("a"), b: m.Node("b")}
					r.e = r.b.Serve(Service{Name: "db", Endpoint: "one"})
					most := 90 * time.Second // nobody knows whether packets flow: the same path is asked five times before
					if pings {
						r.c, most = r.a.Client("web", m.Pings), 2*time.Second
					} else {
						r.c = r.a.Client("web")
					}
					r.w = r.c.Connect("kernel://db/nsm-1")
					m.Node("c").Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
					h := follow(t, r.w)
					Pass(time.Minute)
					tt.cut(r.a, r.b)
					m.SetHole(r.b, true)
					if out := outage(r, 5*time.Minute); out > most {
						t.Errorf("nothing flows for %v", out)
					}
					Pass(time.Minute)
					m.Network.SetCut(nil)
					m.SetHole(r.b, false)
					Pass(10 * time.Minute)
					if got := h.endpoints(); !slices.Equal(got, []string{"one", "two"}) || !Up(r.w) {
						t.Errorf("the wire goes %v, up %v", got, Up(r.w))
					}
					r.c.Close(r.w)
					Pass(TokenLifetime) // of what node b was not told
					m.CheckEmpty()
				})
			})
		}
	}
}

// If it cannot move it recovers when the network does, or begins anew if that takes
// longer than its life.
func TestOneWayPartitionWithoutAlternative(t *testing.T) {
	for _, tt := range cuts {
		for _, away := range []time.Duration{time.Second, 20 * time.Second, 5 * time.Minute, 30 * time.Minute} {
			t.Run(fmt.Sprintf("%s for %v", tt.name, away), func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					r := newRig(m, "IP", true)
					Pass(time.Minute)
					m.said()
					before := View(r.w)
					tt.cut(r.a, r.b)
					m.SetHole(r.b, true)
					Pass(away)
					m.Network.SetCut(nil)
					m.SetHole(r.b, false)
					Pass(time.Minute)
					if tries, _, err := r.w.Status(); tries != 0 || err != nil || !Up(r.w) || !r.flows() {
						t.Errorf("the wire is not up: %d tries, %v", tries, err)
					}
					if after := View(r.w); away < 20*time.Second && !reflect.DeepEqual(before, after) {
						t.Errorf("the wire has changed from %v to %v", before, after)
					}
					m.saidAtMost(t, 4, ofWires...)
					r.c.Close(r.w)
					Pass(2 * TokenLifetime) // of what was asked for in vain
					m.CheckEmpty()
				})
			})
		}
	}
}

// A registry that does not answer, and does not say so either, is as good as away: who is
// registered stays so on the own node, and wires can be made there and to where it is
// known that there are endpoints.
func TestFrozenRegistry(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		a.Serve(Service{Name: "db", Endpoint: "one"})
		b.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
		Pass(time.Minute)
		m.said()
		m.Network.Freeze("registry")
		for range 30 {
			Pass(time.Minute)
			c := a.Client("web")
			c.Close(c.Connect("kernel://db/nsm-1"))
			c.Vanish()
		}
		said := m.said()
		for _, who := range []string{"forwarder-a", "forwarder-b", "one", "two"} {
			if n := said[who+": registration not renewed, trying on"]; n != 0 {
				t.Errorf("%s: not renewed %d times", who, n)
			}
		}
		for _, n := range []*Node{a, b} {
			if n := said[n.Manager.name+": endpoint expired"]; n != 0 {
				t.Errorf("%d registrations expired", n)
			}
		}
		m.Network.SetCut(nil)
		Pass(time.Minute)
		if got, want := m.Registered(), []string{"forwarder-a", "forwarder-b", "one", "two"}; !slices.Equal(got, want) {
			t.Errorf("registered are %v", got)
		}
		m.CheckEmpty()
	})
}

// A part that neither answers nor closes, its process being stopped, is noticed within
// four seconds by who is on a wire through it, and the wire is what it was when it goes
// on.
func TestFrozenParts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		part   func(r *rig) *part
		unseen bool // by the client: its wire needs it for nothing
	}{
		{"registry", func(r *rig) *part { return r.registry.part }, true},
		{"manager", func(r *rig) *part { return r.a.Manager.part }, false},
		{"forwarder", func(r *rig) *part { return r.a.Forwarder().part }, false},
		{"far manager", func(r *rig) *part { return r.b.Manager.part }, false},
		{"far forwarder", func(r *rig) *part { return r.b.Forwarder().part }, false},
		{"endpoint", func(r *rig) *part { return r.e.part }, false},
	} {
		for _, away := range []time.Duration{time.Second, 10 * time.Second, 5 * time.Minute, 25 * time.Minute} {
			t.Run(fmt.Sprintf("%s for %v", tt.name, away), func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					r := newRig(m, "IP", true)
					Pass(time.Minute)
					m.said()
					before := View(r.w)
					m.Network.Freeze(tt.part(r).name)
					start := time.Now()
					for Up(r.w) && time.Since(start) < away {
						Pass(10 * time.Millisecond)
					}
					if took := time.Since(start); !tt.unseen && away > 4*time.Second && took > 4*time.Second+20*time.Millisecond {
						t.Errorf("noticed after %v", took)
					}
					Pass(away - time.Since(start))
					m.Network.SetCut(nil)
					Pass(time.Minute)
					if tries, _, err := r.w.Status(); tries != 0 || err != nil || !Up(r.w) || !r.flows() {
						t.Errorf("the wire is not up: %d tries, %v", tries, err)
					}
					if after := View(r.w); (away <= 10*time.Second || tt.unseen) && !reflect.DeepEqual(before, after) {
						t.Errorf("the wire has changed from %v to %v", before, after)
					}
					m.saidAtMost(t, 4, ofWires...)
					r.c.Close(r.w)
					Pass(2 * TokenLifetime) // of what was asked for in vain
					m.CheckEmpty()
				})
			})
		}
	}
}

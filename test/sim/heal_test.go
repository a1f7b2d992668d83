// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/openvwire/nsm/internal/echo/memecho"
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
)

// A wire that nobody could refresh or replace for all of its life has an end, and
// leaves nothing. A new one takes its place as soon as that can be had.
func TestWireThatExpires(t *testing.T) {
	for _, part := range []struct {
		name     string
		down, up func(*rig)
		within   time.Duration
	}{
		{"manager", func(r *rig) { r.a.StopManager() }, func(r *rig) { r.a.StartManager() }, 5 * time.Second},
		{"forwarder", func(r *rig) { r.a.Forwarder().Stop() }, func(r *rig) { r.a.StartForwarder("forwarder-a", map[string]string{"p2p": "true"}) }, 31 * time.Second},
		{"endpoint", func(r *rig) { r.e.Vanish() }, func(r *rig) { r.e = r.b.Serve(Service{Name: "db", CIDR: "10.60.0.0/24"}) }, 100 * time.Millisecond},
	} {
		t.Run(part.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				r := newRig(m, "IP", true)
				part.down(r)
				Pass(TokenLifetime + time.Minute)
				if n := len(r.w.Connection().GetPath().GetPathSegments()); Up(r.w) || n != 1 {
					t.Errorf("still up, or a path: %v", r.w.Connection())
				}
				part.up(r)
				came := time.Now()
				for !Up(r.w) {
					_, changed, _ := r.w.Status()
					select {
					case <-changed:
					case <-time.After(time.Minute):
						t.Fatal("no new wire")
					}
				}
				if took := time.Since(came); took > part.within {
					t.Errorf("a new wire after %v", took)
				}
				Settle()
				if r.w.Interface() != "nsm-1" || r.w.Connection().GetNetworkServiceEndpointName() != "db-b" {
					t.Errorf("the new wire is %v", r.w.Connection())
				}
				r.c.Close(r.w)
				Pass(TokenLifetime) // of what was left of the old wire
				m.CheckEmpty()
			})
		})
	}
}

// An operator sees how often it was tried to heal a wire that is down, and why that
// fails; of one that is up again nothing is left of that.
func TestAttemptsAreShown(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", true)
		show := func() *adminv1.WireSummary {
			t.Helper()
			stream, err := m.Admin(t, r.c.part, r.a).Wires(t.Context(), &adminv1.WiresRequest{})
			if err != nil {
				t.Fatal(err)
			}
			event, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			return event.GetWire()
		}
		if w := show(); w.GetAttempts() != 0 || w.GetLastError() != "" {
			t.Errorf("a wire that is up: %v", w)
		}
		r.e.Stop()
		stopped := time.Now()
		Pass(2 * time.Minute)
		tries, _, err := r.w.Status()
		w := show()
		if n := int(w.GetAttempts()); n != tries || n == 0 || w.GetLastError() != nserr.From(err).Reason.Code || w.GetState() != adminv1.WireState_WIRE_STATE_DOWN {
			t.Errorf("shown are %v, the client has tried %d times: %v", w, tries, err)
		}
		if down := w.GetStateSince().AsTime().Sub(stopped); down < 0 || down > time.Second {
			t.Errorf("down since %v after the endpoint was stopped", down)
		}
		r.b.Serve(Service{Name: "db", CIDR: "10.61.0.0/24"})
		Pass(time.Second)
		if w := show(); w.GetAttempts() != 0 || w.GetLastError() != "" || w.GetState() != adminv1.WireState_WIRE_STATE_UP {
			t.Errorf("a wire that is up again: %v", w)
		}
		r.c.Close(r.w)
		m.CheckEmpty()
	})
}

// What became of a wire is told by its pings: how long there was no answer.
func outage(r *rig, limit time.Duration) time.Duration {
	start := time.Now()
	for time.Since(start) < limit {
		if r.flows() {
			return time.Since(start)
		}
		Pass(10 * time.Millisecond)
	}
	return limit
}

// flows reports whether packets get from one end of the wire to the other.
func (r *rig) flows() bool {
	return len(r.w.Addrs()) > 0 && r.carries(memecho.Path{NetNS: r.Space("web"), From: r.w.Addrs()[0], To: r.w.PeerAddrs()[0]})
}

// A daemon of the client's own node fails just when its wire is about to leave a dead
// endpoint for another one. What the kernel of the dead one still answers, and what
// has failed before, puts nothing off: the wire moves as soon as the daemon is back.
func TestSecondFaultWhileHealing(t *testing.T) {
	for _, part := range []struct {
		name     string
		down, up func(*rig)
	}{
		{"manager", func(r *rig) { r.a.StopManager() }, func(r *rig) { r.a.StartManager() }},
		{"forwarder", func(r *rig) { r.a.Forwarder().Stop() }, func(r *rig) { r.a.StartForwarder("forwarder-a", map[string]string{"p2p": "true"}) }},
	} {
		for _, away := range []time.Duration{0, 500 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s, away for %v", part.name, away), func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					r := &rig{Mesh: m, a: m.Node("a"), b: m.Node("b")}
					dead := r.b.Serve(Service{Name: "db", CIDR: "10.60.0.0/24"})
					r.c = r.a.Client("web", m.Pings)
					r.w = r.c.Connect("kernel://db/nsm-1")
					c := m.Node("c")
					c.Serve(Service{Name: "db", CIDR: "10.61.0.0/24"})
					Pass(5 * time.Second)                    // nobody registers again just then
					m.Network.SetFate(func(call Call) Fate { // the Request to the spare is under way
						if call.To == c.ManagerURL() && call.Method == "Request" {
							return LoseRequest
						}
						return Deliver
					})
					dead.Vanish()
					Pass(time.Second)
					if n := m.Network.CallsTo(c.ManagerURL(), "Request"); n != 1 {
						t.Fatalf("%d Requests to the spare before the second fault, want 1", n)
					}
					m.Network.SetFate(nil)
					part.down(r)
					Pass(away)
					part.up(r)
					back := time.Now()
					for r.w.Connection().GetNetworkServiceEndpointName() != "db-c" || !Up(r.w) {
						_, changed, _ := r.w.Status()
						select {
						case <-changed:
						case <-time.After(time.Minute):
							t.Fatal("it is not healed")
						}
					}
					if took := time.Since(back); took > time.Second {
						t.Errorf("healed after %v", took)
					}
					Settle()
					if !r.flows() {
						t.Error("nothing flows")
					}
					r.c.Close(r.w)
					Pass(TokenLifetime) // of what a part that has died has left
					m.CheckEmpty()
				})
			})
		}
	}
}

// A node that swallows everything, so that nobody hears of its end, is left for
// another one within two seconds; and so is the next.
func TestBlackHoles(t *testing.T) {
	for _, payload := range []string{"IP", "ETHERNET"} {
		t.Run(payload, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				r := &rig{Mesh: m, a: m.Node("a")}
				nodes := make(map[string]*Node)
				for i, name := range []string{"b", "c", "d"} {
					n := m.Node(name)
					nodes["db-"+name] = n
					n.Serve(Service{Name: "db", Payload: payload, CIDR: fmt.Sprintf("10.%d.0.0/24", 60+i)})
				}
				r.c = r.a.Client("web", m.Pings)
				r.w = r.c.Connect("kernel://db/nsm-1")
				var holes sync.Map // URLs of managers that do not answer
				m.Network.SetFate(func(c Call) Fate {
					if _, hole := holes.Load(c.To); hole {
						return LoseRequest
					}
					return Deliver
				})
				Pass(time.Minute)
				for len(nodes) > 1 {
					name := r.w.Connection().GetNetworkServiceEndpointName()
					if !r.flows() {
						t.Fatalf("nothing flows to %s", name)
					}
					holes.Store(nodes[name].ManagerURL(), true)
					m.SetHole(nodes[name], true)
					delete(nodes, name)
					out := outage(r, 10*time.Second)
					t.Logf("%s is a hole: nothing flows for %v", name, out)
					if out > 2*time.Second {
						t.Errorf("%s is a hole: nothing flows for %v", name, out)
					}
					Pass(30 * time.Second)
				}
				if tries, _, err := r.w.Status(); err != nil || !Up(r.w) {
					t.Errorf("the wire is not up after %d tries: %v", tries, err)
				}
			})
		})
	}
}

// Where packets flow, and their client knows, no restart of a daemon changes the
// wire, however long the daemon is away.
func TestRestartsWhilePacketsFlow(t *testing.T) {
	for _, part := range []struct {
		name     string
		down, up func(*rig)
	}{
		{"registry", func(r *rig) { r.StopRegistry() }, func(r *rig) { r.StartRegistry() }},
		{"manager", func(r *rig) { r.a.StopManager() }, func(r *rig) { r.a.StartManager() }},
		{"forwarder", func(r *rig) { r.a.Forwarder().Stop() }, func(r *rig) { r.a.StartForwarder("forwarder-a", map[string]string{"p2p": "true"}) }},
		{"far manager", func(r *rig) { r.b.StopManager() }, func(r *rig) { r.b.StartManager() }},
		{"far forwarder", func(r *rig) { r.b.Forwarder().Stop() }, func(r *rig) { r.b.StartForwarder("forwarder-b", map[string]string{"p2p": "true"}) }},
	} {
		t.Run(part.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				r := &rig{Mesh: m, a: m.Node("a"), b: m.Node("b")}
				r.b.Serve(Service{Name: "db", Endpoint: "one"})
				r.c = r.a.Client("web", m.Pings)
				r.w = r.c.Connect("kernel://db/nsm-1")
				m.Node("c").Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
				Pass(time.Minute)
				before, steps := View(r.w), r.steps()
				for _, away := range []time.Duration{0, time.Second, 5 * time.Minute} {
					part.down(r)
					Pass(away)
					if !r.flows() {
						t.Errorf("nothing flows while it is away for %v", away)
					}
					part.up(r)
					Pass(30 * time.Second)
					if diff := cmp.Diff(before, View(r.w)); diff != "" || r.steps() != steps {
						t.Errorf("away for %v: the wire has changed in %d steps (-before +after):\n%s", away, r.steps()-steps, diff)
					}
					if tries, _, err := r.w.Status(); err != nil || tries != 0 || !Up(r.w) {
						t.Errorf("away for %v: the wire is not up: %v, %d tries", away, err, tries)
					}
				}
				r.c.Close(r.w)
				m.CheckEmpty()
			})
		})
	}
}

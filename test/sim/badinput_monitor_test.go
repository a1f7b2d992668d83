// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/nserr"
)

// said counts the lines above DEBUG since the last time, by who has said what.
func (m *Mesh) said() map[string]int {
	m.logs.mu.Lock()
	defer m.logs.mu.Unlock()
	said := make(map[string]int)
	for line := range strings.Lines(m.logs.buf.String()[m.heard:]) {
		if strings.Contains(line, "level=DEBUG") {
			continue
		}
		_, rest, _ := strings.Cut(line, " msg=")
		what := strings.Fields(rest)[0]
		if strings.HasPrefix(rest, `"`) {
			what, _, _ = strings.Cut(rest[1:], `"`)
		}
		_, at, _ := strings.Cut(line, " at=")
		at, _, _ = strings.Cut(at, " ")
		said[at+": "+what]++
	}
	m.heard = m.logs.buf.Len()
	return said
}

// reminders is how often a client reminds of what it has tried in vain for long: ever
// less often.
const reminders = 16

// ofWires is what each hop says of each wire that it makes and closes, as often as it
// does.
var ofWires = []string{"wire up", "wire closed", "connection up", "connection closed", "connection closed to be opened anew"}

// saidAtMost fails the test if somebody has said something more often since the last
// time, except of wires if those are made and closed.
func (m *Mesh) saidAtMost(t *testing.T, most int, except ...string) {
	t.Helper()
	said := m.said()
	for _, what := range slices.Sorted(maps.Keys(said)) {
		limit := most
		if _, of, _ := strings.Cut(what, ": "); slices.Contains(except, of) {
			continue
		}
		if strings.HasPrefix(what, "web: ") && strings.HasSuffix(what, ", trying on") {
			limit = reminders
		}
		if n := said[what]; n > limit {
			t.Errorf("said %d times: %s", n, what)
		}
	}
}

// insist has the registry return an endpoint for ever, whoever unregisters it.
func (m *Mesh) insist(t *testing.T, name, url string) {
	t.Helper()
	nse := &api.NetworkServiceEndpoint{
		Name: name, Url: url, NetworkServiceNames: []string{"db"},
		NetworkServiceLabels: map[string]*api.NetworkServiceLabels{"db": {}},
		ExpirationTime:       timestamppb.New(time.Now().Add(svidLifetime)),
		PathIds:              []string{ID("registry")},
	}
	_, err := m.registry.endpoints.Update(t.Context(), name, func(*api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error) {
		return nse, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	Settle()
}

// A registry that returns a dead endpoint for ever is asked for ever, by a client that
// wants it so; the log has each failure once.
func TestDeadEndpointForEver(t *testing.T) {
	for _, tt := range []struct {
		name string
		url  func(a, b *Node) string
		fate Fate
	}{
		{"of this node", func(a, _ *Node) string { return a.ManagerURL() }, Deliver},
		{"of another node", func(_, b *Node) string { return b.ManagerURL() }, Deliver},
		{"of a node that is gone", func(*Node, *Node) string { return "tcp://nowhere:5001" }, Deliver},
		{"of a node that is silent", func(_, b *Node) string { return b.ManagerURL() }, LoseRequest},
		{"of a node that answers too late", func(_, b *Node) string { return b.ManagerURL() }, LoseReply},
	} {
		for _, up := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, wire %v", tt.name, up), func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					a, b := m.Node("a"), m.Node("b")
					m.Apply(a, &api.NetworkService{Name: "db", Payload: "IP"})
					c := a.Client("web")
					var one *Endpoint
					var w *client.Wire
					if up {
						one = b.Serve(Service{Name: "db", Endpoint: "one"})
						w = c.Connect("kernel://db/nsm-1")
					}
					m.insist(t, "dead", tt.url(a, b))
					m.silent(tt.fate, tt.url(a, b))
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					connected := make(chan *client.Wire, 1)
					if up {
						one.Vanish()
					} else {
						go func() {
							w, err := c.Ask(ctx, client.Request{Service: "db", Interface: "nsm-1", Retry: true})
							if err != nil {
								t.Error(err)
							}
							connected <- w
						}()
					}
					Pass(40 * time.Minute)
					if n := m.Network.CallsTo(a.ManagerURL(), "Request"); n < 70 {
						t.Errorf("asked %d times only", n)
					}
					m.saidAtMost(t, 4)

					m.silent(Deliver)
					a.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
					Pass(time.Minute)
					if !up {
						w = <-connected
					}
					if got := w.Connection().GetNetworkServiceEndpointName(); got != "two" || !Up(w) {
						t.Errorf("connected to %q, up %v", got, Up(w))
					}
					m.saidAtMost(t, 2)
					c.Close(w)
					Pass(TokenLifetime) // of what the silent ones were to close
					m.CheckEmpty()
				})
			})
		}
	}
}

// An endpoint that refuses a client for ever, for one reason or for two in turn, says so
// once.
func TestRefusedForEver(t *testing.T) {
	for _, across := range []bool{false, true} {
		for _, reasons := range [][]*nserr.Reason{{nserr.Busy}, {nserr.Busy, nserr.AddressesExhausted}} {
			t.Run(fmt.Sprintf("across %v, %d reasons", across, len(reasons)), func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					a, b := m.Node("a"), m.Node("b")
					at := a
					if across {
						at = b
					}
					var refused atomic.Int64 // how often, until it is negative
					at.Serve(Service{Name: "db", With: []endpoint.Middleware{func(next endpoint.Handler) endpoint.Handler {
						return endpoint.Funcs{OnRequest: func(ctx context.Context, r *endpoint.Request) error {
							if n := refused.Add(1); n > 0 {
								return reasons[int(n)%len(reasons)].Errorf("not now")
							}
							return next.Request(ctx, r)
						}, OnClose: next.Close}
					}}})
					c := a.Client("web")
					connected := make(chan *client.Wire, 1)
					go func() {
						w, err := c.Ask(t.Context(), client.Request{Service: "db", Interface: "nsm-1", Retry: true})
						if err != nil {
							t.Error(err)
						}
						connected <- w
					}()
					Pass(40 * time.Minute)
					if n := refused.Load(); n < 70 {
						t.Errorf("asked %d times only", n)
					}
					m.saidAtMost(t, 2)
					refused.Store(math.MinInt32)
					Pass(time.Minute)
					w := <-connected
					m.saidAtMost(t, 1)
					Pass(30 * time.Minute)
					refused.Store(0)
					Pass(5 * time.Minute)
					if n := m.said()[at.endpoints[0].name+": request refused"]; n != len(reasons) {
						t.Errorf("refused again for %d reasons, said %d times", len(reasons), n)
					}
					c.Close(w)
					m.CheckEmpty()
				})
			})
		}
	}
}

// A peer that is away for 100 ms and there for 100 ms is no peer to rely on. It is asked
// now and then, the log has little of that, and the wire is what it was when the peer has
// come to rest.
func TestFlappingParts(t *testing.T) {
	for _, tt := range []struct {
		name string
		part func(r *rig) *part
	}{
		{"registry", func(r *rig) *part { return r.registry.part }},
		{"manager", func(r *rig) *part { return r.a.Manager.part }},
		{"forwarder", func(r *rig) *part { return r.a.Forwarder().part }},
		{"far manager", func(r *rig) *part { return r.b.Manager.part }},
		{"far forwarder", func(r *rig) *part { return r.b.Forwarder().part }},
		{"endpoint", func(r *rig) *part { return r.e.part }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				r := newRig(m, "IP", true)
				p, before := tt.part(r), View(r.w)
				Pass(time.Minute)
				m.said()
				m.Network.Forget()
				const flaps = 2000
				for range flaps {
					p.hangUp()
					Pass(100 * time.Millisecond)
					p.resume()
					Pass(100 * time.Millisecond)
				}
				m.saidAtMost(t, 4)
				if n := m.Network.CallsBy("web", "Request"); n > flaps/5 {
					t.Errorf("%d Requests in %v", n, flaps*200*time.Millisecond)
				}
				Pass(2 * time.Minute)
				if tries, _, err := r.w.Status(); err != nil || tries != 0 || !Up(r.w) {
					t.Errorf("the wire is not up: %v, %d tries", err, tries)
				}
				if diff := cmp.Diff(before, View(r.w)); diff != "" {
					t.Errorf("the wire has changed (-before +after):\n%s", diff)
				}
				r.c.Close(r.w)
				m.CheckEmpty()
			})
		})
	}
}

// A peer that answers only after the deadline, whatever it is asked, is as good as dead.
// Who asks it says so once, and what it has built for nobody is gone when it has come to
// rest.
func TestAnswersAfterTheDeadline(t *testing.T) {
	for _, tt := range []struct {
		name string
		part func(r *rig) *part
	}{
		{"manager", func(r *rig) *part { return r.a.Manager.part }},
		{"forwarder", func(r *rig) *part { return r.a.Forwarder().part }},
		{"far manager", func(r *rig) *part { return r.b.Manager.part }},
		{"far forwarder", func(r *rig) *part { return r.b.Forwarder().part }},
		{"endpoint", func(r *rig) *part { return r.e.part }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				r := newRig(m, "IP", true)
				Pass(time.Minute)
				late := tt.part(r).url
				m.said()
				m.Network.SetFate(func(c Call) Fate {
					if c.To == late {
						return LoseReply
					}
					return Deliver
				})
				Pass(30 * time.Minute)
				m.saidAtMost(t, 4, ofWires...) // which are made for nobody, and closed again
				m.Network.SetFate(nil)
				Pass(2 * time.Minute)
				if tries, _, err := r.w.Status(); err != nil || tries != 0 || !Up(r.w) {
					t.Errorf("the wire is not up: %v, %d tries", err, tries)
				}
				r.c.Close(r.w)
				Pass(TokenLifetime) // of what nobody has learnt of
				m.CheckEmpty()
			})
		})
	}
}

// The lease file of another version is set aside, which is said once. What the clients
// have they keep.
func TestLeasesOfAnotherVersion(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		file := leaseFile(t)
		e := a.Serve(Service{Name: "db", Leases: file})
		c := a.Client("web")
		w := c.Connect("kernel://db/nsm-1")
		before := View(w)
		e.Vanish()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		data[7]++ // the version
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		service := e.service
		service.Pool = nil
		for range 3 {
			e = a.Serve(service)
			Pass(5 * time.Minute)
			if diff := cmp.Diff(before, View(w)); diff != "" || !Up(w) {
				t.Errorf("the wire has changed (-before +after):\n%s", diff)
			}
			if n := m.logged("WARN", "set aside"); n != 1 {
				t.Errorf("said %d times", n)
			}
			if n := len(e.Pool.Leases()); n != 1 {
				t.Errorf("%d leases", n)
			}
			e.Vanish()
		}
		a.Serve(service)
		Pass(time.Minute)
		c.Close(w)
		m.CheckEmpty()
	})
}

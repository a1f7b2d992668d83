// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/sdk/client"
)

// version labels an endpoint, and routes to such ones.
func version(v string) map[string]string { return map[string]string{"v": v} }

func toVersion(vs ...string) *api.Match {
	m := &api.Match{}
	for _, v := range vs {
		m.Routes = append(m.Routes, to(1, "v", v))
	}
	return m
}

// at returns the endpoint that a wire has, and its state if that is not UP.
func at(w *client.Wire) string {
	name := w.Connection().GetNetworkServiceEndpointName()
	if !Up(w) {
		name += " " + w.Connection().GetState().String()
	}
	return name
}

// When a service's rules change, the wires move that they select another endpoint for:
// the new path is made before the old one is closed. The others notice nothing.
func TestRulesChange(t *testing.T) {
	for _, tt := range []struct{ one, two string }{{"a", "a"}, {"a", "b"}, {"b", "a"}, {"b", "c"}} {
		t.Run(tt.one+" to "+tt.two, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				nodes := map[string]*Node{"a": m.Node("a"), "b": m.Node("b"), "c": m.Node("c")}
				m.Apply(nodes["a"], &api.NetworkService{Name: "db", Matches: []*api.Match{toVersion("1")}})
				one := nodes[tt.one].Serve(Service{Name: "db", Endpoint: "one", Labels: version("1")})
				two := nodes[tt.two].Serve(Service{Name: "db", Endpoint: "two", Labels: version("2"), CIDR: "10.61.0.0/24"})
				c := nodes["a"].Client("web", m.Pings)
				ask := func(r client.Request) *client.Wire {
					r.Service = "db"
					w, err := c.Ask(t.Context(), r)
					if err != nil {
						t.Fatal(err)
					}
					return w
				}
				moves := ask(client.Request{Interface: "moves"})
				stays := ask(client.Request{Interface: "stays", Labels: map[string]string{"app": "old"}})
				named := ask(client.Request{Interface: "named", Endpoint: "one"})
				wires := []*client.Wire{moves, stays, named}

				var order []string
				var requests int
				listen := func() {
					m.Network.SetFate(func(c Call) Fate {
						if c.From == "web" && c.Method == "Request" {
							requests++
						}
						for _, e := range []*Endpoint{one, two} {
							if c.To == e.url && (c.Method == "Request" || c.Method == "Close") {
								order = append(order, c.Method+" "+e.name)
							}
						}
						return Deliver
					})
				}
				listen()
				// Another share, and what is no rule, move nobody.
				m.Apply(nodes["b"], &api.NetworkService{Name: "db", Matches: []*api.Match{{Routes: []*api.Destination{to(7, "v", "1")}}}})
				m.Apply(nodes["b"], &api.NetworkService{Name: "db", Matches: []*api.Match{toVersion("1", "2")}})
				Pass(10 * time.Second)
				if requests != 0 {
					t.Errorf("%d Requests for rules that select the same", requests)
				}
				old := toVersion("1")
				old.SourceSelector = map[string]string{"app": "old"}
				m.Apply(nodes["b"], &api.NetworkService{Name: "db", Matches: []*api.Match{old, toVersion("2")}})
				Pass(3 * time.Second)
				m.Network.SetFate(nil)
				if want := []string{"Request two", "Close one"}; !slices.Equal(order, want) {
					t.Errorf("the endpoints heard %v, want %v", order, want)
				}
				if requests != 1 {
					t.Errorf("%d Requests of the client", requests)
				}
				for w, want := range map[*client.Wire]string{moves: "two", stays: "one", named: "one"} {
					if at(w) != want {
						t.Errorf("%s is at %s, want %s", w.ID(), at(w), want)
					}
				}
				m.Apply(nodes["a"], &api.NetworkService{Name: "db", Matches: []*api.Match{toVersion("1")}})
				Pass(3 * time.Second)
				if at(moves) != "one" {
					t.Errorf("it did not come back, but is at %s", at(moves))
				}
				for _, w := range wires {
					c.Close(w)
				}
				m.CheckEmpty()
			})
		})
	}
}

// A wire that the new rules select nobody for stays where it is, until they do; so does
// one whose new endpoint refuses it, and it is not tried again and again.
func TestRulesSelectNobody(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		m.Apply(a, &api.NetworkService{Name: "db"})
		a.Serve(Service{Name: "db", Endpoint: "one", Labels: version("1")})
		c := a.Client("web", m.Pings)
		w := c.Connect("kernel://db/nsm-1")
		m.Network.Forget()
		m.Apply(a, &api.NetworkService{Name: "db", Matches: []*api.Match{toVersion("2")}})
		Pass(time.Minute)
		if n := m.Network.CallsBy("web", "Request"); n != 0 || at(w) != "one" {
			t.Errorf("%d Requests with nowhere to go, at %s", n, at(w))
		}
		full := b.Serve(Service{Name: "db", Endpoint: "full", Labels: version("2"), CIDR: "10.62.0.0/31"})
		other := b.Client("other")
		last := other.Connect("kernel://db/nsm-1")
		m.Network.Forget()
		Pass(time.Minute)
		if n := m.Network.CallsBy("web", "Request"); n == 0 || n > 12 || at(w) != "one" {
			t.Errorf("%d Requests while the only endpoint refuses, at %s", n, at(w))
		}
		other.Close(last)
		full.Stop()
		b.Serve(Service{Name: "db", Endpoint: "two", Labels: version("2"), CIDR: "10.61.0.0/24"})
		Pass(65 * time.Second)
		if at(w) != "two" {
			t.Errorf("at %s", at(w))
		}
		c.Close(w)
		m.CheckEmpty()
	})
}

// A service that is deleted, or lost with the registry, takes no wire away; when it is
// back its rules count again. A manager that restarts compares with nothing.
func TestRulesComeBack(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		m.Apply(a, &api.NetworkService{Name: "db", Matches: []*api.Match{toVersion("1")}})
		a.Serve(Service{Name: "db", Endpoint: "one", Labels: version("1")})
		b.Serve(Service{Name: "db", Endpoint: "two", Labels: version("2"), CIDR: "10.61.0.0/24"})
		c := a.Client("web", m.Pings)
		w := c.Connect("kernel://db/nsm-1")
		if _, err := api.NewNetworkServiceRegistryClient(m.Stranger("operator").Dial(a.ManagerURL())).Unregister(t.Context(), &api.NetworkService{Name: "db"}); err != nil {
			t.Fatal(err)
		}
		Pass(time.Second)
		if at(w) != "one" {
			t.Errorf("without the service at %s", at(w))
		}
		m.Apply(a, &api.NetworkService{Name: "db", Matches: []*api.Match{toVersion("2")}})
		Pass(3 * time.Second)
		if at(w) != "two" {
			t.Errorf("with other rules at %s", at(w))
		}
		a.StopManager()
		a.StartManager()
		Pass(10 * time.Second)
		m.Network.Forget()
		m.Apply(b, &api.NetworkService{Name: "db", Matches: []*api.Match{toVersion("1")}})
		Pass(10 * time.Second)
		if at(w) != "one" {
			t.Errorf("after the manager's restart at %s", at(w))
		}
		c.Close(w)
		m.CheckEmpty()
	})
}

// A chain of services changes in the middle: an endpoint that asks further on is a
// client as well.
func TestRulesOfAChain(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		m.Apply(a, &api.NetworkService{Name: "db", Matches: []*api.Match{
			{Routes: []*api.Destination{to(1, "app", "db")}},
		}})
		b.Serve(Service{Name: "db", Endpoint: "db", Labels: map[string]string{"app": "db"}})
		a.Serve(Service{Name: "db", Endpoint: "wall", Labels: map[string]string{"app": "firewall"}, CIDR: "10.61.0.0/24"})
		c := a.Client("web", m.Pings)
		w := c.Connect("kernel://db/nsm-1")
		// A firewall gets in between, and leaves again.
		for _, want := range []string{"firewall", "db"} {
			m.Apply(a, &api.NetworkService{Name: "db", Matches: []*api.Match{
				{SourceSelector: map[string]string{"app": "firewall"}, Routes: []*api.Destination{to(1, "app", "db")}},
				{Routes: []*api.Destination{to(1, "app", want)}},
			}})
			Pass(3 * time.Second)
			if want = strings.Replace(want, "firewall", "wall", 1); at(w) != want {
				t.Errorf("at %s, want %s", at(w), want)
			}
		}
		c.Close(w)
		m.CheckEmpty()
	})
}

// However many wires have to move, few do so at once, and no packet waits for that.
func TestRulesMoveManyWires(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		const many, atOnce = 300, 64
		a, b := m.Node("a"), m.Node("b")
		m.Apply(a, &api.NetworkService{Name: "db", Matches: []*api.Match{toVersion("1")}})
		b.Serve(Service{Name: "db", Endpoint: "one", Labels: version("1"), CIDR: "10.60.0.0/20"})
		two := b.Serve(Service{Name: "db", Endpoint: "two", Labels: version("2"), CIDR: "10.61.0.0/20"})
		c := a.Client("web", m.Pings)
		var wires []*client.Wire
		for i := range many {
			wires = append(wires, c.Connect(fmt.Sprintf("kernel://db/nsm-%d", i)))
		}
		var moved []time.Time
		m.Network.SetFate(func(c Call) Fate {
			if c.To == two.url && c.Method == "Request" {
				moved = append(moved, time.Now())
			}
			return Deliver
		})
		m.Apply(a, &api.NetworkService{Name: "db", Matches: []*api.Match{toVersion("2")}})
		Pass(10 * time.Second)
		m.Network.SetFate(nil)
		for _, w := range wires {
			if at(w) != "two" {
				t.Fatalf("%s is at %s", w.ID(), at(w))
			}
		}
		if len(moved) != many {
			t.Fatalf("%d Requests for %d wires", len(moved), many)
		}
		for i, t0 := range moved { // the client spreads those that are asked at once over 200 ms
			if j := i + 2*atOnce; j < many && moved[j].Sub(t0) < 100*time.Millisecond {
				t.Errorf("%d wires move within %s", 2*atOnce+1, moved[j].Sub(t0))
			}
		}
		for _, w := range wires {
			c.Close(w)
		}
		m.CheckEmpty()
	})
}

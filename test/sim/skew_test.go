// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// skewBorne is by how much the clocks of two nodes may differ (docs/protocol.md).
const skewBorne = 30 * time.Second

// clocks are parts whose clock is ahead of all the others' or behind them: the shape of
// everything that can be wrong between two nodes.
func clocks(f func(name string, set func(*Mesh))) {
	parts := map[string][]string{
		"the registry": {"registry"}, "the client": {"web", "new"}, "the endpoint": {"db-b"},
		"a manager": {"manager-a"}, "a forwarder": {"forwarder-a"}, "the far manager": {"manager-b"}, "the far forwarder": {"forwarder-b"},
		"a node": {"web", "new", "manager-a", "forwarder-a"}, "the far node": {"db-b", "manager-b", "forwarder-b"},
	}
	for name, who := range parts {
		for _, skew := range []time.Duration{skewBorne, -skewBorne} {
			f(fmt.Sprintf("%s by %v", name, skew), func(m *Mesh) {
				for _, part := range who {
					m.SetClock(part, skew)
				}
				if name == "the registry" {
					m.StopRegistry()
					m.StartRegistry()
				}
			})
		}
	}
}

// Times move where they pass to a part with another clock, and only there.
func TestShift(t *testing.T) {
	at := time.Unix(1000, 5)
	conn := &networkservice.Connection{Id: "x", Labels: map[string]string{"a": "b"}, Path: &networkservice.Path{
		PathSegments: []*networkservice.PathSegment{{Name: "a", Expires: timestamppb.New(at)}, {Name: "b"}},
	}}
	event := &networkservice.ConnectionEvent{Connections: map[string]*networkservice.Connection{"x": conn}}
	got := shifted(event, -time.Minute).(*networkservice.ConnectionEvent).Connections["x"]
	if now := got.Path.PathSegments[0].Expires.AsTime(); !now.Equal(at.Add(-time.Minute)) || got.Path.PathSegments[1].Expires != nil {
		t.Errorf("shifted: %v", got)
	}
	if !conn.Path.PathSegments[0].Expires.AsTime().Equal(at) {
		t.Error("the message itself has changed")
	}
}

// With clocks that differ a wire lives, is refreshed in time without a failure and
// without touching a kernel, and ends at every hop when its client is gone for a token's
// life: not before, and not much later.
func TestClocksDiffer(t *testing.T) {
	clocks(func(name string, set func(*Mesh)) {
		t.Run(name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				set(m)
				r := newRig(m, "IP", true)
				before, steps := View(r.w), r.steps()
				for range 60 {
					Pass(30 * time.Second)
					if tries, _, err := r.w.Status(); err != nil || tries != 0 || !Up(r.w) {
						t.Fatalf("not up: %d tries, %v", tries, err)
					}
				}
				if diff := cmp.Diff(before, View(r.w)); diff != "" || r.steps() != steps {
					t.Errorf("the wire has changed in %d steps (-before +after):\n%s", r.steps()-steps, diff)
				}
				r.c.Vanish()
				Pass(TokenLifetime*4/5 - time.Minute - 2*skewBorne) // it had used a fifth, and a token that is a minute old
				for _, hop := range []struct {
					name string
					n    int
				}{
					{"manager-a", r.a.Manager.Usage().Wires}, {"forwarder-a", r.a.Forwarder().Usage().Wires},
					{"manager-b", r.b.Manager.Usage().Wires}, {"forwarder-b", r.b.Forwarder().Usage().Wires}, {"endpoint", r.e.Server.Len()},
				} {
					if hop.n != 1 {
						t.Errorf("%s has closed the wire already", hop.name)
					}
				}
				Pass(TokenLifetime/5 + time.Minute + 4*skewBorne)
				m.CheckEmpty()
			})
		})
	})
}

// With clocks that differ, and a registry that is away for a few seconds twice a minute, when
// somebody wants to renew, whoever looks for an endpoint finds it at any time.
func TestRegistrationsWhenClocksDiffer(t *testing.T) {
	clocks(func(name string, set func(*Mesh)) {
		t.Run(name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				set(m)
				a, b := m.Node("a"), m.Node("b")
				b.Serve(Service{Name: "db"})
				var away time.Time // begins with a renewal
				m.Network.SetFate(func(c Call) Fate {
					if c.To != RegistryURL || c.Method != "Register" {
						return Deliver
					}
					if now := time.Now(); now.Sub(away) > 30*time.Second {
						away = now
					}
					if time.Since(away) < 5*time.Second {
						return Refuse
					}
					return Deliver
				})
				c := a.Client("new")
				for i := range 30 {
					w, err := c.Try(t.Context(), "kernel://db/nsm-1")
					if err != nil {
						t.Fatalf("after %d s: %v; registered are %v", i*7, err, m.Registered())
					}
					c.Close(w)
					Pass(7 * time.Second)
				}
				if names := m.Registered(); !slices.Contains(names, "db-b") || strings.Join(names, " ") != "db-b forwarder-a forwarder-b" {
					t.Errorf("registered are %v", names)
				}
			})
		})
	})
}

// A node whose clock is minutes off is told so, once, and its registrations last as long
// as others: they are not lost and made again all the time.
func TestClockOfANodeIsWrong(t *testing.T) {
	for _, skew := range []time.Duration{2 * time.Minute, -2 * time.Minute} {
		t.Run(skew.String(), func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				for _, part := range []string{"db-a", "web", "manager-a", "forwarder-a"} {
					m.SetClock(part, skew)
				}
				a := m.Node("a")
				a.Serve(Service{Name: "db"})
				m.Node("b").Serve(Service{Name: "far", CIDR: "10.61.0.0/24"})
				m.Network.Forget()
				c := a.Client("web")
				for range 10 {
					for _, service := range []string{"db", "far"} {
						w, err := c.Try(t.Context(), "kernel://"+service+"/nsm-1")
						if err != nil {
							t.Fatalf("%s: %v; registered are %v", service, err, m.Registered())
						}
						c.Close(w)
					}
					Pass(31 * time.Second)
				}
				if n := m.Network.Calls("Register"); n > 160 { // four of a minute each, renewed every 20 s and passed on: 128
					t.Errorf("%d registrations in five minutes", n)
				}
				m.logs.mu.Lock()
				log := m.logs.buf.String()
				m.logs.mu.Unlock()
				if n := strings.Count(log, "the registry's clock differs"); n != 1 || !strings.Contains(log, "ahead="+(-skew).String()) || strings.Contains(log, "endpoint expired") {
					t.Errorf("said %d times, want once and that it is ahead by %v; and that nothing has expired", n, -skew)
				}
				m.CheckEmpty()
			})
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
)

const (
	initial = "INITIAL_STATE_TRANSFER"
	up      = "UPDATE UP"
	down    = "UPDATE DOWN"
	deleted = "DELETE"
)

// expect checks the kinds of events since the last time, where a state may be
// told several times in a row.
func (w *Watcher) expect(t *testing.T, what string, want ...string) {
	t.Helper()
	got := slices.Compact(w.Kinds())
	for i, k := range got { // a DELETE has the state the connection had last
		if len(k) > len(deleted) && k[:len(deleted)] == deleted {
			got[i] = deleted
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: heard %q, want %q", what, got, want)
	}
}

// Whoever is on a path hears of the wire at every hop, and of no other; somebody
// else hears nothing, an observer everything.
func TestMonitor(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		e := b.Serve(Service{Name: "db"})
		web, other := m.Raw("web"), m.Raw("other")
		selector := func(name string) *networkservice.MonitorScopeSelector {
			return &networkservice.MonitorScopeSelector{PathSegments: []*networkservice.PathSegment{{Name: name}}}
		}
		mine := web.Watch(a.ManagerURL(), selector("web"))
		far := web.Watch(b.ManagerURL(), nil)
		theirs := other.Watch(a.ManagerURL(), nil)
		elsewhere := web.Watch(a.ManagerURL(), &networkservice.MonitorScopeSelector{NetworkServices: []string{"web"}})
		observer := m.Stranger("observer").Watch(b.Forwarder().url, nil)
		all := []*Watcher{mine, far, theirs, elsewhere, observer}
		for _, w := range all {
			w.expect(t, "before", initial)
		}

		req := web.Message("db")
		got, err := web.Request(a.ManagerURL(), req)
		if err != nil {
			t.Fatal(err)
		}
		mine.expect(t, "after Request", up)
		far.expect(t, "after Request", up)
		observer.expect(t, "after Request", up)

		Pass(time.Minute)
		for _, w := range all {
			w.expect(t, "while nothing happens")
		}
		if got, err = web.Request(a.ManagerURL(), Again(req, got)); err != nil {
			t.Fatal(err)
		}
		mine.expect(t, "after a refresh", up)
		far.expect(t, "after a refresh", up)
		observer.expect(t, "after a refresh", up)

		late := web.Watch(a.ManagerURL(), selector("web"))
		late.expect(t, "who comes late", initial+" UP")

		e.Vanish()
		mine.expect(t, "after the endpoint's end", down)
		far.expect(t, "after the endpoint's end", down)
		observer.expect(t, "after the endpoint's end", down)

		if err := web.Close(a.ManagerURL(), got); err != nil {
			t.Fatal(err)
		}
		mine.expect(t, "after Close", deleted)
		far.expect(t, "after Close", deleted)
		observer.expect(t, "after Close", deleted)
		theirs.expect(t, "all the time")
		elsewhere.expect(t, "all the time")
		Pass(time.Minute) // the endpoint's registration ends
		m.CheckEmpty()
	})
}

// Nobody is shown a token, wherever they look.
func TestMonitorShowsNoTokens(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", true)
		for _, url := range r.hops() {
			for _, name := range []string{"web", "observer"} {
				s := m.Stranger(name)
				s.reach(t, r.e)
				w := s.Watch(url, nil)
				Pass(3 * time.Minute) // a refresh
				seen := 0
				for _, e := range w.Take() {
					for _, c := range e.GetConnections() {
						seen++
						for _, s := range c.GetPath().GetPathSegments() {
							if s.GetToken() != "" {
								t.Fatalf("%s shows %s a token of %s", url, name, s.GetName())
							}
						}
					}
				}
				if seen < 2 {
					t.Errorf("%s shows %s %d connections, want the first state and a refresh", url, name, seen)
				}
			}
		}
	})
}

// A watcher that does not read delays nobody, and hears what is true in the end.
func TestSlowMonitor(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		a.Serve(Service{Name: "db"})
		stream, err := networkservice.NewMonitorConnectionClient(m.Stranger("observer").Dial(a.ManagerURL())).MonitorConnections(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		c := a.Client("web")
		start := time.Now()
		for range 100 {
			c.Close(c.Connect("kernel://db/nsm-1"))
		}
		w := c.Connect("kernel://db/nsm-1")
		if d := time.Since(start); d != 0 {
			t.Errorf("100 wires took %v with a watcher that does not read", d)
		}
		last := make(map[string]networkservice.ConnectionEventType)
		for last[w.Connection().GetPath().GetPathSegments()[1].GetId()] != networkservice.ConnectionEventType_UPDATE {
			e, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for id := range e.GetConnections() {
				last[id] = e.GetType()
			}
			Settle()
		}
		c.Close(w)
	})
}

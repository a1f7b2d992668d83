// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	api "github.com/networkservicemesh/api/pkg/api/registry"
)

func (s suite) testWatch(t *testing.T) {
	store := s.endpoints(t)
	empty := watchEndpoints(t, store, &api.NetworkServiceEndpoint{Name: "nobody"})
	defer empty.w.Close()
	empty.next() // at once, though there is nothing
	if len(empty.state) != 0 {
		t.Errorf("snapshot of nothing: %v", names(empty.state))
	}

	put(t, store, endpoint("a", "x"))
	put(t, store, endpoint("b", "y"))
	template := &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"x"}}
	v := watchEndpoints(t, store, template)
	defer v.w.Close()
	v.next()
	if got := strings.Join(names(v.state), " "); got != "a" {
		t.Errorf("snapshot: %q, want a", got)
	}

	type told struct {
		Object  *api.NetworkServiceEndpoint
		Deleted bool
	}
	// Each step ends with the creation of an endpoint that matches, so that
	// the absence of other events shows.
	for i, step := range []struct {
		name string
		do   func()
		want []told
	}{
		{"what does not match is not told", func() { put(t, store, endpoint("c", "y")); remove(t, store, "b") }, nil},
		{"a change", func() { put(t, store, endpoint("a", "x", "y")) },
			[]told{{Object: endpoint("a", "x", "y")}}},
		{"a renewal without a change", func() { put(t, store, endpoint("a", "x", "y")) },
			[]told{{Object: endpoint("a", "x", "y")}}},
		{"starting to match", func() { put(t, store, endpoint("c", "x")) },
			[]told{{Object: endpoint("c", "x")}}},
		{"ceasing to match is not told", func() { put(t, store, endpoint("c", "y")) }, nil},
		{"nor is the end of what does not match", func() { remove(t, store, "c") }, nil},
		{"deletion has the last object", func() { remove(t, store, "a") },
			[]told{{Object: endpoint("a", "x", "y"), Deleted: true}}},
		{"deleting it again is nothing", func() { remove(t, store, "a") }, nil},
	} {
		step.do()
		marker := endpoint(fmt.Sprintf("marker-%d", i), "x")
		put(t, store, marker)
		want := append(step.want, told{Object: marker})
		var got []told
		for len(got) == 0 || got[len(got)-1].Object.GetName() != marker.GetName() {
			events, err := v.w.Next(t.Context())
			if err != nil {
				t.Fatalf("%s: Next: %v", step.name, err)
			}
			for _, e := range events {
				checkStored(t, e.Stored)
				got = append(got, told{e.Object, e.Deleted})
			}
		}
		if d := diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, d)
		}
	}
}

// testSlowWatcher: one watcher does not read while much changes. The writer
// and another watcher do not notice, and in the end it has missed nothing that
// still matters.
func (s suite) testSlowWatcher(t *testing.T) {
	store := s.endpoints(t)
	const objects, rounds = 20, 50
	put(t, store, endpoint("doomed", "s"))
	slow, quick := watchEndpoints(t, store, nil), watchEndpoints(t, store, nil)
	defer slow.w.Close()
	defer quick.w.Close()
	slow.next()
	quick.next()

	want := make(map[string]*api.NetworkServiceEndpoint)
	for round := range rounds {
		for i := range objects {
			nse := endpoint(fmt.Sprintf("e%d", i), "s")
			nse.Url = url(round)
			want[nse.Name] = nse
			put(t, store, nse)
		}
		last := fmt.Sprintf("e%d", objects-1)
		quick.until("the round", func() bool { return quick.state[last].GetUrl() == url(round) })
	}
	remove(t, store, "doomed")
	remove(t, store, "e0")
	delete(want, "e0")
	put(t, store, endpoint("end"))
	want["end"] = endpoint("end")
	slow.until("the end", func() bool { return slow.state["end"] != nil })
	if d := diffEndpoints(want, slow.state); d != "" {
		t.Errorf("the slow watcher (-want +got):\n%s", d)
	}
}

// testWatchMissesNothing opens watchers while others write: between snapshot
// and changes there is no gap.
func (s suite) testWatchMissesNothing(t *testing.T) {
	store := s.endpoints(t)
	const writers, rounds, watchers = 4, 50, 10
	var writing, watching sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for i := range rounds {
				put(t, store, endpoint(fmt.Sprintf("w%d-%d", w, i), "s"))
				if i%3 == 0 {
					remove(t, store, fmt.Sprintf("w%d-%d", w, i/2))
				}
			}
		})
	}
	views := make([]*view, watchers)
	for i := range views {
		views[i] = watchEndpoints(t, store, nil)
		defer views[i].w.Close()
	}
	writing.Wait()
	want := found(t, store, nil)
	put(t, store, endpoint("end"))
	for _, v := range views {
		watching.Go(func() {
			for v.state["end"] == nil {
				events, err := v.w.Next(t.Context())
				if err != nil {
					t.Errorf("Next: %v", err)
					return
				}
				v.apply(events)
			}
			delete(v.state, "end")
			if d := diff(names(want), names(v.state)); d != "" {
				t.Errorf("a watcher (-want +got):\n%s", d)
			}
		})
	}
	watching.Wait()
}

// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/openvwire/nsm/sdk/query"
)

// TestDeadlines compares deadlines with a map that is searched.
func TestDeadlines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Unix(1e9, 0)
		now := start
		d, model := newDeadlines(), make(map[string]time.Time)
		name := rapid.StringMatching(`[a-f]`)
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				n, at := name.Draw(t, "name"), now.Add(time.Duration(rapid.IntRange(-2, 20).Draw(t, "in"))*time.Second)
				d.set(n, at)
				model[n] = at
			},
			"never": func(t *rapid.T) {
				n := name.Draw(t, "name")
				d.set(n, time.Time{})
				delete(model, n)
			},
			"remove": func(t *rapid.T) {
				n := name.Draw(t, "name")
				d.remove(n)
				delete(model, n)
			},
			"pass": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 10).Draw(t, "seconds")) * time.Second)
				var want []string
				for n, at := range model {
					if !at.After(now) {
						want = append(want, n)
						delete(model, n)
					}
				}
				got := d.due(now)
				slices.Sort(want)
				slices.Sort(got)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("due (-want +got):\n%s", diff)
				}
			},
			"": func(t *rapid.T) {
				var want time.Time
				for _, at := range model {
					want = query.Earlier(want, at)
				}
				if got, ok := d.next(); !got.Equal(want) || ok != (len(model) > 0) || len(d.queue) != len(model) {
					t.Fatalf("next = %s, %t of %d; want %s of %d", got, ok, len(d.queue), want, len(model))
				}
			},
		})
	})
}

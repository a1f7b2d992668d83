// SPDX-License-Identifier: Apache-2.0

package watch_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/watch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type (
	intMap = watch.Map[string, int]
	change = watch.Change[string, int]
)

// poll returns what r gets without waiting; nil if it would have to wait.
func poll(t testing.TB, r *watch.Reader[string, int]) []change {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	changes, err := r.Next(ctx)
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatalf("Next: %v", err)
	}
	return changes
}

func TestReaders(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(*intMap)
		follow bool // take the reader with Follow
		then   func(*intMap)
		first  []change
		second []change
	}{
		{
			name:   "everything first, even nothing",
			before: func(*intMap) {},
			then:   func(*intMap) {},
			first:  []change{},
		}, {
			name:   "in the order of the revisions",
			before: func(m *intMap) { m.Put("a", 1); m.Put("b", 2); m.Put("a", 3) },
			then:   func(m *intMap) { m.Put("c", 4); m.Put("b", 5) },
			first:  []change{{Key: "b", Value: 2, Revision: 2}, {Key: "a", Value: 3, Revision: 3}},
			second: []change{{Key: "c", Value: 4, Revision: 4}, {Key: "b", Value: 5, Revision: 5}},
		}, {
			name:   "what was deleted before is not told",
			before: func(m *intMap) { m.Put("a", 1); m.Delete("a"); m.Put("b", 2) },
			then:   func(*intMap) {},
			first:  []change{{Key: "b", Value: 2, Revision: 3}},
		}, {
			name:   "a tombstone has the last value",
			before: func(m *intMap) { m.Put("a", 1) },
			then:   func(m *intMap) { m.Put("a", 2); m.Delete("a") },
			first:  []change{{Key: "a", Value: 1, Revision: 1}},
			second: []change{{Key: "a", Value: 2, Deleted: true, Revision: 3}},
		}, {
			name:   "changes of a key merge",
			before: func(m *intMap) { m.Put("a", 1) },
			then:   func(m *intMap) { m.Put("a", 2); m.Delete("a"); m.Put("a", 3); m.Put("a", 4) },
			first:  []change{{Key: "a", Value: 1, Revision: 1}},
			second: []change{{Key: "a", Value: 4, Revision: 5}},
		}, {
			name:   "what came and went is told as deleted",
			before: func(m *intMap) { m.Put("a", 1) },
			then:   func(m *intMap) { m.Put("b", 2); m.Delete("b") },
			first:  []change{{Key: "a", Value: 1, Revision: 1}},
			second: []change{{Key: "b", Value: 2, Deleted: true, Revision: 3}},
		}, {
			name:   "died, lived and died again: still told",
			before: func(m *intMap) { m.Put("a", 1) },
			then:   func(m *intMap) { m.Delete("a"); m.Put("a", 2); m.Delete("a") },
			first:  []change{{Key: "a", Value: 1, Revision: 1}},
			second: []change{{Key: "a", Value: 2, Deleted: true, Revision: 4}},
		}, {
			name:   "a follower gets no first picture",
			before: func(m *intMap) { m.Put("a", 1); m.Put("b", 1) },
			follow: true,
			then:   func(m *intMap) { m.Delete("a"); m.Put("c", 1) },
			second: []change{{Key: "a", Value: 1, Deleted: true, Revision: 3}, {Key: "c", Value: 1, Revision: 4}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := watch.New[string, int]()
			tt.before(m)
			r := m.Reader()
			if tt.follow {
				r = m.Follow()
			}
			defer r.Close()
			if diff := cmp.Diff(tt.first, poll(t, r)); diff != "" {
				t.Errorf("first (-want +got):\n%s", diff)
			}
			tt.then(m)
			if diff := cmp.Diff(tt.second, poll(t, r)); diff != "" {
				t.Errorf("second (-want +got):\n%s", diff)
			}
			if again := poll(t, r); again != nil {
				t.Errorf("third: %v", again)
			}
		})
	}
}

// A reader of changes only is told of no Touch, and yet has the latest value of what it
// is told. Nor does a Touch wake it.
func TestTouch(t *testing.T) {
	for name, of := range map[string]func(*intMap) *watch.Reader[string, int]{
		"everything": (*intMap).Reader,
		"a topic":    func(m *intMap) *watch.Reader[string, int] { return m.ReaderOf("even") },
	} {
		for _, tt := range []struct {
			name        string
			then        func(*intMap)
			all, sparse []change
		}{
			{"a touch", func(m *intMap) { m.Touch("a", 4) }, []change{{Key: "a", Value: 4, Revision: 3}}, nil},
			{"a touch of the latest", func(m *intMap) { m.Touch("b", 10) }, []change{{Key: "b", Value: 10, Revision: 3}}, nil},
			{"a change, then a touch", func(m *intMap) { m.Put("a", 4); m.Touch("a", 6) },
				[]change{{Key: "a", Value: 6, Revision: 4}}, []change{{Key: "a", Value: 6, Revision: 4}}},
			{"a touch and a change of another", func(m *intMap) { m.Touch("a", 4); m.Put("b", 8) },
				[]change{{Key: "a", Value: 4, Revision: 3}, {Key: "b", Value: 8, Revision: 4}}, []change{{Key: "b", Value: 8, Revision: 4}}},
			{"a touch of what is new", func(m *intMap) { m.Touch("c", 4) },
				[]change{{Key: "c", Value: 4, Revision: 3}}, []change{{Key: "c", Value: 4, Revision: 3}}},
			{"a touch of what was deleted", func(m *intMap) { m.Delete("a"); m.Touch("a", 4) },
				[]change{{Key: "a", Value: 4, Revision: 4}}, []change{{Key: "a", Value: 4, Revision: 4}}},
			{"a touch that is about something else, too", func(m *intMap) { m.Touch("a", 6) },
				[]change{{Key: "a", Value: 6, Revision: 3}}, []change{{Key: "a", Value: 6, Revision: 3}}},
			{"a touched one goes", func(m *intMap) { m.Touch("a", 4); m.Delete("a") },
				[]change{{Key: "a", Value: 4, Deleted: true, Revision: 4}}, []change{{Key: "a", Value: 4, Deleted: true, Revision: 4}}},
		} {
			t.Run(name+", "+tt.name, func(t *testing.T) {
				m := watch.NewWithTopics[string](topicsOf)
				m.Put("a", 2)
				m.Put("b", 4)
				all, sparse := of(m), of(m).ChangesOnly()
				defer all.Close()
				defer sparse.Close()
				poll(t, all)
				poll(t, sparse)
				poll(t, sparse) // waits, until somebody gives up
				tt.then(m)
				if waits := m.Waiting() == 1; waits != (tt.sparse == nil) {
					t.Errorf("the reader of changes only waits: %v", waits)
				}
				if diff := cmp.Diff(tt.all, poll(t, all)); diff != "" {
					t.Errorf("all (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(tt.sparse, poll(t, sparse)); diff != "" {
					t.Errorf("changes only (-want +got):\n%s", diff)
				}
				if again := poll(t, sparse); again != nil {
					t.Errorf("changes only, again: %v", again)
				}
			})
		}
	}
}

func TestMapAsMap(t *testing.T) {
	m := watch.New[string, int]()
	if rev := m.Delete("a"); rev != 0 {
		t.Errorf("deleting nothing is revision %d", rev)
	}
	if rev := m.Put("a", 1); rev != 1 {
		t.Errorf("first change is revision %d", rev)
	}
	m.Put("b", 2)
	if v, ok := m.Get("a"); v != 1 || !ok {
		t.Errorf("Get(a) = %d, %t", v, ok)
	}
	if rev := m.Delete("a"); rev != 3 {
		t.Errorf("third change is revision %d", rev)
	}
	if v, ok := m.Get("a"); v != 0 || ok {
		t.Errorf("Get of a deleted key = %d, %t", v, ok)
	}
	for range m.All() {
		m.Put("c", 3) // the map may change meanwhile
	}
	if diff := cmp.Diff(map[string]int{"b": 2, "c": 3}, maps.Collect(m.All())); diff != "" || m.Len() != 2 {
		t.Errorf("Len %d, All (-want +got):\n%s", m.Len(), diff)
	}
}

func TestNextWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := watch.New[string, int]()
		r := m.Reader()
		defer r.Close()
		poll(t, r)

		time.AfterFunc(time.Hour, func() { m.Put("a", 1) })
		start := time.Now()
		changes, err := r.Next(t.Context())
		if err != nil || len(changes) != 1 || time.Since(start) != time.Hour {
			t.Errorf("Next = %v, %v after %s", changes, err, time.Since(start))
		}

		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Hour, func() { cancel(gone) })
		if _, err := r.Next(ctx); err != gone {
			t.Errorf("Next = %v, want the cause", err)
		}
		r.Close()
		if _, err := r.Next(t.Context()); !errors.Is(err, nserr.Stopping) {
			t.Errorf("Next after Close = %v", err)
		}
	})
}

// A reader of a topic that waits costs nothing while others change: it is not woken, and
// nothing is kept for it.
func TestOtherTopicsCostNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := watch.NewWithTopics[string](topicsOf)
		r := m.ReaderOf("odd")
		defer r.Close()
		poll(t, r)
		var told []watch.Change[string, int]
		done := make(chan error)
		go func() {
			changes, err := r.Next(t.Context())
			told = changes
			done <- err
		}()
		synctest.Wait()
		for i := range 1000 {
			key := fmt.Sprint(i)
			m.Put(key, 2*i)
			m.Delete(key)
		}
		if kept := m.Kept(); kept != 0 {
			t.Errorf("%d tombstones are kept, which nobody will read", kept)
		}
		m.Put("a", 1)
		m.Delete("a")
		if err := <-done; err != nil || len(told) != 1 || told[0].Value != 1 {
			t.Errorf("Next = %v, %v; want the one odd value", told, err)
		}
	})
}

// TestSleeper: a reader that does not read costs a bounded number of
// tombstones, delays nobody, and is told when it has missed something.
func TestSleeper(t *testing.T) {
	const many = 1<<16 + 10
	m := watch.New[string, int]()
	asleep, awake := m.Follow(), m.Follow()
	defer asleep.Close()
	defer awake.Close()
	seen := 0
	for i := range many {
		key := fmt.Sprint(i)
		m.Put(key, i)
		seen += len(poll(t, awake))
		m.Delete(key)
		seen += len(poll(t, awake))
	}
	if seen != 2*many {
		t.Errorf("the one that is awake saw %d of %d changes", seen, 2*many)
	}
	if _, err := asleep.Next(t.Context()); !errors.Is(err, nserr.WatchLost) {
		t.Errorf("the sleeper gets %v, want nserr.WatchLost", err)
	}
	fresh := m.Reader()
	defer fresh.Close()
	if changes := poll(t, fresh); changes == nil || len(changes) != 0 {
		t.Errorf("a new reader gets %v, want everything, which is nothing", changes)
	}
}

// What a new reader of a topic costs does not depend on what others are about: nobody asks.
func TestReaderOfTopicLooksAtNoOthers(t *testing.T) {
	asked := 0
	m := watch.NewWithTopics[string](func(v int) []string { asked++; return topicsOf(v) })
	for i := range 1000 {
		m.Put(fmt.Sprint(i), 2)
	}
	m.Put("odd", 1)
	m.Put("odd, and gone", 1)
	m.Delete("odd, and gone")
	asked = 0
	r := m.ReaderOf("odd")
	defer r.Close()
	got, err := r.Next(t.Context())
	if err != nil || len(got) != 1 || got[0].Key != "odd" || asked > 0 {
		t.Errorf("%v, %v, after asking what %d values are about", got, err, asked)
	}
}

// topicsOf has two topics for some values.
func topicsOf(v int) []string {
	topics := []string{[]string{"even", "odd"}[v%2]}
	if v%3 == 0 {
		topics = append(topics, "three")
	}
	return topics
}

// kindOf are the topics of v.
func kindOf(v int) string { return fmt.Sprint(topicsOf(v)) }

// TestProperties compares readers of every kind with a plain map: whoever
// applies what it is told has the state.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, model := watch.NewWithTopics[string](topicsOf), make(map[string]int)
		gone := make(map[string]int)   // the last value of what is deleted
		counts := make(map[string]int) // of changes of each key but touches
		type follower struct {
			r     *watch.Reader[string, int]
			topic string // "" = everything
			view  map[string]int
			rev   uint64
			seen  map[string]int // changes of each key; nil unless it is for changes only
		}
		var followers []*follower
		catchUp := func(f *follower) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			changes, err := f.r.Next(ctx)
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Fatalf("Next: %v", err)
			}
			told := make(map[string]bool)
			for _, c := range changes {
				if f.seen != nil && f.seen[c.Key] == counts[c.Key] {
					t.Fatalf("a reader of changes only is told %v", c)
				}
				if c.Revision <= f.rev || told[c.Key] {
					t.Fatalf("%v after revision %d", c, f.rev)
				}
				f.rev, told[c.Key] = c.Revision, true
				if c.Deleted {
					if c.Value == 0 {
						t.Fatalf("%v without its value", c)
					}
					delete(f.view, c.Key)
				} else {
					f.view[c.Key] = c.Value
				}
				if f.topic != "" && !slices.Contains(topicsOf(c.Value), f.topic) {
					t.Fatalf("a reader of %s is told %v", f.topic, c)
				}
			}
			if f.topic != "" {
				for k := range f.view { // what has turned to other topics it is not told
					v, known := model[k]
					if !known {
						v = gone[k]
					}
					if !slices.Contains(topicsOf(v), f.topic) {
						delete(f.view, k)
					}
				}
			}
			if f.seen != nil {
				f.seen = maps.Clone(counts)
				for k, v := range f.view { // a touch it is not told
					if now, ok := model[k]; ok && kindOf(now) == kindOf(v) {
						f.view[k] = now
					}
				}
			}
			want := maps.Clone(model)
			maps.DeleteFunc(want, func(_ string, v int) bool {
				return f.topic != "" && !slices.Contains(topicsOf(v), f.topic)
			})
			if diff := cmp.Diff(want, f.view); diff != "" {
				t.Fatalf("reader (-state +view):\n%s", diff)
			}
		}
		key := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				k, v := key.Draw(t, "key"), rapid.IntRange(1, 9).Draw(t, "value")
				model[k] = v
				counts[k]++
				m.Put(k, v)
			},
			"touch": func(t *rapid.T) {
				k := key.Draw(t, "key")
				was, known := model[k]
				if !known || kindOf(was) != kindOf(was+6) {
					counts[k]++
				}
				model[k] = was + 6
				m.Touch(k, was+6)
			},
			"delete": func(t *rapid.T) {
				k := key.Draw(t, "key")
				_, known := model[k]
				if known {
					gone[k] = model[k]
					counts[k]++
				}
				delete(model, k)
				if rev := m.Delete(k); (rev != 0) != known {
					t.Fatalf("Delete = %d, known %t", rev, known)
				}
			},
			"reader": func(t *rapid.T) {
				followers = append(followers, &follower{r: m.Reader(), view: map[string]int{}})
			},
			"reader of a topic": func(t *rapid.T) {
				topic := rapid.SampledFrom([]string{"even", "odd", "three"}).Draw(t, "topic")
				followers = append(followers, &follower{r: m.ReaderOf(topic), topic: topic, view: map[string]int{}})
			},
			"reader of changes only": func(t *rapid.T) {
				f := &follower{r: m.Reader(), view: map[string]int{}, seen: map[string]int{}}
				if f.topic = rapid.SampledFrom([]string{"", "even", "odd", "three"}).Draw(t, "topic"); f.topic != "" {
					f.r = m.ReaderOf(f.topic)
				}
				f.r.ChangesOnly()
				followers = append(followers, f)
			},
			"follow": func(t *rapid.T) {
				followers = append(followers, &follower{r: m.Follow(), view: maps.Clone(model)})
			},
			"read": func(t *rapid.T) {
				if len(followers) > 0 {
					catchUp(rapid.SampledFrom(followers).Draw(t, "reader"))
				}
			},
			"close": func(t *rapid.T) {
				if len(followers) > 0 {
					followers[0].r.Close()
					followers = followers[1:]
				}
			},
			"": func(t *rapid.T) {
				if diff := cmp.Diff(model, maps.Collect(m.All())); diff != "" || m.Len() != len(model) {
					t.Fatalf("Len %d, All (-want +got):\n%s", m.Len(), diff)
				}
			},
		})
		for _, f := range followers {
			catchUp(f)
			f.r.Close()
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	m := watch.New[int, int]()
	const writers, readers, rounds = 4, 8, 500
	var wg sync.WaitGroup
	for range readers {
		r := m.Reader()
		wg.Go(func() {
			defer r.Close()
			view := make(map[int]int)
			for len(view) < writers || view[-1] != 1 {
				changes, err := r.Next(t.Context())
				if err != nil {
					t.Errorf("Next: %v", err)
					return
				}
				for _, c := range changes {
					if c.Deleted {
						delete(view, c.Key)
					} else {
						view[c.Key] = c.Value
					}
				}
			}
		})
	}
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for i := range rounds {
				m.Put(w, i)
				m.Delete(w)
			}
			m.Put(w, rounds)
		})
	}
	writing.Wait()
	m.Put(-1, 1)
	wg.Wait()
}

// BenchmarkPutForOthers is a change while 1,000 readers wait for something else.
func BenchmarkPutForOthers(b *testing.B) {
	m := watch.NewWithTopics[int](func(v int) []string { return []string{"a", "b", "c", "d", "e"} })
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	for i := range 1000 {
		r := m.ReaderOf(fmt.Sprint(i))
		defer r.Close()
		_, _ = r.Next(gone)
		_, _ = r.Next(gone) // it has given up waiting, but waits as far as the map knows
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		m.Put(i%10_000, i)
	}
}

func BenchmarkPut(b *testing.B) {
	for _, readers := range []int{0, 1, 1000} {
		b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) {
			m := watch.New[int, int]()
			for i := range 10_000 {
				m.Put(i, i)
			}
			for range readers {
				defer m.Follow().Close()
			}
			b.ReportAllocs()
			for i := range b.N {
				m.Put(i%10_000, i)
			}
		})
	}
}

// BenchmarkFanOut is one change and 1,000 waiting readers that all get it.
func BenchmarkFanOut(b *testing.B) {
	const readers = 1000
	m := watch.New[int, int]()
	var told, done sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	for range readers {
		r := m.Follow()
		done.Go(func() {
			defer r.Close()
			for {
				if _, err := r.Next(ctx); err != nil {
					return
				}
				told.Done()
			}
		})
	}
	b.ReportAllocs()
	for i := range b.N {
		told.Add(readers)
		m.Put(i%10, i)
		told.Wait()
	}
	cancel()
	done.Wait()
}

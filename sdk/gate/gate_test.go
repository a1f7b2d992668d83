// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/openvwire/nsm/sdk/nserr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// enter has somebody enter g.
func enter(ctx context.Context, g *Gate, class Class, caller, of string) (leave func(), err error) {
	return g.Enter(ctx, caller, func() Visit { return Visit{class, of} })
}

// full returns a gate with all places taken, and what gives one back.
func full(t *testing.T, limit int) (g *Gate, leave []func()) {
	t.Helper()
	g = New(limit)
	for range limit {
		l, err := g.Enter(t.Context(), "x", func() Visit { t.Error("asked who it is though there is a place"); return Visit{} })
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	return g, leave
}

// Those who wait are let in by class, and within a class by turns of the callers.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, leave := full(t, 1)
		var in []string
		var entering sync.WaitGroup
		for _, v := range []struct {
			class  Class
			caller string
		}{
			{Fresh, "a"}, {Fresh, "a"}, {Fresh, "a"}, {Fresh, "b"}, {Transit, "m"}, {Fresh, "a"}, {Refresh, "a"}, {Fresh, "c"}, {Transit, "m"}, {Refresh, "b"},
		} {
			entering.Go(func() {
				of := fmt.Sprint(v.class, v.caller)
				l, err := enter(t.Context(), g, v.class, v.caller, of)
				if err != nil {
					t.Error(err)
					return
				}
				in = append(in, of)
				l()
			})
			synctest.Wait()
		}
		leave[0]()
		entering.Wait()
		if want := []string{"0a", "0b", "1m", "1m", "2a", "2b", "2c", "2a", "2a", "2a"}; !slices.Equal(in, want) {
			t.Errorf("let in %v, want %v", in, want)
		}
		empty(t, g)
	})
}

// empty fails the test unless nobody is inside or waits.
func empty(t *testing.T, g *Gate) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside != 0 || g.slow != 0 || len(g.of) != 0 || len(g.known) != 0 {
		t.Errorf("%d inside, %d for long, %v of each caller, %d refreshes wait", g.inside, g.slow, g.of, len(g.known))
	}
	for class, q := range g.waiting {
		if q.len != 0 || len(q.lines) != 0 || len(q.of) != 0 {
			t.Errorf("class %d: %d wait in %d lines of %d callers", class, q.len, len(q.lines), len(q.of))
		}
	}
}

// Who would wait for too long is refused, and told when to try again; a refresh is not.
func TestPatience(t *testing.T) {
	for _, tt := range []struct {
		class Class
		waits time.Duration // until it is refused; 0 = it is let in in the end
	}{{Fresh, patience[Fresh]}, {Transit, patience[Transit]}, {Refresh, 0}} {
		synctest.Test(t, func(t *testing.T) {
			g := New(1)
			var before sync.WaitGroup
			for i := range queued { // come first, and take longer than anybody waits who does not want to
				before.Go(func() {
					leave, err := enter(t.Context(), g, tt.class, "a", fmt.Sprint(i))
					if err != nil {
						return
					}
					time.Sleep(hold * 9 / 10)
					leave()
				})
				synctest.Wait()
			}
			start := time.Now()
			leave, err := enter(t.Context(), g, tt.class, "a", "a")
			took := time.Since(start)
			if tt.waits == 0 {
				if err != nil || took < queued*hold*9/10 {
					t.Fatalf("%v after %v", err, took)
				}
				leave()
			} else if e := nserr.From(err); !errors.Is(err, nserr.Busy) || e.Retry != retry || took != tt.waits {
				t.Errorf("class %d: %v after %v, to be tried again after %v", tt.class, err, took, e.Retry)
			}
			before.Wait()
			empty(t, g)
		})
	}
}

// Refreshes without end, of a caller who has many connections, keep nobody out, and what
// other hops have let in does not either.
func TestEachClassHasItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(1)
		const work = time.Millisecond
		var coming sync.WaitGroup
		stop := make(chan struct{})
		for class := range Class(classes) {
			for i := range 4 { // one works, and the others wait
				coming.Go(func() {
					for {
						leave, err := enter(t.Context(), g, class, "many", fmt.Sprint(i))
						if err == nil {
							time.Sleep(work)
							leave()
						}
						select {
						case <-stop:
							return
						default:
						}
					}
				})
			}
		}
		time.Sleep(100 * work)
		for class := range Class(classes) {
			start := time.Now()
			leave, err := enter(t.Context(), g, class, "few", "few")
			if took := time.Since(start); err != nil || took > 3*share*work {
				t.Errorf("class %d: %v after %v", class, err, took)
			}
			if err == nil {
				leave()
			}
		}
		close(stop)
		coming.Wait()
		empty(t, g)
	})
}

// Callers whose work never ends, since nobody answers them, do not use up what there is,
// however many times each of them comes.
func TestHogs(t *testing.T) {
	for class := range Class(classes) {
		for _, hogs := range []int{1, 5} {
			synctest.Test(t, func(t *testing.T) {
				const limit = 4
				g := New(limit)
				ctx, end := context.WithCancel(t.Context())
				var coming sync.WaitGroup
				for i := range 2 * slowest * limit {
					coming.Go(func() {
						for ctx.Err() == nil {
							leave, err := enter(ctx, g, class, fmt.Sprint("hog ", i%hogs), fmt.Sprint(i))
							if err != nil {
								time.Sleep(retry)
								continue
							}
							<-ctx.Done()
							leave()
						}
					})
				}
				time.Sleep(10 * slowest * hold)
				start := time.Now()
				leave, err := enter(t.Context(), g, Fresh, "other", "other")
				if err != nil {
					t.Errorf("class %d, %d hogs: %v after %v", class, hogs, err, time.Since(start))
				} else {
					leave()
				}
				end()
				coming.Wait()
				empty(t, g)
			})
		}
	}
}

// Who leaves when the time of a place ends gives it back once.
func TestLeavesAtTheLastMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(100)
		var coming sync.WaitGroup
		for range 100 {
			coming.Go(func() {
				leave, err := enter(t.Context(), g, Refresh, "a", "")
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(hold)
				leave()
			})
		}
		coming.Wait()
		synctest.Wait()
		empty(t, g)
	})
}

// Who takes long waits for somebody else, and does not keep others out.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, slow := full(t, 3)
		start := time.Now()
		leave, err := enter(t.Context(), g, Transit, "a", "")
		if err != nil || time.Since(start) != hold {
			t.Fatalf("%v after %v, want to be let in after %v", err, time.Since(start), hold)
		}
		for _, l := range slow { // gives back nothing that has gone already
			l()
		}
		leave()
		leave()
		empty(t, g)
	})
}

// Who takes long is not let go of without end: then whoever is new is refused.
func TestAllSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, leave := full(t, 1)
		for len(leave) <= slowest {
			l, err := enter(t.Context(), g, Transit, fmt.Sprint(len(leave)), "")
			if err != nil {
				t.Fatalf("after %d: %v", len(leave), err)
			}
			leave = append(leave, l)
		}
		if _, err := enter(t.Context(), g, Transit, "a", ""); !errors.Is(err, nserr.Busy) {
			t.Errorf("after %d: %v", len(leave), err)
		}
		time.Sleep(2 * hold) // the last timer, in vain
		for _, l := range leave {
			l()
		}
		empty(t, g)
	})
}

// A queue that is full drops the last one of whoever has the most in it.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, leave := full(t, 1)
		var mu sync.Mutex
		refused := make(map[string]int)
		var entering sync.WaitGroup
		come := func(class Class, caller, of string) {
			entering.Go(func() {
				l, err := enter(t.Context(), g, class, caller, of)
				if err == nil {
					l()
					return
				}
				if !errors.Is(err, nserr.Busy) || nserr.From(err).Retry == 0 {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				refused[caller]++
			})
			synctest.Wait()
		}
		for range queued {
			come(Fresh, "many", "")
		}
		come(Fresh, "few", "")
		come(Fresh, "few", "")
		if refused["many"] != 2 || refused["few"] != 0 {
			t.Errorf("refused %v, want 2 of many", refused)
		}
		// Refreshes are never too many, unless they are the same again and again.
		for i := range 2 * queued {
			come(Refresh, "many", fmt.Sprint(i))
		}
		if refused["many"] != 2 {
			t.Errorf("%d refreshes refused", refused["many"]-2)
		}
		for range queued {
			come(Refresh, "liar", "1")
		}
		leave[0]()
		entering.Wait()
		if refused["few"] != 0 || refused["liar"]+refused["many"] < queued {
			t.Errorf("refused %v: the same refresh once more is nothing special", refused)
		}
		empty(t, g)
	})
}

// Who gives up leaves the queue.
func TestGivenUp(t *testing.T) {
	for _, class := range []Class{Refresh, Transit, Fresh} {
		synctest.Test(t, func(t *testing.T) {
			g, leave := full(t, 1)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, err := enter(ctx, g, class, "a", ""); !errors.Is(err, nserr.TimedOut) {
				t.Errorf("class %d: %v", class, err)
			}
			leave[0]()
			empty(t, g)
		})
	}
}

// However many come and go, in whatever way, no place is lost and none is made.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 4
		g := New(limit)
		var coming sync.WaitGroup
		var mu sync.Mutex
		inside, most := 0, 0
		for i := range 2000 {
			coming.Go(func() {
				time.Sleep(time.Duration(i%700) * time.Millisecond)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+i%13)*100*time.Millisecond)
				defer cancel()
				leave, err := enter(ctx, g, Class(i%classes), fmt.Sprint(i%17), fmt.Sprint(i))
				if err != nil {
					return
				}
				mu.Lock()
				inside++
				most = max(most, inside)
				mu.Unlock()
				time.Sleep(time.Duration(i%40) * time.Millisecond) // all shorter than hold
				mu.Lock()
				inside--
				mu.Unlock()
				leave()
			})
		}
		coming.Wait()
		if most != limit {
			t.Errorf("%d were inside at once, want %d", most, limit)
		}
		empty(t, g)
	})
}

// SPDX-License-Identifier: Apache-2.0

// Package gate stands before the work of a server. It lets in as much at a time as
// the machine can do, has the rest wait in bounded queues, and refuses what would wait
// longer than is of use: work that nobody waits for any more is what makes a server
// collapse under load.
//
//	leave, err := g.Enter(ctx, caller, func() gate.Visit { … })
//	if err != nil {
//		return err // nserr.Busy, and when to try again
//	}
//	defer leave()
//
// Who waits is let in by class, what is under way already before what is new, and
// within a class by turns of the callers, so that one with ten thousand Requests
// delays another by one of them. No class waits for ever: after [share] of those before
// it one of its own is let in, so that who refreshes without end keeps nobody out.
//
// A place is held while the work is done, but for [hold] at most: who takes longer waits
// for somebody else, an endpoint or the next hop, and needs no processor. So hops that
// call each other in a circle, each with a gate, cannot block each other, and a slow
// endpoint does not keep a node from others. Those who take longer are bounded, too, and
// each caller has at most half as many under way as others could still have: so one whose
// endpoint never answers does not use them up, nor do a few.
package gate

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Class is how urgent a visit is.
type Class int

const (
	// Refresh keeps alive what would be lost. It is never refused.
	Refresh Class = iota
	// Transit is new, and a hop before this one has let it in.
	Transit
	// Fresh is new.
	Fresh

	classes = 3
)

// patience is how long a visit waits to be let in, by class; 0 = as long as its caller
// does. Half a second is what a client hardly notices, and short enough for a queue to
// be gone within a second after a burst.
var patience = [classes]time.Duration{Fresh: 500 * time.Millisecond, Transit: 2 * time.Second}

const (
	// perProcessor is how much is worked on at once, for each processor. Most of the time
	// of a Request is not this process's: it takes that many to keep the machine busy.
	perProcessor = 32
	// queued is how many may wait in a class that can be refused, for each that is
	// worked on.
	queued = 8
	// hold is the longest time that a place is held.
	hold = time.Second
	// slowest is how many may take longer than that, for each that is worked on. It bounds
	// what piles up on a machine that is so slow that everything takes longer.
	slowest = 16
	// share is how many of the classes before it are let in while one of a class waits.
	share = 8
	// retry is when those who are refused are to try again. Clients add some by chance.
	retry = time.Second
)

// Visit is what somebody wants to be let in for.
type Visit struct {
	Class Class
	Of    string // what a Refresh keeps alive: once at a time, any more is Fresh
}

// Gate counts who is inside. It is safe for concurrent use.
type Gate struct {
	limit int

	mu      sync.Mutex
	inside  int                 // guarded by mu
	slow    int                 // guarded by mu; who have been inside for longer than hold, and do not count there
	of      map[string]int      // guarded by mu; who are inside or slow, by caller
	waiting [classes]queue      // guarded by mu
	passed  [classes]int        // guarded by mu; how many of the classes before have been let in while one waits
	known   map[string]struct{} // guarded by mu; Visit.Of of the refreshes that wait
}

// New returns a gate for so many at a time; 0 = what suits the machine.
func New(limit int) *Gate {
	if limit <= 0 {
		limit = perProcessor * runtime.GOMAXPROCS(0)
	}
	return &Gate{limit: limit, of: make(map[string]int), known: make(map[string]struct{})}
}

// Enter waits until it is let in; leave must be called when the work is done. It fails
// with nserr.Busy, which says when to try again, or with nserr.TimedOut when ctx ends
// first. visit is asked only if there is no place at once for caller, whose turn it takes.
func (g *Gate) Enter(ctx context.Context, caller string, visit func() Visit) (leave func(), err error) {
	if g.enterAtOnce(caller) {
		return g.place(caller), nil
	}
	w := &waiter{Visit: visit(), caller: caller, in: make(chan error, 1)}
	g.mu.Lock()
	g.queueLocked(w)
	g.fillLocked() // there may be a place meanwhile
	g.mu.Unlock()

	var late <-chan time.Time
	if p := patience[w.Class]; p > 0 {
		timer := time.NewTimer(p)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case err = <-w.in:
	case <-late:
		err = g.giveUp(w, busy("it would wait for too long"))
	case <-ctx.Done():
		err = g.giveUp(w, nserr.TimedOut.Errorf("waiting to be let in: %w", context.Cause(ctx)))
	}
	if err != nil {
		return nil, err
	}
	return g.place(caller), nil
}

// enterAtOnce takes a place if there is one for caller.
func (g *Gate) enterAtOnce(caller string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside == g.limit || !g.mayLocked(caller) {
		return false
	}
	g.takeLocked(caller)
	return true
}

func (g *Gate) takeLocked(caller string) {
	g.inside++
	g.of[caller]++
}

// mayLocked reports whether caller may have one more under way: the fewer can still be
// slow, the fewer it may have.
func (g *Gate) mayLocked(caller string) bool {
	n := g.of[caller]
	return n == 0 || n < (slowest*g.limit-g.slow)/2
}

// queueLocked has w wait. If there is no room, whoever has come last of the caller with
// the most that wait is refused: w itself, or one in its place.
func (g *Gate) queueLocked(w *waiter) {
	if _, again := g.known[w.Of]; w.Class == Refresh {
		if again {
			w.Class = Fresh
		} else {
			g.known[w.Of] = struct{}{}
		}
	}
	q := &g.waiting[w.Class]
	q.add(w)
	if w.Class != Refresh && q.len > queued*g.limit {
		q.dropLast().in <- busy("too many wait already")
	}
}

// giveUp takes w out of its queue, and returns err unless the gate has decided about it
// already.
func (g *Gate) giveUp(w *waiter, err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.waiting[w.Class].remove(w) {
		return <-w.in
	}
	g.forgetLocked(w)
	return err
}

func (g *Gate) forgetLocked(w *waiter) {
	if w.Class == Refresh {
		delete(g.known, w.Of)
	}
}

// place begins the time of somebody who is inside.
func (g *Gate) place(caller string) (leave func()) {
	late, left := false, false // guarded by g.mu; late: the place has been given back, and counts as slow
	timer := time.AfterFunc(hold, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if left || g.slow >= slowest*g.limit {
			return
		}
		late = true
		g.slow++
		g.inside--
		g.fillLocked()
	})
	return sync.OnceFunc(func() {
		timer.Stop()
		g.mu.Lock()
		defer g.mu.Unlock()
		left = true // the timer may have fired already, and wait for mu
		if late {
			g.slow--
		} else {
			g.inside--
		}
		if g.of[caller]--; g.of[caller] == 0 {
			delete(g.of, caller)
		}
		g.fillLocked()
	})
}

// fillLocked gives the places that are free to those who wait.
func (g *Gate) fillLocked() {
	for g.inside < g.limit {
		w := g.nextLocked()
		if w == nil {
			return
		}
		g.forgetLocked(w)
		g.takeLocked(w.caller)
		w.in <- nil
	}
}

// nextLocked takes out whose turn it is of those who may be let in; nil if there is nobody.
func (g *Gate) nextLocked() *waiter {
	for class := classes - 1; class > 0; class-- {
		if g.passed[class] >= share {
			if w := g.firstLocked(class); w != nil {
				return w
			}
		}
	}
	for class := range g.waiting {
		if w := g.firstLocked(class); w != nil {
			return w
		}
	}
	return nil
}

// firstLocked takes out whose turn it is in a class.
func (g *Gate) firstLocked(class int) *waiter {
	w := g.waiting[class].first(g.mayLocked)
	if w == nil {
		return nil
	}
	g.passed[class] = 0
	for after := class + 1; after < classes; after++ {
		if g.passed[after]++; g.waiting[after].len == 0 {
			g.passed[after] = 0
		}
	}
	return w
}

func busy(why string) error {
	return nserr.Busy.Errorf("there is more to do than can be done: %s", why).WithRetry(retry)
}

// SPDX-License-Identifier: Apache-2.0

// Package gate stands before the work of a server. It lets in as much at a time as
// the machine can do, has the rest wait in bounded queues, and refuses what would wait
// longer than is of use: work that nobody waits for any more is what makes a server
// collapse under load.
//
//	leave, err := g.Enter(ctx, func() gate.Visit { … })
//	if err != nil {
//		return err // nserr.Busy, and when to try again
//	}
//	defer leave()
//
// Who waits is let in by class, what is under way already before what is new, and
// within a class by turns of the callers, so that one with ten thousand Requests
// delays another by one of them.
//
// A place is held while the work is done, but for [hold] at most: who takes longer waits
// for somebody else, an endpoint or the next hop, and needs no processor. So hops that
// call each other in a circle, each with a gate, cannot block each other, and a slow
// endpoint does not keep a node from others.
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
	// retry is when those who are refused are to try again. Clients add some by chance.
	retry = time.Second
)

// Visit is who wants to be let in.
type Visit struct {
	Class  Class
	Caller string // whose turn it takes
	Of     string // what a Refresh keeps alive: once at a time, any more is Fresh
}

// Gate counts who is inside. It is safe for concurrent use.
type Gate struct {
	limit int

	mu      sync.Mutex
	inside  int                 // guarded by mu
	slow    int                 // guarded by mu; who have been inside for longer than hold, and do not count there
	waiting [classes]queue      // guarded by mu
	known   map[string]struct{} // guarded by mu; Visit.Of of the refreshes that wait
}

// New returns a gate for so many at a time; 0 = what suits the machine.
func New(limit int) *Gate {
	if limit <= 0 {
		limit = perProcessor * runtime.GOMAXPROCS(0)
	}
	return &Gate{limit: limit, known: make(map[string]struct{})}
}

// Enter waits until it is let in; leave must be called when the work is done. It fails
// with nserr.Busy, which says when to try again, or with nserr.TimedOut when ctx ends
// first. visit is asked only if there is no place at once.
func (g *Gate) Enter(ctx context.Context, visit func() Visit) (leave func(), err error) {
	g.mu.Lock()
	if g.inside < g.limit {
		g.inside++
		g.mu.Unlock()
		return g.place(), nil
	}
	g.mu.Unlock()

	w := &waiter{Visit: visit(), in: make(chan error, 1)}
	g.mu.Lock()
	if g.inside < g.limit { // meanwhile
		g.inside++
		g.mu.Unlock()
		return g.place(), nil
	}
	g.queueLocked(w)
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
	return g.place(), nil
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
func (g *Gate) place() (leave func()) {
	late := false // guarded by g.mu: the place has been given back, and counts as slow
	timer := time.AfterFunc(hold, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.slow < slowest*g.limit {
			late = true
			g.slow++
			g.nextLocked()
		}
	})
	return sync.OnceFunc(func() {
		timer.Stop()
		g.mu.Lock()
		defer g.mu.Unlock()
		if late {
			g.slow--
		} else {
			g.nextLocked()
		}
	})
}

// nextLocked gives a place that is free to whoever is first, if anybody waits.
func (g *Gate) nextLocked() {
	for i := range g.waiting {
		if w := g.waiting[i].first(); w != nil {
			g.forgetLocked(w)
			w.in <- nil
			return
		}
	}
	g.inside--
}

func busy(why string) error {
	return nserr.Busy.Errorf("there is more to do than can be done: %s", why).WithRetry(retry)
}

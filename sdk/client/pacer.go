// SPDX-License-Identifier: Apache-2.0

package client

import (
	"container/heap"
	"sync"
	"time"
)

// grain is how far apart two moments must be for the pacer to wake up twice.
const grain = 10 * time.Millisecond

// pacer calls the probers of all wires of a client when they want to be called,
// from one goroutine, which runs while there are any. What is due at about the
// same time is done at once, so that a thousand wires cost few wake-ups.
type pacer struct {
	mu      sync.Mutex
	queue   agenda         // guarded by mu
	running bool           // guarded by mu
	closed  bool           // guarded by mu
	changed chan struct{}  // has room for one; something is due earlier
	all     sync.WaitGroup // the goroutine
}

// slot is a prober's place in the queue, guarded by pacer.mu.
type slot struct {
	due   time.Time
	place int // in the queue, from 1; 0 = not in it
}

func newPacer() *pacer { return &pacer{changed: make(chan struct{}, 1)} }

// wake has p called at once.
func (c *pacer) wake(p *prober) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.enterLocked(p, time.Now())
	if !c.running {
		c.running = true
		c.all.Go(c.run)
	}
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// enterLocked has p called at the given time, or earlier if it is due earlier.
func (c *pacer) enterLocked(p *prober, due time.Time) {
	switch {
	case p.place == 0:
		p.due = due
		heap.Push(&c.queue, p)
	case due.Before(p.due):
		p.due = due
		heap.Fix(&c.queue, p.place-1)
	}
}

// close ends the goroutine and waits for it.
func (c *pacer) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
	c.all.Wait()
}

func (c *pacer) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		p, wait, more := c.take()
		switch {
		case p != nil:
			if next := p.tick(time.Now()); !next.IsZero() {
				c.mu.Lock()
				c.enterLocked(p, next)
				c.mu.Unlock()
			}
			continue
		case !more:
			return
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-c.changed:
		}
	}
}

// take returns the next prober that is due, or how long to wait for it. When there
// is nothing to wait for the goroutine ends.
func (c *pacer) take() (p *prober, wait time.Duration, more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.queue) == 0 {
		c.running = false
		return nil, 0, false
	}
	if wait = time.Until(c.queue[0].due); wait < grain {
		return heap.Pop(&c.queue).(*prober), 0, true
	}
	return nil, wait, true
}

// agenda is a heap of probers by when they are due.
type agenda []*prober

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].due.Before(a[j].due) }

func (a agenda) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i+1, j+1
}

// Push implements heap.Interface.
func (a *agenda) Push(x any) {
	p := x.(*prober)
	*a = append(*a, p)
	p.place = len(*a)
}

// Pop implements heap.Interface.
func (a *agenda) Pop() any {
	last := len(*a) - 1
	p := (*a)[last]
	(*a)[last] = nil
	*a = (*a)[:last]
	p.place = 0
	return p
}

// SPDX-License-Identifier: Apache-2.0

// Package outage measures interruptions of a path as those see them who use it.
//
//	client's namespace                       endpoint's namespace, [Serve]
//	[Ping]    UDP ── seq, every 10 ms ──────▶ the same back
//	[Stream]  TCP ── 8 B, every 10 ms ──────▶ the same back
//
// Both are open loops: they send at their times whatever has come back, so that an
// interruption costs as many packets as it lasts long. A packet that comes back
// late, since the machine is busy, is none that is lost: what counts is which ones
// came back at all, and when the others were sent. Only where a sender itself was
// not run is nothing known; [Result.Blind] says for how long.
package outage

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Interval is the time between two packets or messages.
const Interval = 10 * time.Millisecond

// grace is how long the last packets may take to come back.
const grace = 2 * time.Second

// Result is what a probe has seen.
type Result struct {
	Sent int
	Lost int // never came back

	// Gap is the longest interruption. Of packets: from the sending of the first
	// one lost to that of the first one answered after it. Of a stream: the longest
	// time in which nothing came, less the interval.
	Gap time.Duration

	Resets int           // of a stream: connections lost, each followed by another
	Why    string        // the first one was
	Blind  time.Duration // longest time in which a pinger that was due sent nothing
	Open   bool          // the interruption had not ended yet
}

// record notes what was sent and what came back. Times are since start.
type record struct {
	start time.Time

	mu     sync.Mutex
	sent   []time.Duration // by sequence number; guarded by mu
	back   []time.Duration // of each; 0 = not yet; guarded by mu
	resets int             // guarded by mu
	why    string          // guarded by mu
	news   chan struct{}   // closed when the next one comes back; guarded by mu
}

func newRecord() *record { return &record{start: time.Now(), news: make(chan struct{})} }

// next notes that one is sent now, and returns its number.
func (r *record) next() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, time.Since(r.start))
	r.back = append(r.back, 0)
	return uint64(len(r.sent) - 1)
}

// answered notes that one has come back.
func (r *record) answered(seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if seq >= uint64(len(r.back)) || r.back[seq] != 0 {
		return // of an earlier measurement, or twice
	}
	r.back[seq] = time.Since(r.start)
	close(r.news)
	r.news = make(chan struct{})
}

func (r *record) reset(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.resets++; r.resets == 1 {
		r.why = err.Error()
	}
}

// Flowing waits until n of the packets that are sent from now on have come back,
// one after the other.
func (r *record) Flowing(ctx context.Context, n int) error {
	r.mu.Lock()
	from := len(r.sent)
	r.mu.Unlock()
	for {
		r.mu.Lock()
		run := 0
		for i := len(r.back) - 1; i >= from && run < n; i-- {
			if r.back[i] != 0 {
				run++
			} else if run > 0 { // the latest are under way still
				run = 0
				from = i + 1
				break
			}
		}
		news := r.news
		r.mu.Unlock()
		if run >= n {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("nothing comes back: %w", ctx.Err())
		}
	}
}

// Begin forgets what was so far.
func (r *record) Begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Numbers go on, so that late answers are taken for what they are.
	for i := range r.sent {
		r.sent[i] = -1
	}
	r.resets, r.why = 0, ""
}

// settle waits for the answers to the last packets.
func (r *record) settle() {
	limit := time.After(grace)
	for {
		r.mu.Lock()
		done := len(r.back) == 0 || r.back[len(r.back)-1] != 0
		news := r.news
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-news:
		case <-limit:
			return
		}
	}
}

// packets evaluates what a ping has noted.
func (r *record) packets() Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	var res Result
	begun, last := time.Duration(-1), time.Duration(-1) // of an interruption; of what was sent last
	for i, at := range r.sent {
		if at < 0 {
			continue
		}
		res.Sent++
		if last >= 0 {
			res.Blind = max(res.Blind, at-last-Interval)
		}
		last = at
		switch {
		case r.back[i] == 0:
			res.Lost++
			if begun < 0 {
				begun = at
			}
		case begun >= 0:
			res.Gap = max(res.Gap, at-begun)
			begun = -1
		}
	}
	if begun >= 0 {
		res.Gap, res.Open = max(res.Gap, last+Interval-begun), true
	}
	return res
}

// messages evaluates what a stream has noted.
func (r *record) messages() Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	res := Result{Resets: r.resets, Why: r.why}
	heard := time.Duration(-1) // last
	for i, at := range r.sent {
		if at < 0 {
			continue
		}
		res.Sent++
		if heard < 0 {
			heard = at
		}
		if r.back[i] == 0 {
			res.Lost++
			continue
		}
		res.Gap = max(res.Gap, r.back[i]-heard-Interval)
		heard = max(heard, r.back[i])
	}
	if open := time.Since(r.start) - heard; heard >= 0 && open > grace {
		res.Gap, res.Open = max(res.Gap, open), true
	}
	return res
}

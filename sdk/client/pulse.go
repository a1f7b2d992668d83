// SPDX-License-Identifier: Apache-2.0

package client

import (
	"time"

	"github.com/openvwire/nsm/sdk/conn"
)

// pulse is what follows from the echo requests that were sent through a wire and
// the answers that came. It has no clock and no socket.
//
// Packets have stopped when the last few requests have no answer, for as long as
// the timeout says, and no other answer has come meanwhile. It is requests that
// count, not time alone: a process that was suspended, or is starved of its
// processor, sends none, and reads late what came long ago. So whoever asks for
// data hands over first what has come (hear), then says that it has looked (look).
//
//	hear 3 ──▶ usual.from = 4                      look after a gap ──▶ usual.from = 8
//	requests   1  2  3  4  5  6  7                 requests   … 7 ······ 8  9
//	                    └─ no answer ─┘                                 └─ count
type pulse struct {
	// expects is set when the far end is known to answer: it has, or another
	// endpoint of the same service has, at the far end of the same wire.
	expects bool
	heard   time.Time // when an answer was read last; zero if none came on this path
	looked  time.Time // when somebody looked for answers last

	sent   uint64              // requests so far: the number of the next one
	sentAt [remember]time.Time // of the last ones, by number modulo remember

	usual   silence   // against Liveness.Timeout
	closely silence   // against the shorter limit of a close look
	until   time.Time // when the close look ends; zero = there is none

	measured uint64        // one more than the request whose trip is being measured; 0 = none is
	trip     time.Duration // of the last that was
}

// silence is what counts for it: requests from one on.
type silence struct {
	from  uint64    // the first request that counts
	since time.Time // when that was sent, if it was
}

const (
	remember = 32 // requests, with their times
	missed   = 4  // requests in a row must be without an answer, at least

	// While the control plane says that something is wrong, packets are looked at
	// more closely: a path that is really gone is given up within nearTimeout, or
	// within a few round trips where those take longer.
	nearInterval = 50 * time.Millisecond
	nearTimeout  = 250 * time.Millisecond
	nearTrips    = 4
	nearFor      = 3 * time.Second

	// slack is by how much a look may be late and is still in time.
	slack = 2 * grain
)

// send notes that a request is being sent and returns its sequence number.
func (p *pulse) send(now time.Time) (seq uint16) {
	for _, s := range []*silence{&p.usual, &p.closely} {
		if s.from == p.sent {
			s.since = now
		}
	}
	p.sentAt[p.sent%remember] = now
	p.sent++
	return uint16(p.sent - 1)
}

// unsend takes the last send back: nothing has left this machine.
func (p *pulse) unsend() { p.sent-- }

// measure has the trip of the last request measured. Somebody looks often until
// it is answered.
func (p *pulse) measure() { p.measured = p.sent }

// hear notes an answer.
func (p *pulse) hear(seq uint16, now time.Time) {
	ago := uint64(uint16(p.sent-1) - seq)
	if ago >= p.sent || ago > 1<<15 {
		return // nobody has asked
	}
	n := p.sent - 1 - ago
	p.expects, p.heard = true, now
	if n+1 >= p.measured && p.measured > 0 {
		if n+1 == p.measured && ago < remember {
			p.trip = now.Sub(p.sentAt[n%remember])
		}
		p.measured = 0
	}
	for _, s := range []*silence{&p.usual, &p.closely} {
		if n+1 > s.from {
			p.begin(s, n+1)
		}
	}
}

// begin has requests count from the given one on.
func (p *pulse) begin(s *silence, from uint64) {
	s.from = from
	if from < p.sent {
		s.since = p.sentAt[max(from, p.sent-min(p.sent, remember))%remember]
	}
}

// look notes that somebody looks for answers, which should be so at each pace. Who
// comes much later was not able to come: what is missing may be its own fault.
func (p *pulse) look(now time.Time, l Liveness) {
	gap := now.Sub(p.looked)
	if p.looked.IsZero() {
		gap = 0
	}
	p.looked = now
	if gap > 2*nearPace(l)+slack {
		p.begin(&p.closely, p.sent)
	}
	if gap > 2*l.Interval+slack {
		p.begin(&p.usual, p.sent)
	}
}

// suspect has packets looked at closely for a while, if they are not yet. What was
// asked before does not count. It reports whether that is new.
func (p *pulse) suspect(now time.Time) bool {
	begins := !now.Before(p.until)
	if begins {
		p.begin(&p.closely, p.sent)
	}
	p.until = now.Add(nearFor)
	return begins
}

// pardon forgets that packets have stopped, if they have: something was repaired,
// perhaps. A close look shows it.
func (p *pulse) pardon(now time.Time) bool {
	p.begin(&p.usual, p.sent)
	p.until = time.Time{}
	return p.suspect(now)
}

// pace is the time between requests.
func (p *pulse) pace(now time.Time, l Liveness) time.Duration {
	if now.Before(p.until) {
		return nearPace(l)
	}
	return l.Interval
}

func nearPace(l Liveness) time.Duration { return min(l.Interval, nearInterval) }

// data returns what is known about packets.
func (p *pulse) data(now time.Time, l Liveness) conn.Data {
	limit := min(l.Timeout, max(nearTimeout, nearTrips*p.trip))
	switch {
	case !p.expects:
		return conn.Unknown
	case p.silent(&p.usual, now, l.Timeout) || now.Before(p.until) && p.silent(&p.closely, now, limit):
		return conn.Stopped
	case p.heard.IsZero():
		return conn.Unknown
	}
	return conn.Flowing
}

func (p *pulse) silent(s *silence, now time.Time, timeout time.Duration) bool {
	return p.sent >= s.from+missed && now.Sub(s.since) >= timeout && now.Sub(p.heard) >= timeout
}

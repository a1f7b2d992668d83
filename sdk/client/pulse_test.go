// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"testing"
	"time"

	"github.com/openvwire/nsm/sdk/conn"
)

// What follows from requests and answers. Each step says how it was done at that
// time; times are milliseconds.
func TestPulse(t *testing.T) {
	type step struct {
		at   int
		what string // "tick": read what has come, look, conclude, send; "suspect", "pardon"
		read []int  // numbers of the requests whose answers have come by now
		want conn.Data
	}
	tick := func(at int, want conn.Data, read ...int) step { return step{at, "tick", read, want} }
	const unknown, flowing, stopped = conn.Unknown, conn.Flowing, conn.Stopped
	for _, tt := range []struct {
		name    string
		expects bool
		trip    time.Duration
		steps   []step
	}{
		{"who never answers is not dead", false, 0, []step{
			tick(0, unknown), tick(200, unknown), tick(400, unknown), tick(600, unknown), tick(800, unknown), tick(1000, unknown), tick(5000, unknown),
		}},
		{"who takes the place of one that answers, is", true, 0, []step{
			tick(0, unknown), tick(200, unknown), tick(400, unknown), tick(600, unknown), tick(800, unknown), tick(1000, stopped),
		}},
		{"unless it answers, too", true, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), tick(400, flowing, 1), tick(600, flowing, 2), tick(800, flowing, 3), tick(1000, flowing, 4), tick(1200, flowing, 5),
		}},
		{"answers cease, and come again", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), tick(400, flowing), tick(600, flowing), tick(800, flowing), tick(1000, flowing), tick(1200, stopped), tick(1400, stopped), tick(1600, flowing, 7),
		}},
		{"one of four is enough", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), tick(400, flowing), tick(600, flowing), tick(800, flowing, 3), tick(1000, flowing), tick(1200, flowing), tick(1400, flowing), tick(1600, flowing, 7), tick(1800, flowing),
		}},
		{"answers that take longer than the timeout are answers", false, 0, []step{
			tick(0, unknown), tick(200, unknown), tick(400, unknown), tick(600, unknown), tick(800, unknown), tick(1000, unknown), tick(1200, unknown),
			tick(1400, flowing, 0), tick(1600, flowing, 1), tick(1800, flowing, 2), tick(2000, flowing, 3), tick(2200, flowing, 4), tick(2400, flowing, 5), tick(2600, flowing, 6),
		}},
		{"suspended for a minute, answers wait", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), tick(400, flowing, 1), tick(60_000, flowing, 2), tick(60_200, flowing, 3),
		}},
		{"suspended, and the last answer is missing", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), tick(400, flowing, 1), tick(600, flowing), tick(60_000, flowing), tick(60_200, flowing, 4),
		}},
		{"suspended for a little more than the timeout", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), tick(400, flowing), tick(1600, flowing), tick(1800, flowing), tick(2000, flowing, 4),
		}},
		{"the whole machine stood still, and whoever carries the packets is no quicker", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), tick(400, flowing), tick(600, flowing), tick(800, flowing), tick(1000, flowing), tick(1600, flowing), tick(1800, flowing, 1, 2, 3, 4, 5, 6),
		}},
		{"suspended, and the path broke meanwhile", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), tick(60_000, flowing, 1), tick(60_200, flowing), tick(60_400, flowing), tick(60_600, flowing), tick(60_800, flowing), tick(61_000, stopped),
		}},
		{"a machine so busy that looks are late", false, 0, []step{
			tick(0, unknown), tick(380, flowing, 0), tick(760, flowing), tick(1140, flowing), tick(1520, flowing, 3), tick(1900, flowing), tick(2280, flowing), tick(2660, flowing), tick(3040, stopped),
		}},
		{"a close look finds nothing wrong", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), {300, "suspect", []int{1}, flowing}, tick(300, flowing), tick(350, flowing, 2), tick(400, flowing, 3), tick(450, flowing, 4), tick(500, flowing, 5), tick(550, flowing, 6), tick(600, flowing, 7),
		}},
		{"a close look finds that packets have stopped", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), {300, "suspect", []int{1}, flowing}, tick(300, flowing), tick(350, flowing), tick(400, flowing), tick(450, flowing), tick(500, flowing), tick(550, stopped),
		}},
		{"a suspicion that is repeated does not put it off", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), {300, "suspect", []int{1}, flowing}, tick(300, flowing), tick(350, flowing), {360, "suspect", nil, flowing}, tick(400, flowing), {440, "suspect", nil, flowing}, tick(450, flowing), tick(500, flowing), tick(550, stopped),
		}},
		{"a close look is patient where trips are long", false, 150 * time.Millisecond, []step{
			tick(0, unknown), tick(200, flowing, 0), {300, "suspect", []int{1}, flowing}, tick(300, flowing), tick(400, flowing), tick(500, flowing), tick(600, flowing), tick(700, flowing), tick(800, flowing), tick(900, stopped),
		}},
		{"a close look of a busy machine starts over", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), {300, "suspect", []int{1}, flowing}, tick(300, flowing), tick(350, flowing), tick(400, flowing), tick(450, flowing), tick(600, flowing), tick(650, flowing, 6),
		}},
		{"a close look that cannot be one leaves it to the usual", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), {300, "suspect", []int{1}, flowing}, tick(300, flowing), tick(450, flowing), tick(600, flowing), tick(750, flowing), tick(900, flowing), tick(1050, flowing), tick(1200, flowing), tick(1350, stopped),
		}},
		{"after a refresh packets have another chance", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), tick(400, flowing), tick(600, flowing), tick(800, flowing), tick(1000, flowing), tick(1200, stopped),
			{1300, "pardon", nil, flowing}, tick(1300, flowing), tick(1350, flowing), tick(1400, flowing), tick(1450, flowing), tick(1500, flowing), tick(1550, stopped),
		}},
		{"and use it", false, 0, []step{
			tick(0, unknown), tick(200, flowing, 0), tick(400, flowing), tick(600, flowing), tick(800, flowing), tick(1000, flowing), tick(1200, stopped),
			{1300, "pardon", nil, flowing}, tick(1300, flowing), tick(1350, flowing, 7), tick(1400, flowing, 8), tick(2000, flowing),
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Unix(1000, 0)
			l := Liveness{}
			l.fill()
			p := pulse{expects: tt.expects, trip: tt.trip}
			for _, s := range tt.steps {
				now := start.Add(time.Duration(s.at) * time.Millisecond)
				for _, n := range s.read {
					p.hear(uint16(n), now)
				}
				switch s.what {
				case "tick":
					p.look(now, l)
				case "suspect":
					p.suspect(now)
				case "pardon":
					p.pardon(now)
				}
				if got := p.data(now, l); got != s.want {
					t.Fatalf("at %d ms: %v, want %v", s.at, got, s.want)
				}
				if s.what == "tick" {
					p.send(now)
				}
			}
		})
	}
}

// Numbers wrap; what nobody asked for is no answer; a request that could not be
// sent does not count.
func TestPulseNumbers(t *testing.T) {
	now := time.Unix(1000, 0)
	l := Liveness{}
	l.fill()
	var p pulse
	p.hear(0, now)
	p.hear(65535, now)
	for n := range 200_000 {
		now = now.Add(l.Interval)
		p.look(now, l)
		seq := p.send(now)
		if seq != uint16(n) {
			t.Fatalf("request %d has the number %d", n, seq)
		}
		p.hear(seq+1, now)
		if got := p.data(now, l); n == 0 && got != conn.Unknown || n > 0 && got != conn.Flowing {
			t.Fatalf("request %d: %v", n, got)
		}
		p.hear(seq, now)
	}
	for range 20 {
		now = now.Add(l.Interval)
		p.look(now, l)
		p.send(now)
		p.unsend()
	}
	if got := p.data(now, l); got != conn.Flowing {
		t.Errorf("nothing was sent, and packets are %v", got)
	}
}

// Whatever the timeout, packets stop that long after the first request without an
// answer, within one interval.
func TestPulseTimeouts(t *testing.T) {
	for _, l := range []Liveness{
		{}, {Interval: 10 * time.Millisecond, Timeout: 10 * time.Second}, {Interval: 1200 * time.Millisecond}, {Timeout: 100 * time.Millisecond},
	} {
		t.Run(fmt.Sprint(l.Interval, l.Timeout), func(t *testing.T) {
			l.fill()
			var p pulse
			now := time.Unix(1000, 0)
			for range 100 {
				p.look(now, l)
				p.hear(p.send(now), now)
				now = now.Add(l.Interval)
			}
			first := now
			for p.data(now, l) != conn.Stopped {
				p.look(now, l)
				p.send(now)
				now = now.Add(l.Interval)
			}
			if took := now.Sub(first); took < l.Timeout || took > l.Timeout+l.Interval {
				t.Errorf("stopped after %v, timeout %v", took, l.Timeout)
			}
		})
	}
}

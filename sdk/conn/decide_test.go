// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"testing"
	"time"
)

func TestDecide(t *testing.T) {
	now := time.Unix(1000, 0)
	in := func(d time.Duration) time.Time { return now.Add(d) }
	ms := func(n int) time.Time { return in(time.Duration(n) * time.Millisecond) }
	do := func(a Action, at time.Time) Decision { return Decision{Do: a, At: at} }
	urged := func(a Action, at time.Time, n int) Decision { return Decision{Do: a, At: at, Urged: n} }
	dry := func(d Decision) Decision { d.Dry = true; return d }
	minute := in(time.Minute)
	for _, tt := range []struct {
		name   string
		s      State
		e      Event
		data   Data
		random float64
		want   Decision
	}{
		{"client refreshes at a fifth", State{Expires: in(10 * time.Minute)}, Established, Flowing, 0, do(Refresh, in(2*time.Minute))},
		{"jitter only makes it earlier", State{Expires: in(10 * time.Minute)}, Established, Flowing, 1, do(Refresh, in(108*time.Second))},
		{"already expired: soon, not at once", State{Expires: in(-time.Second)}, Established, Flowing, 0, do(Refresh, ms(1000))},

		{"peer lost, packets flow: same path, soon", State{Up: true, Expires: minute}, PeerLost, Flowing, 0.5, urged(Refresh, ms(100), 1)},
		{"peer lost, packets unknown: ask the same path first, at once", State{Up: true, Expires: minute}, PeerLost, Unknown, 0.5, urged(Refresh, now, 1)},
		{"path down, packets flow: same path, soon", State{Up: true, Expires: minute}, PathDown, Flowing, 0.9, urged(Refresh, ms(180), 1)},
		{"path down, packets unknown: ask the same path first, at once", State{Up: true, Expires: minute}, PathDown, Unknown, 0.5, urged(Refresh, now, 1)},
		{"path down, packets have stopped: another path at once", State{Up: true, Expires: minute}, PathDown, Stopped, 0.5, dry(urged(Reselect, now, 1))},
		{"packets lost: another path at once", State{Up: true, Expires: minute}, DataLost, Stopped, 0.5, dry(urged(Reselect, now, 1))},
		{"asked to refresh", State{Up: true, Expires: minute}, AskedRefresh, Unknown, 0, urged(Refresh, now, 1)},
		{"asked to refresh, with all others", State{Up: true, Expires: minute}, AskedRefresh, Flowing, 0.5, urged(Refresh, ms(100), 1)},
		{"asked to move", State{Up: true, Expires: minute}, AskedReselect, Flowing, 0, urged(Reselect, now, 1)},
		{"peer found, and nothing was wrong", State{Up: true, Expires: minute, Due: do(Refresh, in(12*time.Second))}, PeerFound, Flowing, 0, do(Refresh, in(12*time.Second))},
		{"another endpoint, and nothing is wrong", State{Up: true, Expires: minute, Due: do(Refresh, in(12*time.Second))}, EndpointCame, Flowing, 0, do(Refresh, in(12*time.Second))},

		{"an event does not put off what is due", State{Up: true, Expires: minute, Due: do(Refresh, ms(50))}, PathDown, Flowing, 0.9, do(Refresh, ms(50))},
		{"an event does not weaken what is due", State{Up: true, Expires: minute, Due: urged(Reselect, ms(70), 3)}, PathDown, Unknown, 0, urged(Reselect, now, 1)},
		{"what should have been done is done now", State{Up: true, Expires: minute, Due: do(Refresh, ms(-50))}, PathDown, Flowing, 0.9, do(Refresh, now)},

		{"a hop has too much to do: when it says", State{Attempts: 1, Hint: time.Second}, Failed, Unknown, 0, do(Reselect, ms(1000))},
		{"and not all at once", State{Attempts: 1, Hint: time.Second}, Failed, Unknown, 1, do(Reselect, ms(1500))},
		{"or later, if it has failed for long", State{Attempts: 6, Hint: time.Second}, Failed, Unknown, 0, do(Reselect, ms(5000))},
		{"which is no reason to give the path up", State{Up: true, Attempts: 7, Hint: time.Second, Expires: minute}, Failed, Unknown, 0, do(Refresh, ms(5000))},
		{"unless packets have stopped", State{Up: true, Attempts: 7, Hint: time.Second, Expires: minute}, Failed, Stopped, 0, dry(do(Reselect, ms(5000)))},
		{"a wire that is up does not wait for its end", State{Up: true, Attempts: 1, Hint: time.Minute, Expires: in(4 * time.Second)}, Failed, Flowing, 1, do(Refresh, ms(1000))},
		{"but when it says if there is time", State{Up: true, Attempts: 1, Hint: time.Second, Expires: minute}, Failed, Flowing, 0.5, do(Refresh, ms(1250))},

		{"a second event soon after the first: a pause", State{Up: true, Expires: minute, Urged: 1, UrgedAt: ms(-20)}, PathDown, Unknown, 0, urged(Refresh, ms(80), 2)},
		{"a path that flaps: longer and longer", State{Up: true, Expires: minute, Urged: 5, UrgedAt: ms(-100)}, PathDown, Flowing, 0, urged(Refresh, ms(1500), 6)},
		{"with jitter", State{Up: true, Expires: minute, Urged: 5, UrgedAt: ms(-100)}, PathDown, Flowing, 1, urged(Refresh, ms(1020), 6)},
		{"but bounded", State{Up: true, Expires: minute, Urged: 100, UrgedAt: ms(-100)}, PathDown, Flowing, 0, urged(Refresh, ms(4900), 101)},
		{"a pause that has passed is none", State{Up: true, Expires: minute, Urged: 3, UrgedAt: ms(-500)}, DataLost, Stopped, 0, dry(urged(Reselect, now, 4))},
		{"packets stop on every path: back-off, too", State{Up: true, Expires: minute, Urged: 6, UrgedAt: ms(-1000)}, DataLost, Stopped, 0, dry(urged(Reselect, ms(2200), 7))},
		{"and a long one when they flow on none of many", State{Up: true, Expires: minute, Dry: 8, Urged: 9, UrgedAt: ms(-1200)}, DataLost, Stopped, 0, dry(urged(Reselect, ms(24400), 9))},
		{"which does not count as flapping", State{Up: true, Expires: minute, Dry: 2, Urged: 7, UrgedAt: ms(-1000)}, DataLost, Stopped, 0, dry(urged(Reselect, now, 7))},
		{"as long after a calm", State{Up: true, Expires: minute, Dry: 20, Urged: 9, UrgedAt: in(-11 * time.Second)}, DataLost, Stopped, 0, dry(urged(Reselect, in(19*time.Second), 1))},
		{"an event in between does not change what it is for", State{Up: true, Expires: minute, Dry: 8, UrgedAt: in(-20 * time.Second), Due: dry(urged(Reselect, in(9*time.Second), 1))}, AskedRefresh, Unknown, 0, dry(urged(Reselect, now, 1))},
		{"unless it asks for the same", State{Up: true, Expires: minute, Dry: 8, UrgedAt: in(-20 * time.Second), Due: dry(urged(Reselect, in(9*time.Second), 1))}, AskedReselect, Unknown, 0, urged(Reselect, now, 1)},
		{"packets that stop do not, either", State{Up: true, Expires: minute, Due: urged(Reselect, ms(50), 1), UrgedAt: ms(-60)}, DataLost, Stopped, 0, urged(Reselect, now, 1)},
		{"packets come back, and nobody had noticed", State{Up: true, Expires: minute, Due: do(Refresh, in(12*time.Second))}, DataBack, Flowing, 0.5, do(Refresh, in(12*time.Second))},
		{"packets come back: the path stays", State{Up: true, Expires: minute, Dry: 8, UrgedAt: in(-20 * time.Second), Due: dry(urged(Reselect, in(9*time.Second), 1))}, DataBack, Flowing, 0.5, urged(Refresh, ms(100), 1)},
		{"also before another one was tried", State{Up: true, Expires: minute, Due: dry(urged(Reselect, ms(50), 2)), Urged: 1, UrgedAt: ms(-150)}, DataBack, Flowing, 0.5, urged(Refresh, ms(100), 1)},
		{"packets come on another path: whom that was told hears it", State{Up: true, Expires: minute, Dry: 3, UrgedAt: in(-20 * time.Second), Due: do(Refresh, in(12*time.Second))}, DataBack, Flowing, 0.5, urged(Refresh, ms(100), 1)},
		{"unless a hop has asked for another path", State{Up: true, Expires: minute, Due: urged(Reselect, ms(50), 2)}, DataBack, Flowing, 0.5, urged(Reselect, ms(50), 2)},
		{"packets come back, Requests fail: the same path will do", State{Up: true, Expires: minute, Attempts: 3, Due: dry(do(Reselect, ms(700)))}, DataBack, Flowing, 0.5, do(Refresh, ms(700))},
		{"unless the endpoint was given up", State{Up: true, Expires: minute, Attempts: 3, GivenUp: true, Due: dry(do(Reselect, ms(700)))}, DataBack, Flowing, 0.5, do(Either, ms(700))},
		{"none has ever come: that may be as it is", State{Up: true, Expires: minute, Due: do(Refresh, in(12*time.Second))}, DataNone, Unknown, 0.5, do(Refresh, in(12*time.Second))},
		{"after a calm all begins anew", State{Up: true, Expires: minute, Urged: 100, UrgedAt: in(-10 * time.Second)}, PathDown, Unknown, 0, urged(Refresh, now, 1)},

		{"while attempts fail a path that is down is no news", State{Up: true, Expires: minute, Attempts: 3, Due: do(Refresh, ms(700))}, PathDown, Flowing, 0, do(Refresh, ms(700))},
		{"nor is a peer that is lost", State{Up: true, Expires: minute, Attempts: 3, Due: do(Refresh, ms(700))}, PeerLost, Unknown, 0, do(Refresh, ms(700))},
		{"nor a refresh that is asked for", State{Up: true, Expires: minute, Attempts: 3, Due: do(Either, ms(700))}, AskedRefresh, Unknown, 0, do(Either, ms(700))},
		{"a move that is asked for is to be one", State{Up: true, Expires: minute, Attempts: 3, Due: do(Refresh, ms(700))}, AskedReselect, Flowing, 0, do(Reselect, ms(700))},
		{"packets that stop are news", State{Up: true, Expires: minute, Attempts: 3, Due: do(Refresh, ms(700))}, DataLost, Stopped, 0, dry(urged(Reselect, now, 1))},
		{"unless another path is being asked for", State{Up: true, Expires: minute, Attempts: 3, Due: do(Reselect, ms(700))}, DataLost, Stopped, 0, do(Reselect, ms(700))},
		{"the peer is back: ask at once, spread", State{Up: true, Expires: minute, Attempts: 9, Due: do(Refresh, in(4*time.Second))}, PeerFound, Flowing, 0.5, urged(Refresh, ms(100), 1)},
		{"whatever is due", State{Up: true, Expires: minute, Attempts: 9, Due: do(Reselect, in(4*time.Second))}, PeerFound, Stopped, 0.5, urged(Reselect, ms(100), 1)},
		{"an endpoint has come: ask at once, spread", State{Up: true, Expires: minute, Attempts: 9, Watched: true, Due: do(Refresh, in(20*time.Second))}, EndpointCame, Unknown, 0.5, urged(Either, ms(25), 1)},
		{"also for a connection that never was", State{Attempts: 9, Watched: true, Due: do(Reselect, in(20*time.Second))}, EndpointCame, Unknown, 0.5, urged(Reselect, ms(25), 1)},
		{"but not each time if it flaps", State{Attempts: 9, Watched: true, Due: do(Reselect, in(20*time.Second)), Urged: 4, UrgedAt: ms(-100)}, EndpointCame, Unknown, 0, urged(Reselect, ms(700), 5)},

		{"endpoint gone: it may be restarting", State{Up: true, Attempts: 2, Expires: minute}, EndpointLost, Flowing, 0, do(Refresh, ms(400))},
		{"endpoint gone for longer: another one if there is one", State{Up: true, Attempts: 3, Expires: minute}, EndpointLost, Flowing, 0, Decision{Do: Either, At: now, GivesUp: true}},
		{"endpoint gone when the mesh is back at last: another one at once", State{Up: true, Attempts: 9, Expires: minute}, EndpointLost, Flowing, 0, Decision{Do: Either, At: now, GivesUp: true}},
		{"no other endpoint either: with back-off", State{Up: true, Attempts: 4, Stale: 3, GivenUp: true, Expires: minute}, EndpointLost, Flowing, 0, do(Either, ms(200))},
		{"which is long when somebody tells of a new one", State{Up: true, Attempts: 40, GivenUp: true, Expires: minute, Watched: true}, EndpointLost, Flowing, 0, do(Either, in(30*time.Second))},
		{"an endpoint that was given up stays so, whatever fails", State{Up: true, Attempts: 4, Stale: 3, GivenUp: true, Expires: minute}, Failed, Flowing, 0, do(Either, ms(200))},
		{"also when the peer is back", State{Up: true, Attempts: 4, Stale: 3, GivenUp: true, Expires: minute, Due: do(Either, ms(200))}, PeerFound, Flowing, 0.5, urged(Either, ms(100), 1)},
		{"an event does not make it forget that", State{Up: true, Attempts: 3, Expires: minute, Due: Decision{Do: Either, At: now, GivesUp: true}}, PeerFound, Flowing, 0, Decision{Do: Either, At: now, Urged: 1, GivesUp: true}},
		{"endpoint gone and its kernel, too: another one at once", State{Up: true, Attempts: 1, Expires: minute}, EndpointLost, Stopped, 0, dry(do(Reselect, now))},
		{"packets have stopped: another path at once", State{Up: true, Attempts: 1, Expires: minute}, Failed, Stopped, 0, dry(do(Reselect, now))},
		{"packets have stopped: with back-off from then on", State{Up: true, Attempts: 3, Expires: minute}, Failed, Stopped, 0, dry(do(Reselect, ms(800)))},
		{"first failure of a new connection", State{Attempts: 1}, Failed, Unknown, 0, do(Reselect, ms(200))},
		{"failures back off", State{Attempts: 3}, Failed, Unknown, 0, do(Reselect, ms(800))},
		{"back-off is bounded", State{Attempts: 100}, Failed, Unknown, 0, do(Reselect, in(5*time.Second))},
		{"back-off has jitter", State{Attempts: 100}, Failed, Unknown, 1, do(Reselect, ms(3500))},
		{"and is longer when somebody tells of a new endpoint", State{Attempts: 7, Watched: true}, Failed, Unknown, 0, do(Reselect, ms(12800))},
		{"after news it begins anew", State{Attempts: 40, Stale: 39, Watched: true}, Failed, Unknown, 0, do(Reselect, ms(200))},
		{"failed refresh keeps the path while it lives", State{Up: true, Attempts: 1, Expires: minute}, Failed, Flowing, 0, do(Refresh, ms(200))},
		{"failed refresh never waits beyond its life", State{Up: true, Attempts: 9, Expires: in(time.Second)}, Failed, Flowing, 0, do(Refresh, ms(1000))},
		{"packets unknown: the same path a few times", State{Up: true, Attempts: 3, Expires: minute}, Failed, Unknown, 0, do(Refresh, ms(800))},
		{"packets unknown: then another one", State{Up: true, Attempts: 4, Expires: minute}, Failed, Unknown, 0, do(Either, ms(1600))},
		{"packets flow: the same path all its life", State{Up: true, Attempts: 9, Expires: minute}, Failed, Flowing, 0, do(Refresh, in(5*time.Second))},

		{"its life ends: a new connection", State{Up: true, Attempts: 40, Expires: in(-time.Second)}, Failed, Flowing, 0, do(Anew, ms(200))},
		{"to the moment", State{Up: true, Attempts: 1, Expires: now}, EndpointLost, Stopped, 1, do(Anew, ms(140))},
		{"whatever the event", State{Up: true, Expires: now, Due: do(Refresh, ms(10))}, DataLost, Stopped, 0, urged(Anew, now, 1)},
		{"with back-off of its own", State{Over: true, Attempts: 1}, Failed, Unknown, 0, do(Anew, ms(200))},
		{"longer and longer", State{Over: true, Attempts: 7}, EndpointLost, Unknown, 0, do(Anew, ms(12800))},
		{"up to half a minute", State{Over: true, Attempts: 70}, Failed, Unknown, 0, do(Anew, in(30*time.Second))},
		{"less by chance", State{Over: true, Attempts: 70}, Failed, Unknown, 1, do(Anew, in(21*time.Second))},
		{"events of what is over are no news", State{Over: true, Due: do(Anew, in(9*time.Second))}, PathDown, Unknown, 0, do(Anew, in(9*time.Second))},
		{"but an endpoint is", State{Over: true, Attempts: 7, Due: do(Anew, in(9*time.Second))}, EndpointCame, Unknown, 0.5, urged(Anew, ms(25), 1)},
	} {
		if got := Decide(tt.s, tt.e, tt.data, now, tt.random); got != tt.want {
			t.Errorf("%s: %v in %v (%d), want %v in %v (%d)", tt.name, got.Do, got.At.Sub(now), got.Urged, tt.want.Do, tt.want.At.Sub(now), tt.want.Urged)
		}
	}
}

// However events, failures and successes follow each other, an originator makes no
// more Requests than the back-off allows: a peer that flaps ten times a second is
// asked every few seconds.
func TestFlappingIsNotFollowed(t *testing.T) {
	for _, tt := range []struct {
		name     string
		data     Data
		outcome  Event
		requests int // in ten minutes, at most
	}{
		{"packets flow, Requests succeed", Flowing, Established, 200},
		{"packets unknown, Requests succeed", Unknown, Established, 200},
		{"packets have stopped, Requests succeed", Stopped, Established, 200},
		{"packets flow, Requests fail", Flowing, Failed, 200},
		{"packets unknown, Requests fail", Unknown, Failed, 200},
		{"packets flow, the endpoint is gone", Flowing, EndpointLost, 200},
		{"packets unknown, the endpoint is gone", Unknown, EndpointLost, 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Unix(1000, 0)
			s := State{Up: true, Expires: start.Add(10 * time.Minute)}
			s.Due = Decide(s, Established, tt.data, start, 0)
			requests, events := 0, []Event{PathDown, PeerLost, PeerFound, DataLost, AskedRefresh, AskedReselect, EndpointCame}
			for i := range 6000 {
				now := start.Add(time.Duration(i) * 100 * time.Millisecond)
				random := float64(i*7919%1000) / 1000
				s.Due = Decide(s, events[i%len(events)], tt.data, now, random)
				if s.Due.At.After(now) {
					continue
				}
				requests++
				if s.Due.Urged > 0 {
					s.Urged, s.UrgedAt = s.Due.Urged, now
				}
				if s.Due.News() {
					s.Stale = s.Attempts
				}
				s.GivenUp = s.GivenUp || s.Due.GivesUp
				s.Due = Decision{}
				if tt.outcome == Established {
					s.Attempts, s.Stale, s.GivenUp, s.Expires = 0, 0, false, now.Add(10*time.Minute)
				} else {
					s.Attempts++
				}
				s.Due = Decide(s, tt.outcome, tt.data, now, random)
			}
			if requests < 60 || requests > tt.requests {
				t.Errorf("%d Requests in ten minutes", requests)
			}
		})
	}
}

func BenchmarkDecide(b *testing.B) {
	now := time.Unix(1000, 0)
	s := State{Up: true, Expires: now.Add(time.Minute), Urged: 5, UrgedAt: now.Add(-100 * time.Millisecond)}
	b.ReportAllocs()
	for b.Loop() {
		if d := Decide(s, PathDown, Flowing, now, 0.5); d.Do != Refresh {
			b.Fatal(d)
		}
	}
}

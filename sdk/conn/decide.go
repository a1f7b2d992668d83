// SPDX-License-Identifier: Apache-2.0

package conn

import "time"

// State is what the originator of a connection knows about it when it decides.
type State struct {
	Expires  time.Time // when its life ends: the earliest expiry of any segment of the path
	Attempts int       // failed since the last success
	Stale    int       // of these: before there was news, which begins the back-off anew
	Up       bool      // established, as far as anybody said
	Over     bool      // it was, and its life has ended: nothing is left of it
	GivenUp  bool      // its endpoint was, since the last success
	Dry      int       // paths in a row that were asked for since packets had stopped, and that carry none either

	Due     Decision      // what was decided before and is not done yet; zero if nothing is
	Urged   int           // Requests that events have asked for, one soon after the other
	UrgedAt time.Time     // when the last of them was made
	Hint    time.Duration // after what time whoever refused the last attempt wants to be asked again; 0 = it has not said
	Watched bool          // somebody is going to tell when there is an endpoint to ask for
}

// Event is what made the originator decide.
type Event int

// The events of a connection's life.
const (
	Established   Event = iota // a Request succeeded
	Failed                     // a Request failed
	EndpointLost               // a Request failed since the endpoint is gone
	PathDown                   // a hop said that the path behind it is broken
	PeerLost                   // nothing is heard of the first hop any more
	PeerFound                  // the first hop is heard of again
	EndpointCame               // an endpoint of the service has come, or has changed
	DataLost                   // packets do not come back although control is well
	DataBack                   // packets come back, on a new path or again
	DataNone                   // none has ever come back, which need not mean anything
	AskedRefresh               // a hop asked for the Request again (REFRESH_REQUESTED)
	AskedReselect              // a hop asked for another path (RESELECT_REQUESTED)
)

// Data is what is known about packets on the wire.
type Data int

// What is known about packets.
const (
	Unknown Data = iota // nobody has looked, or the far end never answers
	Flowing             // answers have come just now
	Stopped             // answers came, and come no more
)

// Action is what the originator does next.
type Action int

// The actions that Decide chooses from. Each gives up more than the one before.
const (
	Refresh  Action = iota // Request again on the same path
	Either                 // Refresh and, if that fails, Reselect
	Reselect               // give the path up and Request another
	Anew                   // Request a new connection: the old one's life has ended
)

// Decision is an action and its time. One whose time has passed is due.
type Decision struct {
	Do    Action
	At    time.Time
	Urged int // what State.Urged is when it is done; 0 if it is not an event that asks for it

	// GivesUp the endpoint, which is dead: State.GivenUp from then on.
	GivesUp bool

	// Dry: another path is due since packets have stopped, and for nothing else.
	Dry bool
}

// News reports whether earlier failures say nothing of how it will end, so that the
// back-off begins anew with it: one event asks for it, and not the last of many, or it
// is the first that does not depend on a dead endpoint.
func (d Decision) News() bool { return d.Urged == 1 || d.GivesUp }

// Back-off between failed attempts: quick enough to find a replacement within a
// second, slow enough that a thousand clients without an endpoint cost little.
const (
	firstRetry = 100 * time.Millisecond
	maxRetry   = 5 * time.Second
	// lastRetry is the longest pause where somebody tells when there is something
	// new to try, of a connection that nobody has had for all of its life, and where
	// packets flow on no path: as soon as they do it is known.
	lastRetry = 30 * time.Second

	// samePathTries is how often the same path is asked again when nobody knows
	// whether packets flow: with the back-off above long enough for a daemon to
	// restart.
	samePathTries = 3

	// restartTries is the same for an endpoint that is gone: 0.6 s.
	restartTries = 2
)

// Many connections hear of one event at the same time. Their Requests are spread
// over a while: a long one when they are in no hurry.
const (
	spreadFlowing = 200 * time.Millisecond // while packets flow
	spreadPeer    = 200 * time.Millisecond // when the first hop is back, which all of them wait for
	spreadWaiting = 50 * time.Millisecond  // when there is an endpoint at last
)

// minRefresh is the shortest pause between a Request that succeeded and the refresh
// that follows.
const minRefresh = time.Second

// calm is how long after a Request that an event has asked for the next event is
// one of its own, and no flapping.
const calm = 10 * time.Second

// Decide is the policy of refresh and healing. data says what is known about
// packets; random is uniform in [0,1) and spreads what many do at once.
//
// The rules (protocol.md §2.8, §5.1, with back-off where the reference has none):
//
//   - established: refresh at a fifth of the shortest segment life;
//   - the path is down, or the control plane is gone: the same path again, at once,
//     or a moment later if packets flow;
//   - packets are lost, or a hop asks for it: another path, at once. While they flow
//     on none of those that are taken, there is more and more time in between; where
//     they come back the path stays;
//   - an attempt failed: try again with back-off, on the same path while
//     packets flow or it is too early to tell, then on another one. The same
//     path is still asked first: what was away may be back, and packets may have
//     flowed all the time;
//   - a hop has too much to do: the same path when it says, so that those who come do
//     not come again at once;
//   - an attempt failed and packets have stopped: another path at once;
//   - the endpoint is gone: another path after the time that a restart takes, even
//     if packets flow. It is the kernel of its namespace that answers. That stays so
//     whatever else fails then, and is tried with a back-off of its own;
//   - the life of the connection has ended: ask for a new one, with more and more
//     time in between;
//   - events that follow each other closely are subject to the same back-off, and
//     while attempts fail only what is news shortens it. What is due is never put
//     off by an event, nor made weaker.
func Decide(s State, e Event, data Data, now time.Time, random float64) Decision {
	switch e {
	case Established:
		return Decision{Do: Refresh, At: now.Add(refreshAfter(s, now, random))}
	case Failed, EndpointLost:
		return retry(s, e, data, now, random)
	}
	return urge(s, e, data, now, random)
}

// over reports whether the connection's life has ended.
func (s State) over(now time.Time) bool { return s.Over || s.Up && !s.Expires.After(now) }

// retry decides what follows a failed attempt.
func retry(s State, e Event, data Data, now time.Time, random float64) Decision {
	limit := maxRetry
	if s.Watched || s.Over {
		limit = lastRetry
	}
	wait := max(backoff(s.Attempts-s.Stale, limit, random), hinted(s, now, random))
	switch {
	case s.over(now) && !s.Over:
		return Decision{Do: Anew, At: now.Add(backoff(1, limit, random))} // this has a back-off of its own
	case s.Over:
		return Decision{Do: Anew, At: now.Add(wait)}
	case !s.Up:
		return Decision{Do: Reselect, At: now.Add(wait)}
	case data == Stopped:
		if s.Attempts <= 1 {
			wait = 0
		}
		return Decision{Do: Reselect, At: now.Add(wait), Dry: true}
	case e == EndpointLost && s.Attempts > restartTries && !s.GivenUp:
		return Decision{Do: Either, At: now, GivesUp: true}
	case s.GivenUp:
		return Decision{Do: Either, At: now.Add(min(wait, s.Expires.Sub(now)))}
	case data == Flowing || s.Attempts <= samePathTries || s.Hint > 0: // who has too much to do is there
		return Decision{Do: Refresh, At: now.Add(min(wait, s.Expires.Sub(now)))}
	}
	return Decision{Do: Either, At: now.Add(min(wait, s.Expires.Sub(now)))}
}

// hinted is the pause that a hop asks for which has too much to do, and up to half as
// much again by chance: those whom it has refused at one time come by and by. A wire that is
// up does not wait for more than a quarter of the life it has left.
func hinted(s State, now time.Time, random float64) time.Duration {
	wait := s.Hint + time.Duration(float64(s.Hint)*0.5*random)
	if s.Up && !s.over(now) {
		wait = min(wait, s.Expires.Sub(now)/4)
	}
	return wait
}

// urge decides what an event from outside changes.
func urge(s State, e Event, data Data, now time.Time, random float64) Decision {
	failing := s.Attempts > 0 || s.Over
	d := Decision{Do: Refresh, At: now, Urged: 1}
	spread := time.Duration(0)
	if data == Flowing {
		spread = spreadFlowing
	}
	switch e {
	case DataNone:
		return s.Due
	case PathDown, PeerLost:
		// Neither says that packets have stopped: a hop that restarts looks the
		// same as one that died (docs/adr/0003).
		if failing { // no news
			return s.Due
		}
		if data == Stopped {
			d.Do, d.Dry = Reselect, true
		}
	case AskedRefresh:
		if failing {
			return s.Due
		}
	case AskedReselect:
		d.Do = Reselect
		if failing {
			s.Due.Do, s.Due.Dry = max(s.Due.Do, Reselect), false
			return s.Due
		}
	case DataLost:
		d.Do, d.Dry, spread = Reselect, true, 0
		if failing && s.Due.Do >= Reselect {
			return s.Due
		}
	case DataBack:
		if s.Due.Dry && failing { // the same path will do, unless its endpoint is dead
			s.Due.Do, s.Due.Dry = Refresh, false
			if s.GivenUp {
				s.Due.Do = Either
			}
		}
		if failing || s.Dry == 0 && !s.Due.Dry {
			return s.Due
		}
		s.Due = Decision{} // what follows says that all is well
	case PeerFound:
		if !failing {
			return s.Due
		}
		spread = spreadPeer
	case EndpointCame:
		if !failing {
			return s.Due
		}
		d.Do, spread = Either, spreadWaiting
	}
	d.At = now.Add(time.Duration(random * float64(spread)))
	// That packets do not flow on another path either, and that they are back, is more
	// of one event: it is no flapping, and the former has a back-off of its own.
	goesOn := e == DataLost && s.Dry > 0
	if s.Urged > 0 && now.Sub(s.UrgedAt) < calm {
		d.Urged = s.Urged
		if !goesOn {
			d.At = later(d.At, s.UrgedAt.Add(backoff(s.Urged-1, maxRetry, random)))
		}
		if !goesOn && e != DataBack {
			d.Urged++
		}
	}
	if goesOn {
		d.At = later(d.At, s.UrgedAt.Add(backoff(s.Dry, lastRetry, random)))
	}
	if !s.Due.At.IsZero() {
		if s.Due.Do >= Reselect && (d.Do < Reselect || !s.Due.Dry) {
			d.Dry = s.Due.Dry
		}
		d.Do, d.GivesUp = max(d.Do, s.Due.Do), s.Due.GivesUp
		if s.Due.At.Before(d.At) {
			d.At, d.Urged = later(s.Due.At, now), s.Due.Urged
		}
	}
	if s.over(now) {
		d.Do, d.Dry = Anew, false
	}
	return d
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// refreshAfter is the pause before the next refresh: a fifth of the remaining
// life, up to a tenth of it earlier by chance. However short the life is, there is a
// pause: who answers with lives that have ended must not be asked without end.
func refreshAfter(s State, now time.Time, random float64) time.Duration {
	return max(minRefresh, time.Duration(float64(s.Expires.Sub(now))/5*(1-0.1*random)))
}

// backoff is the pause after n failures, less up to three tenths by chance.
func backoff(n int, limit time.Duration, random float64) time.Duration {
	wait := limit
	if n < 9 { // which is 51 s
		wait = min(limit, firstRetry<<n)
	}
	return wait - time.Duration(float64(wait)*0.3*random)
}

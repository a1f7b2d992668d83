// SPDX-License-Identifier: Apache-2.0

package conn

import "time"

// State is what the originator of a connection knows about it when it decides.
type State struct {
	Expires  time.Time // the earliest expiry of any segment of the path
	Index    int       // of the originator's segment: 0 for a client
	Length   int       // of the path, in segments
	Attempts int       // failed since the last success
	Up       bool      // established, as far as anybody said
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
	DataLost                   // packets do not come back although control is well
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

// The actions that Decide chooses from.
const (
	Refresh  Action = iota // Request again on the same path
	Reselect               // give the path up and Request another
	Either                 // Refresh and, if that fails, Reselect
)

// Decision is an action and its time. At is never before now.
type Decision struct {
	Do Action
	At time.Time
}

// Back-off between failed attempts: quick enough to find a replacement within a
// second, slow enough that a thousand clients without an endpoint cost little.
const (
	firstRetry = 100 * time.Millisecond
	maxRetry   = 5 * time.Second

	// samePathTries is how often the same path is asked again when nobody knows
	// whether packets flow: with the back-off above long enough for a daemon to
	// restart.
	samePathTries = 3

	// restartTries is the same for an endpoint that is gone: 0.6 s.
	restartTries = 2
)

// Decide is the policy of refresh and healing. data says what is known about
// packets; random is uniform in [0,1) and spreads what many do at once.
//
// The rules (protocol.md §2.8, §5.1, with back-off where the reference has none):
//
//   - established: refresh at a fraction of the shortest segment life;
//   - the path is down, or the control plane is gone: the same path again, at once;
//   - packets are lost, or a hop asks for it: another path, at once;
//   - an attempt failed: try again with back-off, on the same path while
//     packets flow or it is too early to tell, then on another one. The same
//     path is still asked first: what was away may be back, and packets may have
//     flowed all the time;
//   - an attempt failed and packets have stopped: another path at once;
//   - the endpoint is gone: another path after the time that a restart takes, even
//     if packets flow. It is the kernel of its namespace that answers.
func Decide(s State, e Event, data Data, now time.Time, random float64) Decision {
	switch e {
	case Established:
		return Decision{Refresh, now.Add(refreshAfter(s, now, random))}
	case AskedRefresh:
		return Decision{Refresh, now}
	case AskedReselect, DataLost:
		return Decision{Reselect, now}
	case PathDown, PeerLost:
		// Neither says that packets have stopped: a hop that restarts looks the
		// same as one that died (docs/adr/0003).
		return Decision{Refresh, now}
	}
	wait := backoff(s.Attempts, random)
	left := s.Expires.Sub(now)
	switch {
	case !s.Up:
		return Decision{Reselect, now.Add(wait)}
	case e == EndpointLost && s.Attempts == restartTries+1:
		return Decision{Either, now}
	case e == EndpointLost && s.Attempts > restartTries:
		return Decision{Either, now.Add(wait)}
	case data == Stopped:
		if s.Attempts <= 1 {
			wait = 0
		}
		return Decision{Reselect, now.Add(wait)}
	case left > 0 && (data == Flowing || s.Attempts <= samePathTries):
		return Decision{Refresh, now.Add(min(wait, left))}
	}
	return Decision{Either, now.Add(wait)}
}

// refreshAfter is the pause before the next refresh: a fifth of the remaining
// life for a client, up to two fifths further down the path, so that outer hops
// refresh before inner ones; up to a tenth of it earlier by chance.
func refreshAfter(s State, now time.Time, random float64) time.Duration {
	scale := 1.0 / 3
	if s.Length > 1 {
		scale = 0.2 + 0.2*float64(s.Index)/float64(s.Length)
	}
	left := s.Expires.Sub(now)
	if left <= 0 {
		return 0
	}
	return time.Duration(float64(left) * scale * (1 - 0.1*random))
}

func backoff(attempts int, random float64) time.Duration {
	wait := maxRetry
	if attempts < 6 {
		wait = firstRetry << attempts
	}
	return wait - time.Duration(float64(wait)*0.3*random)
}

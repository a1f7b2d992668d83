// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"slices"
	"sync"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

// suspects are the endpoints, and the nodes, that have not answered a moment ago or
// that a wire was taken away from. They are asked after all others, and never left
// out: they may be all there is, and well again.
//
// The registry lists a dead endpoint for up to a minute. Without suspects every
// client would find out for itself, and one that asks for another path could be
// sent back to where it comes from.
type suspects struct {
	mu    sync.Mutex
	marks map[string]mark // by endpoint or node, see keyOf; guarded by mu
}

// mark is one suspicion.
type mark struct {
	until time.Time
	// registered is until when the endpoint was registered when it was last seen; zero
	// if it was not seen yet. One that is registered for longer has come back.
	registered time.Time
	unlisted   bool // its node does not know it: when it is seen again it has come back
}

const (
	// suspectFor is how long the registry lists an endpoint that has died (§4.4).
	suspectFor = time.Minute
	// maxSuspects bounds the map: what is forgotten costs one attempt each.
	maxSuspects = 1024
)

// doubt is how little is expected of a candidate.
type doubt int

const (
	none doubt = iota
	ofNode
	ofEndpoint
)

// leastDoubtfulFirst orders candidates by what is expected of them, and leaves those
// of whom the same is expected in the order in which they were.
func leastDoubtfulFirst(cs []candidate, doubtOf func(*candidate) doubt) {
	slices.SortStableFunc(cs, func(a, b candidate) int { return int(doubtOf(&a)) - int(doubtOf(&b)) })
}

// keyOf is the key of an endpoint. One that listens elsewhere is another one.
func keyOf(c *candidate) string { return c.url + " " + c.name }

// failed marks a candidate that did not answer. A node is under suspicion with an
// endpoint of it: who of the two was silent cannot be told from here.
func (s *suspects) failed(c *candidate, err error, now time.Time) {
	switch r := nserr.From(err).Reason; {
	case r == nserr.EndpointGone: // its node has said so
		s.mark(c, now, keyOf(c))
	case r == nserr.UnknownEndpoint:
		s.mark(c, now, keyOf(c))
		s.unlist(c)
	case r.Unanswered(), r == nserr.NoForwarder, r == nserr.ForwarderGone, r == nserr.ForwardersFailed:
		s.wasLeft(c, now)
	}
}

// wasLeft marks a candidate that a wire is taken away from, and its node: whatever is
// broken may be the way there.
func (s *suspects) wasLeft(c *candidate, now time.Time) {
	keys := []string{keyOf(c)}
	if !c.local() {
		keys = append(keys, c.url)
	}
	s.mark(c, now, keys...)
}

func (s *suspects) mark(c *candidate, now time.Time, keys ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		before, known := s.marks[key]
		if !known && len(s.marks) >= maxSuspects {
			s.marks = nil
		}
		if s.marks == nil {
			s.marks = make(map[string]mark)
		}
		s.marks[key] = mark{until: now.Add(suspectFor), registered: c.registered, unlisted: before.unlisted}
	}
}

func (s *suspects) unlist(c *candidate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.marks[keyOf(c)]
	m.unlisted = true
	s.marks[keyOf(c)] = m
}

// answered clears an endpoint and its node.
func (s *suspects) answered(c *candidate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.marks, keyOf(c))
	delete(s.marks, c.url)
}

// seen takes notice of how the registry knows a candidate, and clears it if it has
// registered since it was marked.
func (s *suspects) seen(c *candidate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.marks[keyOf(c)]
	switch {
	case !ok || c.registered.IsZero():
	case m.unlisted, !m.registered.IsZero() && c.registered.After(m.registered):
		delete(s.marks, keyOf(c))
		delete(s.marks, c.url)
	case m.registered.IsZero():
		m.registered = c.registered
		s.marks[keyOf(c)] = m
	}
}

// doubt returns what is expected of a candidate now.
func (s *suspects) doubt(c *candidate, now time.Time) doubt {
	s.mu.Lock()
	defer s.mu.Unlock()
	is := func(key string) bool { return now.Before(s.marks[key].until) }
	switch {
	case is(keyOf(c)):
		return ofEndpoint
	case is(c.url):
		return ofNode
	}
	return none
}

// order takes notice of candidates and puts those under suspicion last.
func (s *suspects) order(cs []candidate, now time.Time) {
	for i := range cs {
		s.seen(&cs[i])
	}
	leastDoubtfulFirst(cs, func(c *candidate) doubt { return s.doubt(c, now) })
}

// SPDX-License-Identifier: Apache-2.0

// Package path is the list of hops that a connection runs through.
//
// Each hop owns one Segment: its name, its own id for the connection, the token
// that says who it is, and the time until which that token is good. The path is
// at once the audit trail, the material of authorisation, the clock of refresh
// and expiry, and the correlation id (protocol.md §2.3, §2.4).
//
//	client ─▶ manager ─▶ forwarder ─▶ endpoint
//	 seg 0      seg 1      seg 2        seg 3       Index: whose turn it is
//
// All functions are pure and never change the path they are given.
package path

import (
	"slices"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

// MaxSegments bounds a path. Two nodes need 6, two domains 8, every
// pass-through endpoint 3 more: 64 leaves room for chains of services that
// nobody has built and stops a request that runs in circles.
const MaxSegments = 64

// MaxID bounds segment names and ids in bytes: a DNS name is the longest either
// can reasonably be.
const MaxID = 253

// MaxMetrics and MaxMetric bound what a segment says of its hop: how many, and each value
// in bytes. Ours say two things, the reference's a few for each of its interfaces.
const (
	MaxMetrics = 64
	MaxMetric  = 1024
)

// Segment is one hop's part of a path.
type Segment struct {
	Name    string    // of the hop, unique in its domain
	ID      string    // of the connection at this hop
	Token   string    // while a request travels: of this hop for the next (§2.5)
	Expires time.Time // zero when unknown
	Metrics map[string]string
}

// Path is what a connection has passed so far and, after the first round, what
// it is going to pass again.
type Path struct {
	Index    int // of the segment of whoever sends or holds the message
	Segments []Segment
}

// Current returns the segment at Index. The path must be valid and not empty.
func (p Path) Current() Segment { return p.Segments[p.Index] }

// Prev returns the segment before Index, ok is false for the originator.
func (p Path) Prev() (s Segment, ok bool) {
	if p.Index < 1 || p.Index > len(p.Segments) {
		return Segment{}, false
	}
	return p.Segments[p.Index-1], true
}

// Next returns the segment behind Index, ok is false when Index is the last.
func (p Path) Next() (s Segment, ok bool) {
	if p.Index+1 >= len(p.Segments) {
		return Segment{}, false
	}
	return p.Segments[p.Index+1], true
}

// Validate checks what must hold for every path that arrives from a peer:
// bounded, Index inside, each segment named and identified, no id twice, and no
// segment with more metrics than it may have.
// The empty path is valid.
func (p Path) Validate() error {
	return Validate(p.Index, len(p.Segments), func(i int) (name, id string, metrics map[string]string) {
		return p.Segments[i].Name, p.Segments[i].ID, p.Segments[i].Metrics
	})
}

// Validate is Path.Validate for a path of another form, which has n segments.
func Validate(index, n int, segment func(i int) (name, id string, metrics map[string]string)) error {
	switch {
	case n == 0 && index == 0:
		return nil
	case n > MaxSegments:
		return nserr.LoopingPath.Errorf("path has %d segments, at most %d are allowed", n, MaxSegments)
	case index < 0 || index >= n:
		return nserr.BadPath.Errorf("path index is %d, but the path has %d segments", index, n)
	}
	for i := range n {
		name, id, metrics := segment(i)
		switch {
		case name == "":
			return nserr.BadPath.Errorf("path segment %d has no name", i)
		case id == "":
			return nserr.BadPath.Errorf("path segment %d (%s) has no id", i, name)
		case len(name) > MaxID || len(id) > MaxID:
			return nserr.BadPath.Errorf("path segment %d has a name or id of more than %d bytes", i, MaxID)
		case len(metrics) > MaxMetrics:
			return nserr.BadPath.Errorf("path segment %d (%s) has %d metrics, at most %d are allowed", i, name, len(metrics), MaxMetrics)
		}
		for k, v := range metrics {
			if len(k) > MaxID || len(v) > MaxMetric {
				return nserr.BadPath.Errorf("path segment %d (%s): metric %.40q is longer than %d bytes, or its name than %d", i, name, k, MaxMetric, MaxID)
			}
		}
		// A hop may stand in a path more than once (a pass-through endpoint sends
		// its request back to the same manager), but each time with another id:
		// the same id again, in the part already passed, is a circle.
		for j := range i {
			if before, same, _ := segment(j); same == id && i <= index {
				return nserr.LoopingPath.Errorf("path segments %d (%s) and %d (%s) have the same id", j, before, i, name)
			}
		}
	}
	return nil
}

// Enter is the path as the server called name sees it when a request arrives
// whose sender stands at p.Index with connection id connID (§2.4). A hop that is
// passed again finds the id that it had (refresh). One in the place of another hop
// (re-route) has none yet, nor has a new one.
//
// Index of the result points to the server's own segment. It shares its segments with p,
// unless one of them is another.
func Enter(p Path, connID, name string) (Path, error) {
	if err := p.Validate(); err != nil {
		return Path{}, err
	}
	if len(p.Segments) == 0 {
		return Path{Segments: []Segment{{Name: name, ID: connID}}}, nil
	}
	if p.Current().Name == name {
		return p, nil
	}
	if have := p.Current().ID; have != connID {
		return Path{}, nserr.SegmentID.Errorf("Current PathSegment.Id==%q should be equal Connection.Id==%q", have, connID)
	}
	out := p
	out.Index++
	switch {
	case out.Index == len(out.Segments):
		out.Segments = append(slices.Clip(out.Segments), Segment{Name: name})
	case out.Segments[out.Index].Name != name:
		out.Segments = slices.Clone(out.Segments)
		out.Segments[out.Index] = Segment{Name: name}
	}
	if len(out.Segments) > MaxSegments {
		return Path{}, nserr.LoopingPath.Errorf("path would have %d segments, at most %d are allowed", len(out.Segments), MaxSegments)
	}
	return out, nil
}

// Trim cuts what is behind Index. The hop where a path ends does so, and nobody
// else, so that the tail of an earlier route does not stay for ever.
func Trim(p Path) Path {
	p.Segments = slices.Clip(p.Segments[:p.Index+1])
	return p
}

// Clone returns a path that shares no segment with p (metrics maps are shared
// and must not be written to).
func (p Path) Clone() Path {
	p.Segments = slices.Clone(p.Segments)
	return p
}

// Expires is the earliest expiry of any segment, zero if one is not known.
func (p Path) Expires() time.Time {
	var first time.Time
	for i, s := range p.Segments {
		if s.Expires.IsZero() {
			return time.Time{}
		}
		if i == 0 || s.Expires.Before(first) {
			first = s.Expires
		}
	}
	return first
}

// Tokens returns the tokens of the segments up to and including index last.
func (p Path) Tokens(last int) []string {
	out := make([]string, 0, last+1)
	for _, s := range p.Segments[:last+1] {
		out = append(out, s.Token)
	}
	return out
}

// SPDX-License-Identifier: Apache-2.0

package client

import (
	"slices"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/path"
)

// concerns reports whether what a manager tells of a connection concerns the path
// that a wire is known to have. What it tells comes on another stream than its
// answers, so it may be late: of a path that the wire has left, or from before the
// last answer, which the age of the manager's own token shows. That a connection is
// up may be told of another way behind the manager: an endpoint on the way has
// changed its own part.
func concerns(known, told path.Path, up bool) bool {
	if told.Validate() != nil || told.Index > 1 || !sameWire(known, told) {
		return false
	}
	was, is := known.Segments[1].Expires, told.Segments[1].Expires
	if !is.IsZero() && is.Before(was) {
		return false
	}
	return up || slices.EqualFunc(known.Segments, told.Segments, sameSegment)
}

// sameWire reports whether two paths begin with the same wire and manager.
func sameWire(a, b path.Path) bool {
	return len(a.Segments) >= 2 && len(b.Segments) >= 2 && slices.EqualFunc(a.Segments[:2], b.Segments[:2], sameSegment)
}

func sameSegment(a, b path.Segment) bool { return a.Name == b.Name && a.ID == b.ID }

// concerned reports whether an event is about the wire as it is, and learns the
// path from one that says that it is up.
func (w *Wire) concerned(c *networkservice.Connection) bool {
	told, up := hop.PathOf(c), c.GetState() == networkservice.State_UP
	w.mu.Lock()
	defer w.mu.Unlock()
	if !concerns(w.path, told, up) {
		if told.Validate() != nil || !sameWire(w.path, told) && !w.over { // else it was true once
			w.client.manager.Ignore(w.id, "it is of no path that the wire has had")
		}
		return false
	}
	if up {
		w.path = told
	}
	return true
}

// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"container/list"
	"slices"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/path"
)

// spare is how many connections of a peer are remembered that nobody has subscribed
// to. The event of a Request comes before its subscription, so as many Requests as
// this may be under way.
const spare = 1 << 14

// known is what a peer has told of own connections: which it has, and which of
// them are down. What a peer tells costs memory, so only the latest is kept of what
// nobody asked for, and no messages.
type known struct {
	byID  map[string]*list.Element
	order *list.List // of what was heard, the oldest first
}

type heard struct {
	id   string
	down bool
}

func newKnown() *known { return &known{byID: make(map[string]*list.Element), order: list.New()} }

func (k *known) get(id string) (down, ok bool) {
	e, ok := k.byID[id]
	return ok && e.Value.(*heard).down, ok
}

func (k *known) set(id string, down bool) {
	if e, ok := k.byID[id]; ok {
		e.Value.(*heard).down = down
		k.order.MoveToBack(e)
		return
	}
	k.byID[id] = k.order.PushBack(&heard{id, down})
}

func (k *known) delete(id string) {
	if e, ok := k.byID[id]; ok {
		k.order.Remove(e)
		delete(k.byID, id)
	}
}

// trim forgets the oldest until no more than most are left. What is wanted stays
// in any case.
func (k *known) trim(most int, wanted func(id string) bool) {
	for range k.order.Len() {
		if k.order.Len() <= most {
			return
		}
		e := k.order.Front()
		if id := e.Value.(*heard).id; wanted(id) {
			k.order.MoveToBack(e) // not looked at again soon
		} else {
			k.delete(id)
		}
	}
}

// passes reports whether a connection passes the hop of that name anywhere.
func passes(conn *networkservice.Connection, name string) bool {
	return slices.ContainsFunc(conn.GetPath().GetPathSegments(), func(s *networkservice.PathSegment) bool { return s.GetName() == name })
}

// ownID returns the id that the connection of a peer's event has here, "" when it
// does not come from here. The path may pass here more than once: the event is of
// the segment before the peer's own, at which the index is, or, as some hops of the
// reference have it, of the one at the index (protocol.md §2.11).
func ownID(conn *networkservice.Connection, name string) string {
	segments := conn.GetPath().GetPathSegments()
	at := int(conn.GetPath().GetIndex())
	for _, i := range []int{at - 1, at} {
		if i >= 0 && i < len(segments) && segments[i].GetName() == name && len(segments[i].GetId()) <= path.MaxID {
			return segments[i].GetId()
		}
	}
	return ""
}

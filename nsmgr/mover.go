// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"slices"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/hop"
)

// mover asks the clients of wires to take other paths, a few at a time. A client makes
// the new path before the old one is closed (docs/adr/0006), and one that finds none
// stays where it is.
type mover struct {
	monitor *hop.Monitor
	pause   time.Duration  // between two asks of a client at most; they double up to it
	asked   map[string]ask // by id of the wire; also of those that have moved
}

// ask is when a client was asked to move.
type ask struct {
	first, last time.Time
	again       time.Duration // after last
}

const (
	// askAgain is how long a client that was asked to move has for it.
	askAgain = 5 * time.Second
	// maxMoving is how many wires move at once: enough to keep a node busy, and few
	// enough for the endpoints that all of them go to.
	maxMoving = 64
	// movingTick is how often is looked who has moved: the monitor tells of changes,
	// but not that it is time to ask again.
	movingTick = 100 * time.Millisecond
)

func newMover(m *hop.Monitor, pause time.Duration) *mover {
	return &mover{monitor: m, pause: pause, asked: make(map[string]ask)}
}

// move asks those of the wires that are to move whose turn it is.
func (v *mover) move(ids []string, now time.Time) {
	for _, id := range due(v.asked, ids, now) {
		a := v.asked[id]
		if a.first.IsZero() {
			a = ask{first: now, again: askAgain}
		} else {
			a.again = min(2*a.again, v.pause)
		}
		a.last = now
		v.asked[id] = a
		v.monitor.Amend(id, func(c *networkservice.Connection) bool {
			c.State = networkservice.State_RESELECT_REQUESTED
			return true
		})
	}
}

// stuck reports whether a wire, which is still to move, was asked long ago.
func (v *mover) stuck(id string, now time.Time) bool {
	a, ok := v.asked[id]
	return ok && now.Sub(a.first) >= askAgain
}

// due returns which of the wires that are still to move are asked now. Those that have
// not been asked come first, then those that have waited longest; and no more than
// leaves maxMoving that have time yet. One that lets its time pass does not hold up the
// others.
func due(asked map[string]ask, ids []string, now time.Time) []string {
	moving := 0
	var out []string
	for _, id := range ids {
		a, ok := asked[id]
		if ok && now.Sub(a.last) < askAgain {
			moving++
		}
		if !ok || now.Sub(a.last) >= a.again {
			out = append(out, id)
		}
	}
	slices.SortStableFunc(out, func(x, y string) int { return asked[x].last.Compare(asked[y].last) })
	return out[:min(len(out), max(0, maxMoving-moving))]
}

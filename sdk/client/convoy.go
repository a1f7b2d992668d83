// SPDX-License-Identifier: Apache-2.0

package client

import (
	"math/rand/v2"
	"sync"
	"time"
)

// convoy has the refreshes of a client's wires go together, a few at a time. On a mesh
// that is idle most of what a refresh costs is to wake every process on the path: those
// that follow at once find them awake.
//
// It moves refreshes to marks, which are a power of two seconds apart, and a twentieth of
// the pause before the refresh at most: so much earlier some of them go. The wires of two
// clients do not meet at a mark but by chance.
type convoy struct {
	first time.Time // mark

	mu      sync.Mutex
	members map[time.Duration]int // by mark, since the first one; guarded by mu
}

const (
	// convoySize is how many refreshes go together. It bounds what a client with very
	// many wires asks for at one moment; others go when they are due.
	convoySize = 8
	// longestGap is between two marks: with tokens that live for 10 minutes it is 4 s.
	longestGap = 64 * time.Second
	// manyMarks is how many are remembered before those are forgotten that have passed.
	manyMarks = 128
)

func newConvoy(now time.Time) *convoy {
	return &convoy{first: now.Add(-rand.N(longestGap)), members: make(map[time.Duration]int)}
}

// join returns when to do what is due at the given time: not later, and after now.
func (c *convoy) join(due, now time.Time) time.Time {
	gap := longestGap
	for gap > due.Sub(now)/20 {
		if gap /= 2; gap < time.Second {
			return due
		}
	}
	mark := due.Sub(c.first).Truncate(gap)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.members[mark] == convoySize {
		return due
	}
	c.members[mark]++
	if len(c.members) > manyMarks {
		for m := range c.members {
			if c.first.Add(m).Before(now) {
				delete(c.members, m)
			}
		}
	}
	return c.first.Add(mark)
}

// SPDX-License-Identifier: Apache-2.0

package client

import (
	"math/rand/v2"
	"sync/atomic"
)

// spread gives the chance by which the refreshes of a client's wires are spread over time,
// so that few of them happen in the same second. Numbers that are truly random would leave
// that to chance: these begin with one and go on by the golden ratio, so that those that
// follow each other lie evenly, however many they are (an additive recurrence: Knuth, The
// Art of Computer Programming 3, §6.4).
type spread struct{ at atomic.Uint64 } // of 2⁶⁴

// golden is 2⁶⁴ divided by the golden ratio.
const golden = 0x9e3779b97f4a7c15

func newSpread() *spread {
	s := &spread{}
	s.at.Store(rand.Uint64())
	return s
}

// next returns a number in [0, 1).
func (s *spread) next() float64 { return float64(s.at.Add(golden)>>11) / (1 << 53) }

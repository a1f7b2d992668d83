// SPDX-License-Identifier: Apache-2.0

package mux

import "sync"

// Scratch is the memory that devices need while packets pass, and share. Packets of others
// stay in it: nobody reads more than what has just been put there. The zero value is ready
// for use, by many at a time.
type Scratch struct {
	units  sync.Pool // of *[maxUnit]byte, for those who read
	trains sync.Pool // of *train, for those who write
}

// unit returns room for a unit.
func (s *Scratch) unit() *[maxUnit]byte {
	if b, ok := s.units.Get().(*[maxUnit]byte); ok {
		return b
	}
	return new([maxUnit]byte)
}

// putUnit takes back what unit has lent.
func (s *Scratch) putUnit(b *[maxUnit]byte) { s.units.Put(b) }

// train returns an empty train; verify says whether it verifies checksums.
func (s *Scratch) train(verify bool) *train {
	t, ok := s.trains.Get().(*train)
	if !ok {
		t = new(train)
	}
	t.verify = verify
	return t
}

// putTrain takes back what train has lent.
func (s *Scratch) putTrain(t *train) {
	t.head, t.packets, t.open = nil, 0, false
	s.trains.Put(t)
}

// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net/netip"
	"slices"
	"sort"
)

// span is the addresses from lo to hi, both included, of one family.
type span struct{ lo, hi netip.Addr }

// space is the free addresses of one prefix. Its size depends on how scattered
// they are, not on how many: an untouched /64 is one span. Looking up, taking
// and putting back are a binary search and at most one shift of the slice,
// which is short where the work is: at the lowest addresses.
type space struct {
	prefix netip.Prefix // masked
	free   []span       // descending, disjoint, with a gap between any two
}

func newSpace(prefix netip.Prefix) *space {
	return &space{prefix: prefix.Masked(), free: []span{spanOf(prefix)}}
}

// find returns the index of the highest free span that begins at or before a.
func (s *space) find(a netip.Addr) int {
	return sort.Search(len(s.free), func(i int) bool { return s.free[i].lo.Compare(a) <= 0 })
}

// has reports whether a is in the space and free.
func (s *space) has(a netip.Addr) bool {
	i := s.find(a)
	return i < len(s.free) && a.Compare(s.free[i].hi) <= 0
}

// take makes a used. It panics when a is not free: that is a defect here, and
// going on would give one address to two wires.
func (s *space) take(a netip.Addr) {
	if !s.has(a) {
		panic("ipam: " + a.String() + " is taken twice")
	}
	i := s.find(a)
	f := s.free[i]
	switch {
	case f.lo == f.hi:
		s.free = slices.Delete(s.free, i, i+1)
	case a == f.lo:
		s.free[i].lo = a.Next()
	case a == f.hi:
		s.free[i].hi = a.Prev()
	default:
		s.free[i].lo = a.Next()
		s.free = slices.Insert(s.free, i+1, span{f.lo, a.Prev()})
	}
}

// put makes a, which was taken, free again.
func (s *space) put(a netip.Addr) {
	i := s.find(a) // the span below; the one above is i-1
	joinsAbove := i > 0 && a.Next() == s.free[i-1].lo
	joinsBelow := i < len(s.free) && s.free[i].hi.Next() == a
	switch {
	case joinsAbove && joinsBelow:
		s.free[i-1].lo = s.free[i].lo
		s.free = slices.Delete(s.free, i, i+1)
	case joinsAbove:
		s.free[i-1].lo = a
	case joinsBelow:
		s.free[i].hi = a
	default:
		s.free = slices.Insert(s.free, i, span{a, a})
	}
}

// lowestTwo returns the two lowest free addresses outside the barred spans,
// which are as union returns them.
func (s *space) lowestTwo(barred []span) (first, second netip.Addr, ok bool) {
	for _, f := range slices.Backward(s.free) {
		// Next of the very last address of a family is invalid and ends the loop.
		for a := f.lo; a.IsValid() && a.Compare(f.hi) <= 0; a = a.Next() {
			i := sort.Search(len(barred), func(i int) bool { return a.Compare(barred[i].hi) <= 0 })
			if i < len(barred) && barred[i].lo.Compare(a) <= 0 {
				a = barred[i].hi
				continue
			}
			if first.IsValid() {
				return first, a, true
			}
			first = a
		}
	}
	return netip.Addr{}, netip.Addr{}, false
}

// spanOf returns the addresses of a prefix.
func spanOf(p netip.Prefix) span {
	last := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(last); bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	hi, _ := netip.AddrFromSlice(last)
	return span{p.Masked().Addr(), hi}
}

// union returns what the prefixes cover: ascending, disjoint. Invalid prefixes
// cover nothing.
func union(prefixes []netip.Prefix) []span {
	var spans []span
	for _, p := range prefixes {
		if p.IsValid() {
			spans = append(spans, spanOf(p))
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return a.lo.Compare(b.lo) })
	merged := spans[:0]
	for _, s := range spans {
		// Two prefixes are disjoint or one contains the other, the larger one
		// of two that begin together perhaps second.
		if n := len(merged); n > 0 && s.lo.Compare(merged[n-1].hi) <= 0 {
			if merged[n-1].hi.Less(s.hi) {
				merged[n-1].hi = s.hi
			}
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

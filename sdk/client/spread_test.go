// SPDX-License-Identifier: Apache-2.0

package client

import "testing"

// Of any hundred that follow each other every tenth has its share.
func TestSpreadIsEven(t *testing.T) {
	s := newSpread()
	var last [100]int
	var tenths [10]int
	for i := range 10_000 {
		x := s.next()
		if x < 0 || x >= 1 {
			t.Fatalf("%v", x)
		}
		if i >= len(last) {
			tenths[last[i%len(last)]]--
		}
		last[i%len(last)] = int(x * 10)
		tenths[last[i%len(last)]]++
		if i < len(last) {
			continue
		}
		for tenth, n := range tenths {
			if n < 8 || n > 12 {
				t.Fatalf("%d of the %d numbers up to number %d lie in tenth %d", n, len(last), i, tenth)
			}
		}
	}
	if a, b := newSpread().next(), newSpread().next(); a == b {
		t.Errorf("two clients begin with %v", a)
	}
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"flag"
	"fmt"
	"slices"
	"testing"
)

var (
	schedules = flag.Uint64("schedules", 10, "how many random schedules TestSchedules plays")
	firstSeed = flag.Uint64("schedule-seed", 0, "the seed of the first of them")
	replay    = flag.String("schedule", "", "a schedule to play in their place")
)

// Whatever happens to a mesh, no two clients have an address in common at any time, no
// hop has a wire twice or after its end, and once all is well again so are all wires,
// and nothing else is left. What fails is made as short as may be, and printed.
func TestSchedules(t *testing.T) {
	if *replay != "" {
		report(t, ParseSchedule(*replay))
		return
	}
	for seed := *firstSeed; seed < *firstSeed+*schedules; seed++ {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { report(t, RandomSchedule(seed)) })
	}
}

func report(t *testing.T, s Schedule) {
	t.Helper()
	wrong := Play(t, s)
	if len(wrong) == 0 {
		return
	}
	short, why := shrink(t, s, wrong)
	t.Errorf("%s\nafter %d steps of %d; play them again with\n\tgo test ./test/sim -run TestSchedules -schedule %q", why[0], len(short), len(s), short)
	for _, w := range why[1:] {
		t.Errorf("and %s", w)
	}
}

// shrink drops steps as long as the schedule still fails, many at once at first. It
// does not take for ever.
func shrink(t *testing.T, s Schedule, wrong []string) (Schedule, []string) {
	plays := 0
	for size := (len(s) + 1) / 2; size > 0; size /= 2 {
		for at := 0; at+size <= len(s) && plays < 100; plays++ {
			shorter := slices.Delete(slices.Clone(s), at, at+size)
			if w := Play(t, shorter); len(w) > 0 {
				s, wrong = shorter, w
			} else {
				at += size
			}
		}
	}
	return s, wrong
}

// A schedule that fails is found to fail by what is left of it when it is shrunk, and
// reads back as it was printed.
func TestShrink(t *testing.T) {
	s := RandomSchedule(1)
	if got := ParseSchedule(s.String()); !slices.Equal(got, s) {
		t.Errorf("%q reads back as %q", s, got)
	}
	if again := RandomSchedule(1); !slices.Equal(again, s) {
		t.Errorf("the seed gives %q, and then %q", s, again)
	}
	bad := slices.Concat(Schedule{"open web-0", "pass 1s"}, Schedule{"trip web-0"}, Schedule{"close web-0", "pass 10s", "rotate registry"})
	wrong := Play(t, bad)
	if len(wrong) != 1 {
		t.Fatalf("%q: wrong is %q", bad, wrong)
	}
	if short, why := shrink(t, bad, wrong); !slices.Equal(short, Schedule{"trip web-0"}) || len(why) != 1 {
		t.Errorf("shrunk to %q: %q", short, why)
	}
}

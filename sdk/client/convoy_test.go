// SPDX-License-Identifier: Apache-2.0

package client

import (
	"math/rand/v2"
	"testing"
	"time"
)

// However many wires there are, none is refreshed later than it is due, nor much earlier,
// and no more than a few go at one moment.
func TestConvoy(t *testing.T) {
	for _, tt := range []struct {
		name        string
		wires       int
		pause       time.Duration
		early       time.Duration // at most
		wakes       int           // at most, per pause; there is chance in it
		atOneMoment int
	}{
		{"one", 1, 2 * time.Minute, 4 * time.Second, 2, 1},
		{"a hundred", 100, 2 * time.Minute, 4 * time.Second, 60, convoySize},
		{"ten thousand", 10_000, 2 * time.Minute, 4 * time.Second, 10_000, convoySize},
		{"long lives", 50, 4 * time.Hour, longestGap, 50, convoySize},
		{"short lives", 100, 10 * time.Second, 0, 105, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begun := time.Now()
			c := newConvoy(begun)
			due := make([]time.Time, tt.wires)
			const rounds = 10
			moments := make(map[time.Time]int)
			for range rounds {
				for i := range due {
					now := due[i]
					if now.IsZero() {
						now = begun
					}
					at := now.Add(tt.pause - rand.N(tt.pause/10))
					due[i] = c.join(at, now)
					if early := at.Sub(due[i]); early < 0 || early > tt.early || !due[i].After(now) {
						t.Fatalf("%v after now, %v early", due[i].Sub(now), early)
					}
					moments[due[i]]++
				}
			}
			for at, n := range moments {
				if n > tt.atOneMoment {
					t.Errorf("%d refreshes after %v", n, at.Sub(begun))
				}
			}
			if n := len(moments); n > rounds*tt.wakes {
				t.Errorf("%d refreshes at %d moments", rounds*tt.wires, n)
			}
			if len(c.members) > 2*manyMarks {
				t.Errorf("%d marks are remembered", len(c.members))
			}
		})
	}
}

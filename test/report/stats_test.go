// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math/rand/v2"
	"testing"
)

func TestRatio(t *testing.T) {
	for _, tc := range []struct {
		name string
		a, b []float64
		want Spread
	}{
		{"nothing measured", nil, nil, Spread{}},
		{"odd", []float64{1, 2, 4}, []float64{1, 1, 8}, Spread{Median: 1, Low: 0.5, High: 2, Min: 0.5, Max: 2}},
		{"even", []float64{1, 1, 1, 1}, []float64{4, 1, 2, 3}, Spread{Median: 2.5, Low: 1, High: 4, Min: 1, Max: 4}},
		// The machine is half as fast in the second round: the pairs do not see it.
		{"slow round", []float64{10, 5}, []float64{10, 5}, Spread{Median: 1, Low: 1, High: 1, Min: 1, Max: 1}},
		{"a failed round is left out", []float64{0, 2}, []float64{3, 1}, Spread{Median: 0.5, Low: 0.5, High: 0.5, Min: 0.5, Max: 0.5}},
	} {
		if got := (Pairs{tc.a, tc.b}).Ratio(); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

// The interval holds the true median as often as it says, of skewed values too.
func TestSpreadCovers(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const trials, median = 4000, 0.6931471805599453 // ln 2, of the exponential distribution
	for _, n := range []int{12, 20, 48} {
		missed := 0
		for range trials {
			values := make([]float64, n)
			for i := range values {
				values[i] = random.ExpFloat64()
			}
			if s := SpreadOf(values); median < s.Low || median > s.High {
				missed++
			}
		}
		if missed > trials*6/100 {
			t.Errorf("of %d values: missed the median in %d of %d trials", n, missed, trials)
		}
	}
}

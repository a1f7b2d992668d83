// SPDX-License-Identifier: Apache-2.0

package report

import (
	"cmp"
	"math"
	"slices"

	"github.com/openvwire/nsm/test/bench/probe"
)

// Spread is the middle and the ends of some values.
type Spread struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"` // the true median is with 95 % not below Low
	High   float64 `json:"high"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// SpreadOf returns the spread of values, of none a zero one.
func SpreadOf(values []float64) Spread {
	n := len(values)
	if n == 0 {
		return Spread{}
	}
	s := slices.Sorted(slices.Values(values))
	// How many of n values lie below the true median is binomial(n, 1/2), whatever
	// their distribution: between ranks k and n+1-k in 95 % of all cases.
	k := max(1, int((float64(n)-1.96*math.Sqrt(float64(n)))/2))
	return Spread{Median: median(s), Low: s[k-1], High: s[n-k], Min: s[0], Max: s[n-1]}
}

// median of sorted values; of an even number of them the mean of the middle two.
func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// Pairs are the rounds of one comparison: A[i] and B[i] were measured one right
// after the other, in alternating order, so that what disturbs the machine for
// longer than a round disturbs both.
type Pairs struct {
	A []float64 `json:"a"`
	B []float64 `json:"b"`
}

// Add adds a round.
func (p *Pairs) Add(a, b float64) { p.A, p.B = append(p.A, a), append(p.B, b) }

// Ratio is the spread of B[i]/A[i]. Its median is not the ratio of the medians.
func (p Pairs) Ratio() Spread {
	ratios := make([]float64, 0, len(p.A))
	for i, a := range p.A {
		if a != 0 {
			ratios = append(ratios, p.B[i]/a)
		}
	}
	return SpreadOf(ratios)
}

// Quantile of unsorted values.
func Quantile[T cmp.Ordered](values []T, q float64) T {
	return probe.Quantile(slices.Sorted(slices.Values(values)), q)
}

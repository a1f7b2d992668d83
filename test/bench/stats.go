// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"slices"

	"github.com/openvwire/nsm/test/bench/probe"
)

// Spread is the middle and the ends of some values.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	s := slices.Sorted(slices.Values(values))
	return Spread{Median: median(s), Min: s[0], Max: s[len(s)-1]}
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
	A []float64 `json:"by_hand"`
	B []float64 `json:"wire"`
}

func (p *Pairs) add(a, b float64) { p.A, p.B = append(p.A, a), append(p.B, b) }

// ratio is the spread of B[i]/A[i]. Its median is not the ratio of the medians.
func (p Pairs) ratio() Spread {
	ratios := make([]float64, 0, len(p.A))
	for i, a := range p.A {
		if a != 0 {
			ratios = append(ratios, p.B[i]/a)
		}
	}
	return spreadOf(ratios)
}

// quantile of unsorted values.
func quantile[T cmp.Ordered](values []T, q float64) T {
	return probe.Quantile(slices.Sorted(slices.Values(values)), q)
}

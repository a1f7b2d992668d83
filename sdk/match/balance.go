// SPDX-License-Identifier: Apache-2.0

package match

import (
	"hash/fnv"
	"math/bits"
)

// Order returns the candidates in the order in which the turn-th client of a
// service should try them: the one whose turn it is, then the others behind it.
// Equal weights take strict turns; with different weights each candidate is
// first for its share of the clients.
//
// Being a function of turn alone it needs no state per endpoint, and endpoints
// may come and go between two calls.
func Order(candidates []Candidate, turn uint64) []Candidate {
	if len(candidates) < 2 {
		return candidates
	}
	first := int(turn % uint64(len(candidates)))
	if !equalWeights(candidates) {
		first = weighted(candidates, turn)
	}
	out := make([]Candidate, 0, len(candidates))
	out = append(out, candidates[first:]...)
	return append(out, candidates[:first]...)
}

// weighted lays the weights end to end and points into them with the multiples
// of the golden ratio modulo 1 (a Weyl sequence): any run of turns, short or
// long, is spread almost as evenly as it can be.
func weighted(candidates []Candidate, turn uint64) int {
	const golden = 0x9E3779B97F4A7C15 // 2^64 / φ
	var total uint64
	for _, c := range candidates {
		total += c.Weight
	}
	point, _ := bits.Mul64(turn*golden, total)
	for i, c := range candidates {
		if point < c.Weight {
			return i
		}
		point -= c.Weight
	}
	return 0 // all weights are zero
}

func equalWeights(candidates []Candidate) bool {
	for _, c := range candidates[1:] {
		if c.Weight != candidates[0].Weight {
			return false
		}
	}
	return true
}

// Seed is where a process starts counting turns for a service: a hash, so that
// forwarders that start together do not all begin with the same endpoint.
func Seed(forwarder, service string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(forwarder + "\x00" + service))
	return h.Sum64() >> 1
}

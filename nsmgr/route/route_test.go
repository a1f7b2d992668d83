// SPDX-License-Identifier: Apache-2.0

package route

import (
	"slices"
	"testing"

	"github.com/openvwire/nsm/sdk/match"
)

func TestForwarders(t *testing.T) {
	p2p := match.Labels{"p2p": "true"}
	all := []match.Endpoint{{Name: "a", Labels: p2p}, {Name: "b", Labels: p2p}, {Name: "c"}}
	for _, tt := range []struct {
		name    string
		matches []match.Match
		sticky  string
		want    []string
	}{
		{"in the order of registration", nil, "", []string{"a", "b", "c"}},
		{"the one on the path first", nil, "c", []string{"c", "a", "b"}},
		{"the one on the path is first already", nil, "a", []string{"a", "b", "c"}},
		{"the one on the path is gone", nil, "x", []string{"a", "b", "c"}},
		{"the one on the path cannot do it", []match.Match{{}}, "c", []string{"a", "b"}},
		{"nobody can", []match.Match{{Metadata: match.Labels{"fast": "yes"}}}, "a", nil},
	} {
		before := slices.Clone(all)
		if got := Forwarders(tt.matches, nil, all, tt.sticky); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if !slices.EqualFunc(before, all, func(a, b match.Endpoint) bool { return a.Name == b.Name }) {
			t.Errorf("%s: what was given has changed", tt.name)
		}
	}
}

func BenchmarkForwarders(b *testing.B) {
	p2p := match.Labels{"p2p": "true"}
	all := []match.Endpoint{{Name: "a", Labels: p2p}, {Name: "b", Labels: p2p}, {Name: "c", Labels: p2p}}
	matches := []match.Match{{Source: match.Labels{"app": "web"}, Metadata: p2p}, {Metadata: p2p}}
	b.ReportAllocs()
	for b.Loop() {
		if len(Forwarders(matches, match.Labels{"app": "db"}, all, "c")) != 3 {
			b.Fatal("not all of them")
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package match

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func candidateNames(cs []Candidate) []string {
	var out []string
	for _, c := range cs {
		out = append(out, c.Name)
	}
	return out
}

func TestEndpoints(t *testing.T) {
	fw := Endpoint{"fw", Labels{"app": "firewall"}}
	db1 := Endpoint{"db-1", Labels{"app": "db", "nodeName": "n1"}}
	db2 := Endpoint{"db-2", Labels{"app": "db", "nodeName": "n2"}}
	all := []Endpoint{fw, db1, db2}
	to := func(l Labels) []Route { return []Route{{Destination: l}} }

	for _, tt := range []struct {
		name    string
		matches []Match
		client  Labels
		want    []string
	}{
		{"no matches: all", nil, nil, []string{"fw", "db-1", "db-2"}},
		{"first match decides", []Match{
			{Source: Labels{"app": "firewall"}, Routes: to(Labels{"app": "db"})},
			{Routes: to(Labels{"app": "firewall"})},
		}, Labels{"app": "firewall"}, []string{"db-1", "db-2"}},
		{"source does not fit: next", []Match{
			{Source: Labels{"app": "firewall"}, Routes: to(Labels{"app": "db"})},
			{Routes: to(Labels{"app": "firewall"})},
		}, Labels{"app": "web"}, []string{"fw"}},
		{"empty result ends without fallthrough", []Match{
			{Routes: to(Labels{"app": "none"})},
			{Routes: to(Labels{"app": "db"})},
		}, nil, nil},
		{"empty result goes on with fallthrough", []Match{
			{Routes: to(Labels{"app": "none"}), Fallthrough: true},
			{Routes: to(Labels{"app": "db"})},
		}, nil, []string{"db-1", "db-2"}},
		{"template: endpoint on the client's node", []Match{
			{Routes: to(Labels{"nodeName": "{{.nodeName}}"}), Fallthrough: true},
			{Routes: to(Labels{"app": "firewall"})},
		}, Labels{"nodeName": "n2"}, []string{"db-2"}},
		{"template: falls through to another node", []Match{
			{Routes: to(Labels{"nodeName": "{{ .nodeName }}"}), Fallthrough: true},
			{Routes: to(Labels{"app": "firewall"})},
		}, Labels{"nodeName": "n9"}, []string{"fw"}},
		{"template with index", []Match{{Routes: to(Labels{"nodeName": `{{ index . "where" }}`})}}, Labels{"where": "n1"}, []string{"db-1"}},
		{"template with a missing key matches nothing", []Match{{Routes: to(Labels{"nodeName": "{{.nope}}"})}}, nil, nil},
		{"broken template is literal", []Match{{Routes: to(Labels{"nodeName": "{{"})}}, nil, nil},
		{"a loop is not run", []Match{{Routes: to(Labels{"nodeName": "{{range 1000000000}}{{end}}n1"})}}, nil, nil},
		{"a function is not called", []Match{{Routes: to(Labels{"nodeName": `{{printf "n%d" 1}}`})}}, nil, nil},
		{"nor is a variable set", []Match{{Routes: to(Labels{"nodeName": `{{$x := .where}}{{$x}}`})}}, Labels{"where": "n1"}, nil},
		{"nor a function at the end of a pipe", []Match{{Routes: to(Labels{"nodeName": `{{.where | printf "%s"}}`})}}, Labels{"where": "n1"}, nil},
		{"metadata without routes: all", []Match{{Metadata: Labels{"p2p": "true"}}}, nil, []string{"fw", "db-1", "db-2"}},
		{"match without routes: none", []Match{{}}, nil, nil},
		{"selector larger than the labels", []Match{{Routes: to(Labels{"app": "firewall", "x": "y"})}}, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := candidateNames(Endpoints(tt.matches, tt.client, all))
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The share of a destination is its weight, however many endpoints it has; an
// endpoint of two destinations has its part of both.
func TestShares(t *testing.T) {
	all := []Endpoint{{"v1-1", Labels{"v": "1"}}, {"v1-2", Labels{"v": "1"}}, {"v1-3", Labels{"v": "1", "size": "big"}}, {"v2-1", Labels{"v": "2"}}}
	one, two, big, none := Labels{"v": "1"}, Labels{"v": "2"}, Labels{"size": "big"}, Labels{"v": "9"}
	for _, tt := range []struct {
		name   string
		routes []Route
		want   map[string]float64
	}{
		{"weights", []Route{{one, 90}, {two, 10}}, map[string]float64{"v1-1": .3, "v1-2": .3, "v1-3": .3, "v2-1": .1}},
		{"0 counts as 1", []Route{{one, 0}, {two, 3}}, map[string]float64{"v1-1": 1. / 12, "v1-2": 1. / 12, "v1-3": 1. / 12, "v2-1": .75}},
		{"no weights", []Route{{one, 0}, {two, 0}}, map[string]float64{"v1-1": .25, "v1-2": .25, "v1-3": .25, "v2-1": .25}},
		{"of two destinations", []Route{{one, 3}, {big, 1}}, map[string]float64{"v1-1": .25, "v1-2": .25, "v1-3": .5}},
		{"of two without weights", []Route{{one, 0}, {big, 0}}, map[string]float64{"v1-1": .25, "v1-2": .25, "v1-3": .5}},
		{"a destination of nobody", []Route{{none, 90}, {two, 10}}, map[string]float64{"v2-1": 1}},
		{"the largest", []Route{{one, 1<<32 - 1}, {two, 1<<32 - 1}}, map[string]float64{"v1-1": 1. / 6, "v1-2": 1. / 6, "v1-3": 1. / 6, "v2-1": .5}},
	} {
		got := make(map[string]float64)
		total := 0.
		for _, c := range Endpoints([]Match{{Routes: tt.routes}}, nil, all) {
			got[c.Name] = float64(c.Weight)
			total += float64(c.Weight)
		}
		for name := range got {
			got[name] /= total
		}
		if diff := cmp.Diff(tt.want, got, cmpopts.EquateApprox(0, .001)); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

func TestForwarders(t *testing.T) {
	all := []Endpoint{{"vpp", Labels{"p2p": "true"}}, {"sriov", Labels{"p2p": "true", "fast": "yes"}}, {"odd", nil}}
	for _, tt := range []struct {
		name    string
		matches []Match
		want    []string
	}{
		{"no matches: all", nil, []string{"vpp", "sriov", "odd"}},
		{"default labels", []Match{{}}, []string{"vpp", "sriov"}},
		{"capability", []Match{{Metadata: Labels{"fast": "yes"}}}, []string{"sriov"}},
		{"empty metadata: any", []Match{{Metadata: Labels{}}}, []string{"vpp", "sriov", "odd"}},
		{"fallthrough", []Match{{Metadata: Labels{"fast": "no"}, Fallthrough: true}, {}}, []string{"vpp", "sriov"}},
		{"no fallthrough", []Match{{Metadata: Labels{"fast": "no"}}, {}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Forwarders(tt.matches, nil, all), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Over any run of turns each candidate is first for its share, give or take a
// few; with equal weights the run is strict.
func TestOrderHonoursWeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "candidates")
		var cs []Candidate
		var total float64
		for i := range n {
			w := rapid.Uint64Range(1, 20).Draw(t, "weight")
			cs = append(cs, Candidate{Name: fmt.Sprint(i), Weight: w})
			total += float64(w)
		}
		const turns = 1000
		start := rapid.Uint64().Draw(t, "start")
		firsts := map[string]float64{}
		for i := range uint64(turns) {
			got := Order(cs, start+i)
			if len(got) != n {
				t.Fatalf("%d of %d candidates", len(got), n)
			}
			seen := candidateNames(got)
			slices.Sort(seen)
			if len(slices.Compact(seen)) != n {
				t.Fatalf("a candidate twice in %v", got)
			}
			firsts[got[0].Name]++
		}
		for _, c := range cs {
			want := turns * float64(c.Weight) / total
			if got := firsts[c.Name]; got < want-8 || got > want+8 {
				t.Fatalf("%s with weight %d of %v was first %v times of %d, want about %.0f", c.Name, c.Weight, total, got, turns, want)
			}
		}
	})
}

func FuzzContains(f *testing.F) {
	f.Add("{{.nodeName}}", "n1")
	f.Add("{{range .}}{{.}}{{end}}", "x")
	f.Add(`{{printf "%d" 1}}`, "1")
	f.Add(`{{define "x"}}{{template "x"}}{{end}}{{template "x"}}`, "")
	f.Fuzz(func(t *testing.T, selector, value string) {
		l := Labels{"k": value}
		if !Contains(l, Labels{"k": value}, l) {
			t.Error("a label does not match itself")
		}
		Contains(l, Labels{"k": selector}, l)
	})
}

func TestApplies(t *testing.T) {
	web := Match{Source: Labels{"app": "web"}}
	for name, tt := range map[string]struct {
		matches []Match
		client  Labels
		want    bool
	}{
		"no rules":           {nil, nil, true},
		"a rule for all":     {[]Match{web, {}}, nil, true},
		"one of its own":     {[]Match{{Source: Labels{"app": "db"}}, web}, Labels{"app": "web", "x": "y"}, true},
		"a slip of the pen":  {[]Match{web}, Labels{"app": "wbe"}, false},
		"for those with one": {[]Match{web}, nil, false},
	} {
		if got := Applies(tt.matches, tt.client); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

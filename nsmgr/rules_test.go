// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/sdk/match"
)

func TestDisplaced(t *testing.T) {
	v1, v2, none := match.Labels{"v": "1"}, match.Labels{"v": "2"}, match.Labels{"v": "9"}
	web, batch := match.Labels{"app": "web"}, match.Labels{"app": "batch"}
	all := []match.Endpoint{{Name: "one", Labels: v1}, {Name: "two", Labels: v2}, {Name: "here", Labels: match.Labels{"nodeName": "n1"}}}
	to := func(destinations ...match.Labels) (routes []match.Route) {
		for i, d := range destinations {
			routes = append(routes, match.Route{Destination: d, Weight: uint32(i)})
		}
		return routes
	}
	wires := []placed{{"w1", web, "one"}, {"w2", batch, "two"}, {"w3", nil, "one"}, {"w4", web, "gone"}}
	for _, tt := range []struct {
		name           string
		rules          []match.Match
		wires          []placed
		move, stranded []string
	}{
		{"no rules: all stay", nil, wires, nil, nil},
		{"both are selected, with weights", []match.Match{{Routes: to(v1, v2)}}, wires, nil, nil},
		{"one version is left", []match.Match{{Routes: to(v2)}}, wires, []string{"w1", "w3"}, nil},
		{"each client its own", []match.Match{{Source: web, Routes: to(v2)}, {Routes: to(v1)}}, wires, []string{"w1", "w2"}, nil},
		{"a rule for some clients only", []match.Match{{Source: batch, Routes: to(v2)}}, wires, nil, []string{"w1", "w3"}},
		{"nobody is selected", []match.Match{{Routes: to(none)}}, wires, nil, []string{"w1", "w2", "w3"}},
		{"or somebody after all", []match.Match{{Routes: to(none), Fallthrough: true}, {Routes: to(v1)}}, wires, []string{"w2"}, nil},
		{"a rule about forwarders", []match.Match{{Metadata: match.Labels{"fast": "yes"}}}, wires, nil, nil},
		{"the client's node", []match.Match{{Routes: to(match.Labels{"nodeName": "{{.nodeName}}"})}},
			[]placed{{"w5", match.Labels{"nodeName": "n1"}, "one"}, {"w6", match.Labels{"nodeName": "n1"}, "here"}, {"w7", match.Labels{"nodeName": "n2"}, "one"}},
			[]string{"w5"}, []string{"w7"}},
	} {
		move, stranded := displaced(tt.rules, all, tt.wires)
		if !slices.Equal(move, tt.move) || !slices.Equal(stranded, tt.stranded) {
			t.Errorf("%s: %v move and %v are stranded, want %v and %v", tt.name, move, stranded, tt.move, tt.stranded)
		}
	}
}

func TestSameRules(t *testing.T) {
	service := func(payload, label string) *registry.NetworkService {
		return &registry.NetworkService{Name: "db", Payload: payload, PathIds: []string{payload},
			Matches: []*registry.Match{{Routes: []*registry.Destination{{DestinationSelector: map[string]string{"v": label}}}}}}
	}
	if !sameRules(service("IP", "1"), service("ETHERNET", "1")) {
		t.Error("what is no rule makes a difference")
	}
	if sameRules(service("IP", "1"), service("IP", "2")) || sameRules(service("IP", "1"), &registry.NetworkService{Name: "db"}) {
		t.Error("other rules make none")
	}
}

func TestDue(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	ids := func(from, to int) (out []string) {
		for i := from; i < to; i++ {
			out = append(out, fmt.Sprintf("w%03d", i))
		}
		return out
	}
	asked := func(when float64, again time.Duration, ids []string) map[string]ask {
		out := make(map[string]ask)
		for _, id := range ids {
			out[id] = ask{first: start, last: at(when), again: again}
		}
		return out
	}
	for _, tt := range []struct {
		name  string
		asked map[string]ask
		ids   []string
		now   float64
		want  []string
	}{
		{"a few at once", nil, ids(0, 3), 0, ids(0, 3)},
		{"no more than that", nil, ids(0, 1000), 0, ids(0, maxMoving)},
		{"those that are asked have time", asked(0, askAgain, ids(0, 3)), ids(0, 3), 4.9, nil},
		{"but not for ever", asked(0, askAgain, ids(0, 3)), ids(0, 3), 5, ids(0, 3)},
		{"nor are they asked all the time", asked(0, 20*time.Second, ids(0, 3)), ids(0, 3), 19.9, nil},
		{"all places are taken", asked(0, askAgain, ids(0, maxMoving)), ids(0, 1000), 1, nil},
		{"the next have those of the moved", asked(0, askAgain, ids(0, maxMoving)), ids(10, 1000), 1, ids(maxMoving, maxMoving+10)},
		{"and of those that do not move", asked(0, askAgain, ids(0, maxMoving)), ids(0, 1000), 6, ids(maxMoving, 2*maxMoving)},
		{"then it is the turn of those again", asked(0, askAgain, ids(0, maxMoving)), ids(0, maxMoving+1), 6, append(ids(maxMoving, maxMoving+1), ids(0, maxMoving-1)...)},
	} {
		if got := due(tt.asked, tt.ids, at(tt.now)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package query

import (
	"testing"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Zero is no time, and so never the earlier one.
func TestEarlier(t *testing.T) {
	never, soon, later := time.Time{}, time.Unix(1, 0), time.Unix(2, 0)
	for _, tt := range []struct{ a, b, want time.Time }{
		{soon, later, soon}, {later, soon, soon}, {never, later, later}, {later, never, later}, {never, never, never},
	} {
		if got := Earlier(tt.a, tt.b); !got.Equal(tt.want) {
			t.Errorf("of %v and %v: %v", tt.a, tt.b, got)
		}
	}
}

// The table of protocol.md §4.3.
func TestMatchEndpoint(t *testing.T) {
	nse := &api.NetworkServiceEndpoint{
		Name: "db-1", Url: "tcp://192.0.2.1:5001", NetworkServiceNames: []string{"db", "cache"},
		NetworkServiceLabels: map[string]*api.NetworkServiceLabels{"db": {Labels: map[string]string{"role": "primary", "zone": "a"}}},
		ExpirationTime:       &timestamppb.Timestamp{Seconds: 100, Nanos: 5},
	}
	labels := func(service string, pairs ...string) map[string]*api.NetworkServiceLabels {
		l := &api.NetworkServiceLabels{Labels: make(map[string]string)}
		for i := 0; i < len(pairs); i += 2 {
			l.Labels[pairs[i]] = pairs[i+1]
		}
		return map[string]*api.NetworkServiceLabels{service: l}
	}
	for _, tt := range []struct {
		name     string
		template *api.NetworkServiceEndpoint
		want     bool
	}{
		{"everything", nil, true},
		{"everything, too", &api.NetworkServiceEndpoint{}, true},
		{"its name", &api.NetworkServiceEndpoint{Name: "db-1"}, true},
		{"part of its name", &api.NetworkServiceEndpoint{Name: "db"}, false},
		{"part of its URL", &api.NetworkServiceEndpoint{Url: "192.0.2.1"}, true},
		{"another URL", &api.NetworkServiceEndpoint{Url: "192.0.2.2"}, false},
		{"one of its services", &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"cache"}}, true},
		{"one that it has not", &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"cache", "web"}}, false},
		{"some labels", &api.NetworkServiceEndpoint{NetworkServiceLabels: labels("db", "zone", "a")}, true},
		{"no labels of a service", &api.NetworkServiceEndpoint{NetworkServiceLabels: labels("db")}, true},
		{"another value", &api.NetworkServiceEndpoint{NetworkServiceLabels: labels("db", "zone", "b")}, false},
		{"a label that it has not, empty", &api.NetworkServiceEndpoint{NetworkServiceLabels: labels("db", "rack", "")}, false},
		{"labels of another service", &api.NetworkServiceEndpoint{NetworkServiceLabels: labels("cache", "zone", "a")}, false},
		{"its expiry to the second", &api.NetworkServiceEndpoint{ExpirationTime: &timestamppb.Timestamp{Seconds: 100}}, true},
		{"another expiry", &api.NetworkServiceEndpoint{ExpirationTime: &timestamppb.Timestamp{Seconds: 99}}, false},
	} {
		if got := Match(tt.template, nse); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestMatchService(t *testing.T) {
	matches := []*api.Match{{Fallthrough: true}, {SourceSelector: map[string]string{"a": "b"}}}
	ns := &api.NetworkService{Name: "db", Payload: "IP", Matches: matches}
	for _, tt := range []struct {
		name     string
		template *api.NetworkService
		want     bool
	}{
		{"everything", nil, true},
		{"its name", &api.NetworkService{Name: "db"}, true},
		{"part of its name", &api.NetworkService{Name: "d"}, false},
		{"its payload", &api.NetworkService{Payload: "IP"}, true},
		{"another payload", &api.NetworkService{Name: "db", Payload: "ETHERNET"}, false},
		{"its matches", &api.NetworkService{Matches: matches}, true},
		{"some of its matches", &api.NetworkService{Matches: matches[:1]}, false},
	} {
		if got := Match(tt.template, ns); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// Whatever template a peer sends: it does no harm, everything matches itself and
// the empty template.
func FuzzMatch(f *testing.F) {
	for _, nse := range []*api.NetworkServiceEndpoint{
		{}, {Name: "a", NetworkServiceNames: []string{"s"}, NetworkServiceLabels: map[string]*api.NetworkServiceLabels{"s": {Labels: map[string]string{"k": "v"}}, "t": nil}},
	} {
		raw, err := proto.Marshal(nse)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, raw)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		x, y := new(api.NetworkServiceEndpoint), new(api.NetworkServiceEndpoint)
		if proto.Unmarshal(a, x) != nil || proto.Unmarshal(b, y) != nil {
			return
		}
		if !Match(x, x) || !Match(&api.NetworkServiceEndpoint{}, x) {
			t.Errorf("%v does not match itself", x)
		}
		Match(x, y)
		v, w := new(api.NetworkService), new(api.NetworkService)
		if proto.Unmarshal(a, v) != nil || proto.Unmarshal(b, w) != nil {
			return
		}
		if !Match(v, v) {
			t.Errorf("%v does not match itself", v)
		}
		Match(v, w)
	})
}

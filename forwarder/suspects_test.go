// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

func named(url string, names ...string) (out []candidate) {
	for _, n := range names {
		out = append(out, candidate{name: n, url: url})
	}
	return out
}

func namesOf(cs []candidate) string {
	var names []string
	for _, c := range cs {
		names = append(names, c.name)
	}
	return strings.Join(names, " ")
}

func TestLeastDoubtfulFirst(t *testing.T) {
	for _, tt := range []struct {
		name   string
		doubts map[string]doubt
		want   string
	}{
		{"nobody is suspected: their turns", nil, "b c a d"},
		{"one is last", map[string]doubt{"b": ofEndpoint}, "c a d b"},
		{"whose turn it is among those who are not", map[string]doubt{"c": ofEndpoint}, "b a d c"},
		{"two keep their order", map[string]doubt{"b": ofEndpoint, "a": ofEndpoint}, "c d b a"},
		{"the node's other endpoints before the one that has failed", map[string]doubt{"b": ofEndpoint, "c": ofNode}, "a d c b"},
		{"all: nobody is left out", map[string]doubt{"a": ofEndpoint, "b": ofEndpoint, "c": ofEndpoint, "d": ofEndpoint}, "b c a d"},
	} {
		cs := named("tcp://n", "b", "c", "a", "d")
		leastDoubtfulFirst(cs, func(c *candidate) doubt { return tt.doubts[c.name] })
		if got := namesOf(cs); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestSuspects(t *testing.T) {
	now := time.Unix(1000, 0)
	far := func(name string) *candidate {
		return &candidate{name: name, url: "tcp://far", registered: now.Add(30 * time.Second)}
	}
	here := func(name string) *candidate {
		return &candidate{name: name, url: "inode://4/" + name, registered: now.Add(30 * time.Second)}
	}
	for _, tt := range []struct {
		name string
		do   func(s *suspects)
		of   *candidate
		at   time.Duration
		want doubt
	}{
		{"a stranger", func(*suspects) {}, far("a"), 0, none},
		{"gone", func(s *suspects) { s.failed(far("a"), nserr.EndpointGone, now) }, far("a"), 0, ofEndpoint},
		{"gone, its neighbour", func(s *suspects) { s.failed(far("a"), nserr.EndpointGone, now) }, far("b"), 0, none},
		{"not reachable", func(s *suspects) { s.failed(far("a"), nserr.PeerDown, now) }, far("a"), 0, ofEndpoint},
		{"not reachable, its neighbour", func(s *suspects) { s.failed(far("a"), nserr.PeerDown, now) }, far("b"), 0, ofNode},
		{"silent, its neighbour", func(s *suspects) { s.failed(far("a"), nserr.TimedOut, now) }, far("b"), 0, ofNode},
		{"without a forwarder, its neighbour", func(s *suspects) { s.failed(far("a"), nserr.NoForwarder, now) }, far("b"), 0, ofNode},
		{"silent here, its neighbour", func(s *suspects) { s.failed(here("a"), nserr.TimedOut, now) }, here("b"), 0, none},
		{"has refused, and so answered", func(s *suspects) { s.failed(far("a"), nserr.AddressesExhausted, now) }, far("a"), 0, none},
		{"left, its neighbour", func(s *suspects) { s.wasLeft(far("a"), now) }, far("b"), 0, ofNode},
		{"for a minute", func(s *suspects) { s.wasLeft(far("a"), now) }, far("a"), suspectFor - 1, ofEndpoint},
		{"not longer", func(s *suspects) { s.wasLeft(far("a"), now) }, far("a"), suspectFor, none},
		{"has answered", func(s *suspects) { s.wasLeft(far("a"), now); s.answered(far("a")) }, far("a"), 0, none},
		{"a neighbour has answered", func(s *suspects) { s.wasLeft(far("a"), now); s.answered(far("b")) }, far("a"), 0, ofEndpoint},
		{"a neighbour has answered, another one", func(s *suspects) { s.wasLeft(far("a"), now); s.answered(far("b")) }, far("c"), 0, none},
		{"still registered as before", func(s *suspects) { s.wasLeft(far("a"), now); s.seen(far("a")) }, far("a"), 0, ofEndpoint},
		{"registered anew", func(s *suspects) {
			s.wasLeft(far("a"), now)
			again := far("a")
			again.registered = again.registered.Add(time.Second)
			s.seen(again)
		}, far("b"), 0, none},
		{"registered anew after it was first seen", func(s *suspects) {
			wire := far("a")
			wire.registered = time.Time{} // as a wire knows it
			s.wasLeft(wire, now)
			s.seen(far("a"))
			again := far("a")
			again.registered = again.registered.Add(time.Second)
			s.seen(again)
		}, far("a"), 0, none},
		{"its node does not know it", func(s *suspects) { s.failed(far("a"), nserr.UnknownEndpoint, now) }, far("a"), 0, ofEndpoint},
		{"its node did not know it, and it is there again", func(s *suspects) {
			s.failed(far("a"), nserr.UnknownEndpoint, now)
			s.wasLeft(far("a"), now) // by a client that has not heard
			s.seen(far("a"))
		}, far("a"), 0, none},
		{"has another socket", func(s *suspects) { s.failed(here("a"), nserr.EndpointGone, now) }, &candidate{name: "a", url: "inode://4/new"}, 0, none},
	} {
		var s suspects
		tt.do(&s)
		if got := s.doubt(tt.of, now.Add(tt.at)); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestSuspectsAreBounded(t *testing.T) {
	var s suspects
	for i := range 10 * maxSuspects {
		s.wasLeft(&candidate{name: fmt.Sprint(i), url: fmt.Sprint("tcp://", i)}, time.Unix(1000, 0))
	}
	if n := len(s.marks); n > maxSuspects {
		t.Errorf("%d marks", n)
	}
}

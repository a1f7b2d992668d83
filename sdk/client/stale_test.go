// SPDX-License-Identifier: Apache-2.0

package client

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/path"
)

// Which of the things that a manager may tell are about the wire.
func TestConcerns(t *testing.T) {
	end := time.Unix(2000, 0)
	known := path.Path{Segments: []path.Segment{
		{Name: "web", ID: "web-0", Expires: end}, {Name: "manager", ID: "m", Expires: end}, {Name: "forwarder", ID: "f", Expires: end}, {Name: "db", ID: "e", Expires: end},
	}}
	with := func(index int, change func([]path.Segment) []path.Segment) path.Path {
		p := known.Clone()
		p.Index = index
		if change != nil {
			p.Segments = change(p.Segments)
		}
		return p
	}
	for _, tt := range []struct {
		name     string
		told     path.Path
		down, up bool // is it believed, if it says so
	}{
		{"the path as it is", with(1, nil), true, true},
		{"in the words of the client", with(0, nil), true, true},
		{"a later token", with(1, func(s []path.Segment) []path.Segment { s[1].Expires = end.Add(1); return s }), true, true},
		{"no word of tokens", with(1, func(s []path.Segment) []path.Segment { s[1].Expires = time.Time{}; return s }), true, true},
		{"from before the last answer", with(1, func(s []path.Segment) []path.Segment { s[1].Expires = end.Add(-1); return s }), false, false},
		{"the next manager's token does not matter", with(1, func(s []path.Segment) []path.Segment { s[2].Expires = end.Add(-1); return s }), true, true},
		{"another endpoint", with(1, func(s []path.Segment) []path.Segment { s[3].Name = "db-2"; return s }), false, true},
		{"another connection at the endpoint", with(1, func(s []path.Segment) []path.Segment { s[3].ID = "e-2"; return s }), false, true},
		{"another forwarder", with(1, func(s []path.Segment) []path.Segment { s[2].Name = "f-2"; return s }), false, true},
		{"a longer path", with(1, func(s []path.Segment) []path.Segment { return append(s, path.Segment{Name: "x", ID: "x"}) }), false, true},
		{"a shorter path", with(1, func(s []path.Segment) []path.Segment { return s[:3] }), false, true},
		{"another manager", with(1, func(s []path.Segment) []path.Segment { s[1].Name = "m-2"; return s }), false, false},
		{"another connection at the manager", with(1, func(s []path.Segment) []path.Segment { s[1].ID = "m-2"; return s }), false, false},
		{"another client", with(1, func(s []path.Segment) []path.Segment { s[0].Name = "x"; return s }), false, false},
		{"another connection of the client", with(1, func(s []path.Segment) []path.Segment { s[0].ID = "web-1"; return s }), false, false},
		{"in the words of somebody else", with(2, nil), false, false},
		{"an index outside of the path", with(7, nil), false, false},
		{"a segment without an id", with(1, func(s []path.Segment) []path.Segment { s[2].ID = ""; return s }), false, false},
		{"the client alone", with(0, func(s []path.Segment) []path.Segment { return s[:1] }), false, false},
		{"no path", path.Path{}, false, false},
	} {
		if got := concerns(known, tt.told, false); got != tt.down {
			t.Errorf("%s: down is believed: %v, want %v", tt.name, got, tt.down)
		}
		if got := concerns(known, tt.told, true); got != tt.up {
			t.Errorf("%s: up is believed: %v, want %v", tt.name, got, tt.up)
		}
	}
	if gone := (path.Path{Segments: known.Segments[:1]}); concerns(gone, known, false) || concerns(gone, known, true) {
		t.Error("something is believed of a wire that is over")
	}
}

// What is old or forged leads to nothing; what is true afterwards, does.
func TestStaleEvents(t *testing.T) {
	for _, tt := range []struct {
		name  string
		forge func(*networkservice.Connection)
	}{
		{"an old token", func(c *networkservice.Connection) {
			c.Path.PathSegments[1].Expires = timestamppb.New(c.Path.PathSegments[1].Expires.AsTime().Add(-time.Second))
		}},
		{"another path", func(c *networkservice.Connection) {
			c.Path.PathSegments = append(c.Path.PathSegments, &networkservice.PathSegment{Name: "elsewhere", Id: "x"})
		}},
		{"no path", func(c *networkservice.Connection) {
			c.Path.PathSegments = []*networkservice.PathSegment{{Name: "web", Id: "web-0"}}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, c := newManager(t)
				w := connect(t, c)
				pass(time.Minute)
				m.take()
				for _, state := range []networkservice.State{networkservice.State_DOWN, networkservice.State_REFRESH_REQUESTED, networkservice.State_RESELECT_REQUESTED} {
					m.monitor.Amend("m-web-0", func(c *networkservice.Connection) bool {
						tt.forge(c)
						c.State = state
						return true
					})
					if asked := m.take(); len(asked) != 0 {
						t.Errorf("%v: asked %+v", state, asked)
					}
				}
				if s := w.Connection().GetState(); s != networkservice.State_UP {
					t.Errorf("the wire is %v", s)
				}
				pass(2 * time.Minute) // a refresh, and the manager's view is true again
				m.take()
				m.tell("web-0", networkservice.State_DOWN)
				if asked := m.take(); len(asked) != 1 {
					t.Errorf("asked %+v when the path is down", asked)
				}
			})
		})
	}
}

// An endpoint on the way may change its own part of the path. What is told of that
// then counts.
func TestPathChangesOnTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newManager(t)
		connect(t, c)
		pass(time.Minute)
		m.take()
		tail := func(name string, state networkservice.State) {
			m.monitor.Amend("m-web-0", func(c *networkservice.Connection) bool {
				c.Path.PathSegments = append(c.Path.PathSegments[:2], &networkservice.PathSegment{Name: name, Id: name})
				c.State = state
				return true
			})
		}
		tail("db-2", networkservice.State_UP)
		tail("db-1", networkservice.State_DOWN)
		if asked := m.take(); len(asked) != 0 {
			t.Errorf("asked %+v", asked)
		}
		tail("db-2", networkservice.State_UP)
		m.take()
		tail("db-2", networkservice.State_DOWN)
		if asked := m.take(); len(asked) != 1 || asked[0].reselect {
			t.Errorf("asked %+v", asked)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// told is the connection with a hop's own id as the hop tells it.
func (m *Mesh) told(t *testing.T, p *part, w view) *networkservice.Connection {
	t.Helper()
	for i, name := range w.Names {
		if name != p.name {
			continue
		}
		for _, n := range m.nodes {
			for _, f := range n.forwarders {
				if v, ok := f.Monitor().Get(w.IDs[i]); ok {
					return proto.CloneOf(v.Conn())
				}
			}
			for _, e := range n.endpoints {
				if v, ok := e.Server.Monitor().Get(w.IDs[i]); ok {
					return proto.CloneOf(v.Conn())
				}
			}
			if n.Manager != nil {
				if v, ok := n.Manager.Monitor().Get(w.IDs[i]); ok {
					return proto.CloneOf(v.Conn())
				}
			}
		}
	}
	t.Fatalf("%s does not know the wire", p.name)
	return nil
}

// A hop that tells lies of connections that are not its own, that do not exist, or that
// it has told of otherwise since, is not believed by the one before it, and does no harm.
// The log has what cannot be true once.
func TestForgedEvents(t *testing.T) {
	const (
		update = networkservice.ConnectionEventType_UPDATE
		first  = networkservice.ConnectionEventType_INITIAL_STATE_TRANSFER
		remove = networkservice.ConnectionEventType_DELETE
	)
	type conn = *networkservice.Connection
	lies := []struct {
		name   string
		typ    networkservice.ConnectionEventType
		forge  func(own, others conn) conn
		silent bool // it may be true: of a connection of which nobody has heard yet, or some time ago
	}{
		{"a connection that does not exist", update, func(own, _ conn) conn {
			for _, s := range own.Path.PathSegments {
				s.Id += "x"
			}
			own.Id += "x"
			return own
		}, true},
		{"the end of one that does not exist", remove, func(own, _ conn) conn {
			for _, s := range own.Path.PathSegments {
				s.Id += "x"
			}
			return own
		}, true},
		{"somebody else's connection", update, func(_, others conn) conn { return others }, true},
		{"the end of somebody else's connection", remove, func(_, others conn) conn { return others }, true},
		{"a connection that comes from elsewhere", update, func(own, _ conn) conn {
			for _, s := range own.Path.PathSegments {
				s.Name += "x"
			}
			return own
		}, false},
		{"the place of another hop", update, func(own, _ conn) conn {
			own.Path.Index = uint32(len(own.Path.PathSegments)) + 3
			return own
		}, true},
		{"no path", remove, func(own, _ conn) conn { own.Path = nil; return own }, false},
		{"an endless path", update, func(own, _ conn) conn {
			for i := range 100 {
				own.Path.PathSegments = append(own.Path.PathSegments, &networkservice.PathSegment{Name: "x", Id: fmt.Sprint(i)})
			}
			return own
		}, false},
		{"segments without ids", update, func(own, _ conn) conn {
			own.Path.PathSegments = append(own.Path.PathSegments, &networkservice.PathSegment{})
			return own
		}, false},
		{"an older state", update, func(own, _ conn) conn {
			s := own.Path.PathSegments[own.Path.Index]
			s.Expires = timestamppb.New(s.Expires.AsTime().Add(-time.Minute))
			return own
		}, true},
		{"an end that came before", remove, func(own, _ conn) conn {
			s := own.Path.PathSegments[own.Path.Index]
			s.Expires = timestamppb.New(s.Expires.AsTime().Add(-time.Minute))
			return own
		}, true},
		{"nothing", update, func(conn, conn) conn { return nil }, false},
		{"a first state again, of an older one", first, func(own, _ conn) conn {
			s := own.Path.PathSegments[own.Path.Index]
			s.Expires = timestamppb.New(s.Expires.AsTime().Add(-time.Minute))
			return own
		}, true},
	}
	liars := []struct {
		name   string
		liar   func(r *rig) *part
		victim func(r *rig) *part
	}{
		{"manager", func(r *rig) *part { return r.a.Manager.part }, func(r *rig) *part { return r.c.part }},
		{"forwarder", func(r *rig) *part { return r.a.Forwarder().part }, func(r *rig) *part { return r.a.Manager.part }},
		{"far manager", func(r *rig) *part { return r.b.Manager.part }, func(r *rig) *part { return r.a.Forwarder().part }},
		{"far forwarder", func(r *rig) *part { return r.b.Forwarder().part }, func(r *rig) *part { return r.b.Manager.part }},
		{"endpoint", func(r *rig) *part { return r.e.part }, func(r *rig) *part { return r.b.Forwarder().part }},
	}
	states := []networkservice.State{networkservice.State_DOWN, networkservice.State_REFRESH_REQUESTED, networkservice.State_RESELECT_REQUESTED}
	for _, l := range liars {
		t.Run(l.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				r := newRig(m, "IP", true)
				e := m.Node("c").Serve(Service{Name: "other", CIDR: "10.61.0.0/24"})
				other := m.Raw("other")
				req := other.Message("other")
				others, err := other.Request(r.a.ManagerURL(), req)
				if err != nil {
					t.Fatal(err)
				}
				liar, victim, mine := l.liar(r), l.victim(r), View(r.w)
				for _, lie := range lies {
					Pass(5*time.Minute + time.Second) // until the log would say it again
					if others, err = other.Request(r.a.ManagerURL(), Again(req, others)); err != nil {
						t.Fatal(err)
					}
					for m.Network.Forget(); m.Network.CallsBy("web", "Request") == 0; {
						Pass(time.Second)
					}
					m.said()
					m.Network.Forget()
					steps := r.steps()
					for i := range 10 {
						c := lie.forge(m.told(t, liar, mine), m.told(t, e.part, viewOf(others)))
						if c != nil {
							c.State = states[i%3]
						}
						event := &networkservice.ConnectionEvent{Type: lie.typ, Connections: map[string]conn{"x": c}}
						if n := m.Network.Forge(Told{From: liar.url, To: victim.name, Event: event}); n != 1 {
							t.Fatalf("%s hears %d streams of %s", victim.name, n, liar.name)
						}
						Pass(time.Second)
					}
					if n := m.Network.Calls("Request") + m.Network.Calls("Close"); n != 0 || r.steps() != steps {
						t.Errorf("%s: %d calls, %d steps in the kernel", lie.name, n, r.steps()-steps)
					}
					if diff := cmp.Diff(mine, View(r.w)); diff != "" || !Up(r.w) {
						t.Errorf("%s: the wire is %v (-before +after):\n%s", lie.name, r.w.Connection().GetState(), diff)
					}
					said := m.said()
					if n := said[victim.name+": event of the peer is ignored"]; n > 1 || n == 0 && !lie.silent || len(said) > n {
						t.Errorf("%s: said %v", lie.name, said)
					}
				}
				r.c.Close(r.w)
				if err := other.Close(r.a.ManagerURL(), others); err != nil {
					t.Error(err)
				}
				m.CheckEmpty()
			})
		})
	}
}

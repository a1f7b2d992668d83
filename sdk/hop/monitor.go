// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"context"
	"sync"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
	"github.com/openvwire/nsm/sdk/watch"
)

// Monitor tells watchers what happens to a hop's connections. It implements
// connection.MonitorConnection (protocol.md §2.10, §2.11).
//
// A watcher sees the connections whose path contains its own identity, and no
// tokens. One that reads slowly gets the latest state of each connection; it
// delays nobody.
type Monitor struct {
	policy Policy
	conns  *watch.Map[string, *observed]
}

// observed is a connection as watchers see it; immutable once published.
type observed struct {
	conn *networkservice.Connection // index and id are the hop's own; no tokens

	tokens     []string // to find out, once and only if somebody asks, …
	identities func() []string
}

// NewMonitor returns a Monitor without connections. A nil policy means Strict.
func NewMonitor(policy Policy) *Monitor {
	if policy == nil {
		policy = Strict{}
	}
	return &Monitor{policy: policy, conns: watch.New[string, *observed]()}
}

// Publish tells watchers that a connection is as given. Watchers get an UPDATE
// even if nothing changed: old peers take it as a sign of life.
func (m *Monitor) Publish(c *networkservice.Connection) {
	o := &observed{conn: proto.Clone(c).(*networkservice.Connection)}
	for _, s := range o.conn.GetPath().GetPathSegments() {
		o.tokens = append(o.tokens, s.Token)
		s.Token = ""
	}
	o.identities = sync.OnceValue(func() []string {
		ids := make([]string, 0, len(o.tokens))
		for _, raw := range o.tokens {
			if t, err := token.Parse(raw); err == nil {
				ids = append(ids, t.Subject)
			}
		}
		return ids
	})
	m.conns.Put(c.GetId(), o)
}

// Amend publishes a connection with a change of what a hop further on has told,
// if the hop knows it and change reports that it made a difference. change gets
// a copy of its own.
func (m *Monitor) Amend(id string, change func(*networkservice.Connection) bool) {
	o, ok := m.conns.Get(id)
	if !ok {
		return
	}
	c := proto.Clone(o.conn).(*networkservice.Connection)
	if change(c) {
		m.conns.Put(id, &observed{conn: c, identities: o.identities})
	}
}

// Down tells watchers that the path behind this hop is broken.
func (m *Monitor) Down(id string) {
	m.Amend(id, func(c *networkservice.Connection) bool {
		was := c.State
		c.State = networkservice.State_DOWN
		return was != networkservice.State_DOWN
	})
}

// Delete tells watchers that a connection is closed.
func (m *Monitor) Delete(id string) { m.conns.Delete(id) }

// Get returns a connection as watchers see it, and the identities on its path.
// The message must not be changed.
func (m *Monitor) Get(id string) (c *networkservice.Connection, identities []string, ok bool) {
	o, ok := m.conns.Get(id)
	if !ok {
		return nil, nil, false
	}
	return o.conn, o.identities(), true
}

// Visible returns the connections that the identity may see, as Get does.
func (m *Monitor) Visible(id string) []*networkservice.Connection {
	var out []*networkservice.Connection
	for _, o := range m.conns.All() {
		if m.policy.MayObserve(id, o.identities()) {
			out = append(out, o.conn)
		}
	}
	return out
}

// Change is what happened to one connection, as Follow tells it.
type Change struct {
	Conn    *networkservice.Connection // must not be changed; of a closed connection: its last state
	Deleted bool
}

// Follow calls f with every connection the identity may see, then with each
// change, until ctx ends or f fails. The first call comes at once, with initial
// set, even if there is nothing to tell.
func (m *Monitor) Follow(ctx context.Context, id string, f func(initial bool, changes []Change) error) error {
	r := m.conns.Reader()
	defer r.Close()
	for initial := true; ; initial = false {
		news, err := r.Next(ctx)
		if err != nil {
			return err
		}
		var changes []Change
		for _, n := range news {
			if m.policy.MayObserve(id, n.Value.identities()) {
				changes = append(changes, Change{Conn: n.Value.conn, Deleted: n.Deleted})
			}
		}
		if len(changes) > 0 || initial {
			if err := f(initial, changes); err != nil {
				return err
			}
		}
	}
}

// Limits of what a watcher may select by.
const maxSelected = 1024

// MonitorConnections serves one watcher until it goes away.
func (m *Monitor) MonitorConnections(sel *networkservice.MonitorScopeSelector, stream networkservice.MonitorConnection_MonitorConnectionsServer) error {
	if len(sel.GetPathSegments()) > maxSelected || len(sel.GetNetworkServices()) > maxSelected {
		return nserr.BadRequest.Errorf("the monitor selector has more than %d entries", maxSelected)
	}
	caller := rpc.CallerFrom(stream.Context())
	return m.Follow(stream.Context(), callerID(caller, caller.Token), func(initial bool, changes []Change) error {
		updated := make(map[string]*networkservice.Connection)
		deleted := make(map[string]*networkservice.Connection)
		for _, c := range changes {
			switch {
			case !c.Conn.MatchesMonitorScopeSelector(sel):
			case c.Deleted:
				deleted[c.Conn.GetId()] = c.Conn
			default:
				updated[c.Conn.GetId()] = c.Conn
			}
		}
		if initial {
			return stream.Send(&networkservice.ConnectionEvent{Type: networkservice.ConnectionEventType_INITIAL_STATE_TRANSFER, Connections: updated})
		}
		if err := sendSome(stream, networkservice.ConnectionEventType_UPDATE, updated); err != nil {
			return err
		}
		return sendSome(stream, networkservice.ConnectionEventType_DELETE, deleted)
	})
}

func sendSome(stream networkservice.MonitorConnection_MonitorConnectionsServer, typ networkservice.ConnectionEventType, conns map[string]*networkservice.Connection) error {
	if len(conns) == 0 {
		return nil
	}
	return stream.Send(&networkservice.ConnectionEvent{Type: typ, Connections: conns})
}

// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc/metadata"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
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
	conns  *watch.Map[string, *View]

	changing sync.Mutex // held from reading a connection to storing its change
}

// View is a connection as watchers see it. It is shared and not to be changed.
type View struct {
	Since time.Time // of the first Publish
	// Changed is since when its state is what it is. A wish that a hop makes by a state
	// changes nothing: the connection is as it was.
	Changed time.Time

	conn       *networkservice.Connection // as the hop has it: tokens included, which are not to be shown
	identities []string                   // of each segment of its path

	look  sync.Once
	shown *networkservice.Connection // what Conn returns, once somebody has looked
}

// Conn returns the connection, whose index and id are the hop's own, without tokens.
// Most refreshes change nothing and nobody looks: so the copy that has none is made for
// the first who does.
func (v *View) Conn() *networkservice.Connection {
	v.look.Do(func() {
		v.shown = rpc.ShallowButPath(v.conn)
		hideTokens(v.shown)
	})
	return v.shown
}

// hideTokens takes the tokens from a connection's path, which are not the hop's to show.
func hideTokens(c *networkservice.Connection) {
	for _, s := range c.GetPath().GetPathSegments() {
		s.Token = ""
	}
}

// Identities returns who the hops of the path are: the subject of each segment's
// token, "" where there was none to read.
func (v *View) Identities() []string { return v.identities }

// NewMonitor returns a Monitor without connections. A nil policy means Strict.
func NewMonitor(policy Policy) *Monitor {
	if policy == nil {
		policy = Strict{}
	}
	return &Monitor{policy: policy, conns: watch.NewWithTopics[string]((*View).Identities)}
}

// Publish tells watchers that a connection is as given. Watchers get an UPDATE
// even if nothing changed: old peers take it as a sign of life. c is kept, with all that it
// refers to, so nothing of it is to be changed any more.
func (m *Monitor) Publish(c *networkservice.Connection) {
	now := time.Now()
	segments := c.GetPath().GetPathSegments()
	v := &View{conn: c, Since: now, Changed: now, identities: make([]string, len(segments))}
	for i, s := range segments {
		v.identities[i] = subject(s.GetToken())
	}
	m.changing.Lock()
	defer m.changing.Unlock()
	old, ok := m.conns.Get(c.GetId())
	if ok {
		v.Since, v.Changed = old.Since, old.changed(c, now)
	}
	if ok && sameButTokens(old.conn, c) {
		m.conns.Touch(c.GetId(), v)
	} else {
		m.conns.Put(c.GetId(), v)
	}
}

// sameButTokens reports whether two connections that watchers see differ in nothing
// but until when tokens are good.
func sameButTokens(a, b *networkservice.Connection) bool {
	return a.GetId() == b.GetId() && a.GetState() == b.GetState() &&
		a.GetNetworkService() == b.GetNetworkService() && a.GetNetworkServiceEndpointName() == b.GetNetworkServiceEndpointName() &&
		a.GetPayload() == b.GetPayload() && maps.Equal(a.GetLabels(), b.GetLabels()) &&
		a.GetPath().GetIndex() == b.GetPath().GetIndex() && samePath(a.GetPath().GetPathSegments(), b.GetPath().GetPathSegments()) &&
		sameMechanism(a.GetMechanism(), b.GetMechanism()) && rpc.EqualContexts(a.GetContext(), b.GetContext())
}

// sameMechanism is proto.Equal at a tenth of its price.
func sameMechanism(a, b *networkservice.Mechanism) bool {
	return a.GetCls() == b.GetCls() && a.GetType() == b.GetType() && maps.Equal(a.GetParameters(), b.GetParameters())
}

// samePath reports whether segments are of the same hops, which say the same of
// themselves.
func samePath(a, b []*networkservice.PathSegment) bool {
	return slices.EqualFunc(a, b, func(a, b *networkservice.PathSegment) bool {
		return sameSegment(a, b) && maps.Equal(a.GetMetrics(), b.GetMetrics())
	})
}

// Amend publishes a connection with a change of what a hop further on has told,
// if the hop knows it and change reports that it made a difference. change gets
// a copy of its own, and must not block.
func (m *Monitor) Amend(id string, change func(*networkservice.Connection) bool) {
	m.changing.Lock()
	defer m.changing.Unlock()
	old, ok := m.conns.Get(id)
	if !ok {
		return
	}
	c := rpc.Clone(old.conn)
	hideTokens(c)
	if change(c) {
		m.conns.Put(id, &View{
			conn: c, Since: old.Since, Changed: old.changed(c, time.Now()), identities: old.identitiesOn(c.GetPath()),
		})
	}
}

// changed is View.Changed of what takes the place of v.
func (v *View) changed(c *networkservice.Connection, now time.Time) time.Time {
	if isDown(v.conn) == isDown(c) {
		return v.Changed
	}
	return now
}

func isDown(c *networkservice.Connection) bool { return c.GetState() == networkservice.State_DOWN }

// identitiesOn are those of a path that has replaced v's. Who those are that are new on it
// is not known.
func (v *View) identitiesOn(path *networkservice.Path) []string {
	before, after := v.conn.GetPath().GetPathSegments(), path.GetPathSegments()
	ids := make([]string, len(after))
	for i, known := range v.identities {
		if i < len(after) && sameSegment(before[i], after[i]) {
			ids[i] = known
		}
	}
	return ids
}

func sameSegment(a, b *networkservice.PathSegment) bool {
	return a.GetName() == b.GetName() && a.GetId() == b.GetId()
}

// Down tells watchers that the path behind this hop is broken.
func (m *Monitor) Down(id string) {
	m.Amend(id, becomeDown)
}

func becomeDown(c *networkservice.Connection) (changed bool) {
	changed = c.State != networkservice.State_DOWN
	c.State = networkservice.State_DOWN
	return changed
}

// Failing is Down with what the hops before this one say of themselves in a Request
// that has failed: an originator says how often it has tried before. The hop that it
// has asked knows of this attempt, too, and why it fails.
func (m *Monitor) Failing(id string, asked *networkservice.Connection, why *nserr.Reason) {
	m.Amend(id, func(c *networkservice.Connection) bool {
		changed := c.State != networkservice.State_DOWN
		c.State = networkservice.State_DOWN
		have, told := c.GetPath().GetPathSegments(), asked.GetPath().GetPathSegments()
		for i := range min(int(c.GetPath().GetIndex()), len(have), len(told)) {
			if sameSegment(have[i], told[i]) && !maps.Equal(have[i].GetMetrics(), told[i].GetMetrics()) {
				have[i].Metrics = maps.Clone(told[i].GetMetrics())
				changed = true
			}
		}
		if c.GetPath().GetIndex() == 1 && len(have) > 0 {
			before, _ := strconv.Atoi(have[0].GetMetrics()[MetricAttempts]) // 0 if it says nothing
			metrics := maps.Clone(have[0].GetMetrics())
			if metrics == nil {
				metrics = make(map[string]string, 2)
			}
			metrics[MetricAttempts], metrics[MetricLastError] = strconv.Itoa(before+1), why.Code
			changed = changed || !maps.Equal(have[0].GetMetrics(), metrics)
			have[0].Metrics = metrics
		}
		return changed
	})
}

// Delete tells watchers that a connection is closed.
func (m *Monitor) Delete(id string) {
	m.changing.Lock()
	defer m.changing.Unlock()
	m.conns.Delete(id)
}

// Get returns a connection by the hop's own id for it, whoever asks.
func (m *Monitor) Get(id string) (*View, bool) { return m.conns.Get(id) }

// All returns every connection, whoever may see it.
func (m *Monitor) All() (out []*View) {
	for _, v := range m.conns.All() {
		out = append(out, v)
	}
	return out
}

// checkClaim fails with nserr.WrongOwner when id, which is not what this hop calls
// a connection of b's, is that of somebody else's connection.
func (m *Monitor) checkClaim(id string, b Binding) error {
	v, ok := m.Get(id)
	if !ok {
		return nil
	}
	ids, index := v.Identities(), int(v.conn.GetPath().GetIndex())
	if index < 1 || index >= len(ids) {
		return nil
	}
	return Binding{Owner: ids[0], Caller: ids[index-1]}.check(id, b)
}

// Visible returns the connections that the identity may see.
func (m *Monitor) Visible(identity string) []*View {
	var out []*View
	for _, v := range m.conns.All() {
		if m.maySee(identity, v) {
			out = append(out, v)
		}
	}
	return out
}

// maySee: a connection is seen by those whose path it is, and by observers.
func (m *Monitor) maySee(identity string, v *View) bool {
	return identity != "" && slices.Contains(v.Identities(), identity) || m.policy.IsObserver(identity)
}

// Find returns the one connection that the identity may see and that id means:
// the hop's own id for it, the id of its first segment, which is the same at
// every hop, or the beginning of the latter. Where a path passes this hop more
// than once the latter two mean the first time. It fails with nserr.UnknownWire, or
// nserr.BadRequest where an id means several.
func (m *Monitor) Find(identity, id string) (*View, error) {
	if id == "" {
		return nil, nserr.BadRequest.Errorf("no wire id is given").WithFix("list wires with 'nsm get wires'")
	}
	if v, ok := m.conns.Get(id); ok && m.maySee(identity, v) {
		return v, nil
	}
	var exact, begins []*View
	for _, v := range m.Visible(identity) {
		switch first := v.FirstID(); {
		case first == id:
			exact = append(exact, v)
		case strings.HasPrefix(first, id):
			begins = append(begins, v)
		}
	}
	found := exact
	if len(found) == 0 {
		found = begins
	}
	if len(found) == 0 {
		return nil, nserr.UnknownWire.Errorf("no wire has the id %q, or one that begins so", id)
	}
	slices.SortFunc(found, func(a, b *View) int { return int(a.conn.GetPath().GetIndex()) - int(b.conn.GetPath().GetIndex()) })
	for _, v := range found[1:] {
		if !v.passed(found[0].conn) {
			return nil, ambiguous(id, found)
		}
	}
	return found[0], nil
}

// ambiguous says which wires an id means, by the ids that lists have them under; or by
// this hop's own ones, where several clients have chosen the same.
func ambiguous(id string, found []*View) error {
	var ids, own []string
	for _, v := range found {
		ids, own = append(ids, v.FirstID()), append(own, v.conn.GetId())
	}
	slices.Sort(ids)
	if ids = slices.Compact(ids); len(ids) == 1 {
		slices.Sort(own)
		return nserr.BadRequest.Errorf("%d wires have the id %q, of different clients; here they are called %s", len(found), id, some(own)).
			WithFix("give one of the ids named")
	}
	return nserr.BadRequest.Errorf("the ids of %d wires begin with %q: %s", len(ids), id, some(ids)).WithFix("give more of the id")
}

// some is a list of at most five.
func some(ids []string) string {
	const most = 5
	if len(ids) <= most {
		return strings.Join(ids, ", ")
	}
	return strings.Join(ids[:most], ", ") + ", …"
}

// FirstID returns the id of the first segment, which is the same at every hop.
func (v *View) FirstID() string {
	if segments := v.conn.GetPath().GetPathSegments(); len(segments) > 0 {
		return segments[0].GetId()
	}
	return v.conn.GetId()
}

// passed reports whether v's path has passed this hop as c before.
func (v *View) passed(c *networkservice.Connection) bool {
	at, segments := int(c.GetPath().GetIndex()), v.conn.GetPath().GetPathSegments()
	return at < len(segments) && segments[at].GetId() == c.GetId()
}

// Change is what happened to one connection, as Follow tells it.
type Change struct {
	*View   // of a closed connection: its last state
	Deleted bool
}

// Follow calls f with every connection the identity may see, then with each
// change, until ctx ends or f fails. The first call comes at once, with initial
// set, even if there is nothing to tell.
func (m *Monitor) Follow(ctx context.Context, identity string, f func(initial bool, changes []Change) error) error {
	return m.follow(ctx, identity, false, f)
}

// follow is Follow. Refreshes that bring nothing but later tokens are no changes for
// those who want changes only: they are not even woken.
func (m *Monitor) follow(ctx context.Context, identity string, changesOnly bool, f func(initial bool, changes []Change) error) error {
	var r *watch.Reader[string, *View]
	switch {
	case m.policy.IsObserver(identity):
		r = m.conns.Reader()
	case identity != "":
		r = m.conns.ReaderOf(identity) // no others wake it: a node has as many watchers as workloads
	default: // nothing is theirs
		if err := f(true, nil); err != nil {
			return err
		}
		<-ctx.Done()
		return context.Cause(ctx)
	}
	defer r.Close()
	if changesOnly {
		r.ChangesOnly()
	}
	for initial := true; ; initial = false {
		news, err := r.Next(ctx)
		if err != nil {
			return err
		}
		changes := make([]Change, len(news))
		for i, n := range news {
			changes[i] = Change{View: n.Value, Deleted: n.Deleted}
		}
		if err := f(initial, changes); err != nil {
			return err
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
	ctx := stream.Context()
	changesOnly := len(metadata.ValueFromIncomingContext(ctx, peer.ChangesOnly)) > 0
	return m.follow(ctx, Identity(rpc.CallerFrom(ctx)), changesOnly, func(initial bool, changes []Change) error {
		updated := make(map[string]*networkservice.Connection)
		deleted := make(map[string]*networkservice.Connection)
		for _, c := range changes {
			switch {
			case !c.Conn().MatchesMonitorScopeSelector(sel):
			case c.Deleted:
				deleted[c.Conn().GetId()] = c.Conn()
			default:
				updated[c.Conn().GetId()] = c.Conn()
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

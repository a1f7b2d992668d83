// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/nsmgr/route"
	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Request sends a connection on to a forwarder of this node (protocol.md §2.7,
// §3.2): for a client here it chooses the endpoint, for a client elsewhere it
// builds the endpoint's side.
func (m *Manager) Request(ctx context.Context, req *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	if req.GetConnection().GetNetworkService() == "" {
		return nil, nserr.BadRequest.Errorf("the request names no network service")
	}
	if err := hop.ValidatePreferences(req.GetMechanismPreferences()); err != nil {
		return nil, err
	}
	call, err := m.hop.Admit(ctx, req.GetConnection())
	if err != nil {
		return nil, err
	}
	if err := m.checkOwner(call); err != nil {
		return nil, err
	}
	var out *networkservice.Connection
	err = m.wires.Do(ctx, call.Conn.GetId(), func(t *conn.Turn[wire]) error {
		var err error
		out, err = m.request(ctx, t, call, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return call.Reply(out), nil
}

// request does the work of Request when it is the connection's turn.
func (m *Manager) request(ctx context.Context, t *conn.Turn[wire], call *hop.Call, req *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	known := t.Record
	if known != nil {
		if err := known.binding.Check(call); err != nil {
			return nil, err
		}
	}
	if err := m.checkDrained(call.Conn, known); err != nil {
		return nil, err
	}
	files, err := receiveNetNS(ctx, req)
	if err != nil {
		return nil, err
	}
	defer closeFiles(files)

	var last *networkservice.Connection
	if known != nil {
		last = known.next.Conn
	}
	reselect := hop.Anew(last, call.Conn)
	m.describeClient(call.Conn)

	r := &task{turn: t, call: call, prefs: req.GetMechanismPreferences(), files: files, asking: m.cleanup.Asking()}
	defer r.asking.End(ctx)
	var out *networkservice.Connection
	for deadline := time.Now().Add(absence); ; {
		candidates, err := m.candidates(ctx, call.Conn, known, reselect)
		if err != nil {
			return nil, m.failed(ctx, t, call, err)
		}
		failures := hop.InTurn(ctx, len(candidates), patience, func(limited context.Context, i int) (err error) {
			f := candidates[i]
			m.leave(ctx, t, f, call)
			if out, err = m.ask(ctx, limited, r, f); err != nil {
				return fmt.Errorf("%s: %w", f.nse.GetName(), err)
			}
			return nil
		}, worthAnother)
		if len(failures) == 0 {
			break
		}
		died := !slices.ContainsFunc(failures, func(err error) bool { return !errors.Is(err, nserr.PeerDown) })
		if !died || !m.awaitReturn(ctx, candidates, deadline) {
			return nil, m.failed(ctx, t, call, hop.AllFailed(nserr.ForwardersFailed, "all forwarders have failed", failures))
		}
	}
	if known == nil || reselect {
		m.ruled.note(call.Conn, m.chooses(call.Conn))
	}
	return out, nil
}

// patience is how long a forwarder may take to answer while there are others: long
// enough for it to ask an endpoint in vain and then another one.
const patience = 1500 * time.Millisecond

// leave closes the path through the forwarder that the connection has, if another
// one is to be asked: both would make the same interface. What is behind this hop in
// the path is none of the other one's.
func (m *Manager) leave(ctx context.Context, t *conn.Turn[wire], f forwarder, call *hop.Call) {
	if holder(t.Record, call.Conn) == f.nse.GetName() {
		return
	}
	hop.Trim(call.Conn)
	if t.Record != nil && !t.Record.next.CloseSoon(ctx, call, hop.ReselectWait, m.cleanup) {
		m.log.Warn("the old path does not answer, it is left to expire", "connection", t.ID)
	}
}

// holder is the forwarder that has what is behind this hop in the path: the one that
// was asked, or that the path names when this manager knows nothing; "" if it was told
// to close it.
func holder(known *wire, c *networkservice.Connection) string {
	switch {
	case known == nil:
		return nextSegment(c)
	case known.next.Peer == nil:
		return ""
	}
	return known.forwarder
}

// task is one Request while it has its turn.
type task struct {
	turn   *conn.Turn[wire]
	call   *hop.Call
	prefs  []*networkservice.Mechanism
	files  []*os.File // that go on with it
	asking *hop.Asking
}

// ask sends the request to one forwarder, waits for it as long as limited lasts, and
// keeps what it answers.
func (m *Manager) ask(ctx, limited context.Context, r *task, f forwarder) (*networkservice.Connection, error) {
	t, call := r.turn, r.call
	p := m.config.Peers.Get(f.url)
	var at peer.Peer
	got, err := r.asking.Ask(rpc.WithFiles(limited, r.files...), p, &networkservice.NetworkServiceRequest{
		Connection:           call.Conn,
		MechanismPreferences: r.prefs,
	}, grpc.Peer(&at))
	if err != nil {
		p.Release()
		return nil, err
	}
	rpc.DiscardReplyFile(&at, got.GetMechanism().GetParameters()["inodeURL"]) // the client's, sent back by some
	got.State = networkservice.State_UP
	if t.Record == nil {
		t.Record = &wire{}
		m.log.Info("connection up", slog.String("connection", t.ID), slog.String("service", got.GetNetworkService()),
			slog.String("owner", call.Binding.Owner), slog.String("endpoint", got.GetNetworkServiceEndpointName()), slog.String("forwarder", f.nse.GetName()))
	}
	t.Record.binding = call.Binding
	t.Record.forwarder = f.nse.GetName()
	t.Record.next.Hold(p, got, m.monitor)
	t.ExpireAt(endOf(got, call.Expiry(ctx), time.Now()))
	m.monitor.Publish(got)
	return got, nil
}

// endOf is when the connection has ended if nobody refreshes it: when this hop has to
// close it, or earlier, when one behind has. What has ended already says that somebody's
// clock is wrong.
func endOf(c *networkservice.Connection, own, now time.Time) time.Time {
	end := own
	path := c.GetPath()
	for _, s := range path.GetPathSegments()[path.GetIndex():] {
		if at := s.GetExpires(); at.IsValid() && at.AsTime().After(now) && at.AsTime().Before(end) {
			end = at.AsTime()
		}
	}
	return end
}

// failed tells watchers when a connection that was established could not be
// established again. It stays known until it expires or is closed.
func (m *Manager) failed(ctx context.Context, t *conn.Turn[wire], call *hop.Call, err error) error {
	why := nserr.From(err).Reason
	if ctx.Err() != nil { // given up, whatever has noticed it first
		why = nserr.TimedOut
	}
	if t.Record != nil {
		m.monitor.Failing(t.ID, call.Conn, why)
	}
	m.log.Log(ctx, m.failures.Level(slog.LevelWarn, t.ID, why.Code), "request failed", "connection", t.ID, "error", err)
	return err
}

// describeClient adds what this node knows about its client: labels, without
// replacing any, and prefixes that its addresses must not come from (§3.7). What c refers
// to may be somebody else's, too: what changes is copied.
func (m *Manager) describeClient(c *networkservice.Connection) {
	if has := c.GetLabels(); !hasKeys(has, m.config.Labels) {
		c.Labels = maps.Clone(m.config.Labels)
		maps.Copy(c.Labels, has)
	}
	if m.config.Excluded == nil {
		return
	}
	var more []string
	for _, p := range m.config.Excluded() {
		text := p.String()
		if !slices.Contains(c.GetContext().GetIpContext().GetExcludedPrefixes(), text) && !slices.Contains(more, text) {
			more = append(more, text)
		}
	}
	if len(more) == 0 {
		return
	}
	if c.Context = proto.CloneOf(c.GetContext()); c.Context == nil {
		c.Context = &networkservice.ConnectionContext{}
	}
	if c.Context.IpContext == nil {
		c.Context.IpContext = &networkservice.IPContext{}
	}
	c.Context.IpContext.ExcludedPrefixes = append(c.Context.IpContext.ExcludedPrefixes, more...)
}

// hasKeys reports whether labels have a value for each key of keys.
func hasKeys(labels, keys map[string]string) bool {
	for k := range keys {
		if _, ok := labels[k]; !ok {
			return false
		}
	}
	return true
}

// forwarder is a forwarder of this node that can be asked.
type forwarder struct {
	nse *registry.NetworkServiceEndpoint
	url string // where this process reaches it
}

// candidates are the forwarders to try, in order. A connection that is known
// stays with its forwarder; nobody is asked and nothing is looked up for it. One
// that wants another path keeps it in the first place: it is the forwarder that
// chooses the endpoint, and it has the interface.
func (m *Manager) candidates(ctx context.Context, c *networkservice.Connection, known *wire, reselect bool) ([]forwarder, error) {
	m.awaitForwarder(ctx, c)
	all := m.locals.forwarders(time.Now())
	if known != nil && !reselect {
		i := slices.IndexFunc(all, func(f forwarder) bool { return f.nse.GetName() == known.forwarder })
		if i < 0 {
			return nil, nserr.ForwarderGone.Errorf("forwarder %s is not available", known.forwarder)
		}
		return all[i : i+1], nil
	}
	service, err := m.service(ctx, c)
	if err != nil {
		return nil, err
	}
	endpoints := make([]*registry.NetworkServiceEndpoint, len(all))
	for i, f := range all {
		endpoints[i] = f.nse
	}
	sticky := nextSegment(c)
	if known != nil {
		sticky = known.forwarder
	}
	names := route.Forwarders(hop.MatchesOf(service), c.GetLabels(), hop.EndpointsOf(endpoints, m.config.ForwarderService), sticky)
	if len(names) == 0 {
		if len(all) == 0 {
			return nil, nserr.NoForwarder.Errorf("no candidates found: no forwarder is registered at manager %s", m.config.Name)
		}
		if err := hop.CheckRules(service, c.GetLabels()); err != nil {
			return nil, err
		}
		return nil, nserr.NoForwarder.Errorf("no candidates found: none of the %d forwarders of manager %s has the labels that network service %q asks for",
			len(all), m.config.Name, c.GetNetworkService()).WithFix("compare 'nsm get service %s -o yaml' (metadata) with the labels of the forwarders", c.GetNetworkService())
	}
	out := make([]forwarder, len(names))
	for i, n := range names {
		out[i] = all[slices.IndexFunc(all, func(f forwarder) bool { return f.nse.GetName() == n })]
	}
	return out, nil
}

// lookupTimeout bounds the question for a service that the catalog does not have.
const lookupTimeout = time.Second

// service returns the network service of a connection from the catalog. The watch
// that feeds it may be behind a registration of which the client knows already, so the
// registry is asked before a service is called unknown.
func (m *Manager) service(ctx context.Context, c *networkservice.Connection) (*registry.NetworkService, error) {
	ns, ok := m.catalog.services.objects.Get(c.GetNetworkService())
	if !ok {
		var err error
		if ns, err = m.findService(ctx, c.GetNetworkService()); err != nil {
			return nil, err
		}
	}
	switch {
	case c.GetPayload() != "" && c.GetPayload() != ns.GetPayload():
		return nil, nserr.UnknownService.Errorf("network service %s with payload %s is not found", c.GetNetworkService(), c.GetPayload())
	case ns == nil:
		return nil, nserr.UnknownService.Errorf("network service %s is not found", c.GetNetworkService())
	}
	return ns, nil
}

// findService asks the registry; the result is nil if it has no such service. While
// it is away nobody can tell that.
func (m *Manager) findService(ctx context.Context, name string) (*registry.NetworkService, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, err := registry.NewNetworkServiceRegistryClient(m.config.Registry).Find(ctx,
		&registry.NetworkServiceQuery{NetworkService: &registry.NetworkService{Name: name}})
	for err == nil {
		var r *registry.NetworkServiceResponse
		r, err = found.Recv()
		if ns := r.GetNetworkService(); err == nil && ns.GetName() == name { // the registry looks for parts of names, too
			return ns, nil
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		return nil, nil
	case away(err):
		return nil, nserr.PeerDown.Errorf("network service %s is not known here, and the registry does not answer: %w", name, err)
	}
	return nil, err
}

func nextSegment(c *networkservice.Connection) string {
	if s := c.GetNextPathSegment(); s != nil {
		return s.GetName()
	}
	return ""
}

// worthAnother reports whether another forwarder could answer otherwise.
func worthAnother(err error) bool { return !nserr.From(err).Reason.AnyForwarder() }

// checkOwner refuses a Request that claims to be on behalf of another identity,
// unless the caller is trusted to relay, or is a pass-through endpoint: then its
// path has led through this manager before, on behalf of the same identity.
func (m *Manager) checkOwner(call *hop.Call) error {
	owner, caller := call.Binding.Owner, call.Binding.Caller
	if owner == caller || m.config.MayRelay == nil || m.config.MayRelay(caller) || m.hop.Passed(call) {
		return nil
	}
	return nserr.NotAllowed.Errorf("%s may not request on behalf of %s", caller, owner).
		WithFix("begin the path with your own segment, or name the identity with --managers at the manager")
}

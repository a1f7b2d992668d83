// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/nsurl"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
)

const closeTimeout = 10 * time.Second

// Request is a wish for one wire, in more detail than a URL has.
type Request struct {
	// ID of the connection. A client that asks for the same id again, after a
	// restart too, takes the connection over. Default: the client's name and a
	// number, counted from 0.
	ID        string
	Service   string // name or name@domain
	Interface string // name of the interface; empty = one is made up
	Labels    map[string]string
	Endpoint  string // name of the one endpoint wanted; empty = one is chosen

	// NetNS is the workload's network namespace, the caller's to close after
	// Connect. nil means that of this process.
	NetNS *os.File

	// Context is asked of the endpoint: addresses, routes, MTU. May be nil.
	Context *networkservice.ConnectionContext

	// Retry makes Connect try again, with back-off and until its context ends,
	// after a failure that may pass: no endpoint yet, no forwarder yet.
	Retry bool
}

// Wire is a connection that keeps itself until Close.
type Wire struct {
	client *Client
	id     string
	prefs  []*networkservice.Mechanism // owned by whoever has turn
	named  bool                        // the interface has the name that was asked for
	pinned string                      // the one endpoint wanted; "" = any
	netns  *os.File
	retry  bool

	events chan event // from the manager's monitor stream and the prober; never blocks
	prober prober     // owned by run
	cancel context.CancelFunc
	done   chan struct{} // closed when run has ended

	turn chan struct{} // held while a Request or Close is under way

	mu       sync.Mutex
	conn     *networkservice.Connection // last answer, or what is asked for; guarded by mu, immutable
	up       bool                       // guarded by mu
	attempts int                        // failed in a row; guarded by mu
	changed  chan struct{}              // closed at the next change; guarded by mu
	last     error                      // of the last attempt; guarded by mu
}

type event = conn.Event

// Connect asks for the wire that the URL names (nsurl) into the network
// namespace of this process.
func (c *Client) Connect(ctx context.Context, url string) (*Wire, error) {
	u, err := nsurl.Parse(url)
	if err != nil {
		return nil, err
	}
	if u.Mechanism != mechanism.TypeKernel {
		return nil, nserr.Unsupported.Errorf("%s: this client has kernel:// interfaces only", url)
	}
	return c.Request(ctx, Request{Service: u.Service, Interface: u.Interface, Labels: u.Labels})
}

// Request asks for a wire. It returns when the wire is up or could not be made;
// nothing of a failed one is left behind.
func (c *Client) Request(ctx context.Context, r Request) (*Wire, error) {
	if r.Service == "" {
		return nil, nserr.BadRequest.Errorf("no network service is named")
	}
	if r.Interface != "" {
		if err := mechanism.CheckInterfaceName(r.Interface); err != nil {
			return nil, err
		}
	}
	netns, err := openNetNS(r.NetNS)
	if err != nil {
		return nil, err
	}
	url, err := rpc.InodeURL(netns)
	if err != nil {
		_ = netns.Close()
		return nil, err
	}
	if r.ID == "" {
		r.ID = fmt.Sprintf("%s-%d", c.config.Name, c.number())
	}
	w := &Wire{
		client: c, id: r.ID, netns: netns, retry: r.Retry, named: r.Interface != "", pinned: r.Endpoint,
		prefs: []*networkservice.Mechanism{hop.MechanismMessage(
			mechanism.Kernel{NetNS: url, Name: r.Interface}.With(mechanism.Mechanism{}))},
		conn: &networkservice.Connection{
			Id:                         r.ID,
			NetworkService:             r.Service,
			NetworkServiceEndpointName: r.Endpoint,
			Labels:                     mergeLabels(c.config.Labels, r.Labels),
			Context:                    r.Context,
			Path: &networkservice.Path{PathSegments: []*networkservice.PathSegment{{
				Name: c.config.Name, Id: r.ID,
			}}},
		},
		events:  make(chan event, 1),
		turn:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		changed: make(chan struct{}),
	}
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.cancel = cancel
	if err := c.register(w); err != nil {
		cancel()
		_ = netns.Close()
		return nil, err
	}
	if err := w.open(ctx, runCtx); err != nil {
		cancel()
		close(w.done)
		c.forget(w)
		_ = netns.Close()
		return nil, err
	}
	w.prober = prober{config: c.config.Liveness, netns: netns, pacer: c.pacer, lost: func() { w.post(conn.DataLost) }}
	go w.run(runCtx)
	return w, nil
}

// open makes the wire, or fails. It ends with either context: ctx is the
// caller's, life that of the wire, which Close ends.
func (w *Wire) open(ctx, life context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	if err := w.first(ctx); err != nil {
		return err
	}
	if life.Err() != nil {
		return nserr.Stopping.Errorf("the client was closed while it connected")
	}
	return nil
}

// first makes the wire, or fails.
func (w *Wire) first(ctx context.Context) error {
	do := conn.Refresh
	if w.client.named && w.takeOver(ctx) {
		do = conn.Either // the endpoint may have gone meanwhile
	}
	for {
		err := w.count(w.act(ctx, do))
		if err == nil || !w.retry || !mayPass(err) || ctx.Err() != nil {
			return err
		}
		d := conn.Decide(w.state(), conn.Failed, conn.Unknown, time.Now(), rand.Float64())
		if w.tries() == 1 {
			w.client.log.Info("not connected yet, trying on", "connection", w.id, "error", err)
		}
		select {
		case <-time.After(time.Until(d.At)):
		case <-ctx.Done():
			return err
		}
	}
}

// mayPass reports whether the same Request may succeed later.
func mayPass(err error) bool {
	switch nserr.From(err).Reason {
	case nserr.UnknownService, nserr.NoEndpoint, nserr.NoMatch, nserr.UnknownEndpoint, nserr.EndpointGone, nserr.EndpointsFailed,
		nserr.NoForwarder, nserr.ForwardersFailed, nserr.ForwarderGone, nserr.AddressesExhausted,
		nserr.PeerDown, nserr.TimedOut, nserr.Busy, nserr.Stopping, nserr.NoIdentity:
		return true
	}
	return false
}

// run keeps the wire until ctx ends: it waits for the time or the event that
// conn.Decide named, acts, and decides again.
func (w *Wire) run(ctx context.Context) {
	defer close(w.done)
	unsubscribe := w.client.manager.Subscribe(w.id, w.hear)
	defer unsubscribe()
	defer w.prober.end()
	w.prober.follow(w.Addrs(), w.PeerAddrs())
	next := w.decide(conn.Established)
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-w.events:
			if e == conn.PathDown || e == conn.PeerLost {
				w.prober.suspect()
			}
			next = w.decide(e)
			if e != conn.AskedRefresh {
				w.setDown()
			}
			continue
		case <-time.After(time.Until(next.At)):
		}
		if err := w.count(w.act(ctx, next.Do)); err != nil {
			if ctx.Err() != nil {
				return
			}
			if w.tries() == 1 {
				w.client.log.Warn("wire not refreshed, trying on", "connection", w.id, "error", err)
			}
			next = w.decide(failure(err))
			continue
		}
		w.drain()
		if next.Do == conn.Refresh {
			w.prober.follow(w.Addrs(), w.PeerAddrs())
			w.prober.recheck()
		} else {
			w.prober.renew(w.Addrs(), w.PeerAddrs())
		}
		next = w.decide(conn.Established)
	}
}

// failure is the event that an error of a Request is.
func failure(err error) conn.Event {
	switch nserr.From(err).Reason {
	case nserr.EndpointGone, nserr.UnknownEndpoint:
		return conn.EndpointLost
	}
	return conn.Failed
}

// hear translates what the manager tells about the connection. It runs in the
// peer's goroutine and must not block; of several events the first counts, as
// they all lead to the same Request.
func (w *Wire) hear(e peer.Event) {
	var ev event
	switch {
	case e.Kind == peer.Lost:
		ev = conn.PeerLost
	case e.Kind == peer.Down && e.Conn == nil:
		ev = conn.PeerLost // a manager that has restarted knows nothing
	case e.Kind == peer.Down || e.Conn.GetState() == networkservice.State_DOWN:
		ev = conn.PathDown
	case e.Conn.GetState() == networkservice.State_REFRESH_REQUESTED:
		ev = conn.AskedRefresh
	case e.Conn.GetState() == networkservice.State_RESELECT_REQUESTED:
		ev = conn.AskedReselect
	default:
		return
	}
	w.post(ev)
}

// post hands an event to run. What does not find room comes second to one that
// leads to a Request as well.
func (w *Wire) post(e event) {
	select {
	case w.events <- e:
	default:
	}
}

// drain forgets events from before the Request that has just succeeded.
func (w *Wire) drain() {
	select {
	case <-w.events:
	default:
	}
}

func (w *Wire) decide(e event) conn.Decision {
	now := time.Now()
	return conn.Decide(w.state(), e, w.prober.data(now), now, rand.Float64())
}

func (w *Wire) state() conn.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := hop.PathOf(w.conn)
	return conn.State{Expires: p.Expires(), Index: p.Index, Length: len(p.Segments), Attempts: w.attempts, Up: w.up}
}

// act does what conn.Decide has decided.
func (w *Wire) act(ctx context.Context, do conn.Action) error {
	if do == conn.Either {
		if err := w.request(ctx, false); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return w.request(ctx, do != conn.Refresh)
}

// request sends the Request for the wire as it is now and keeps the answer.
func (w *Wire) request(ctx context.Context, reselect bool) error {
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-w.turn }()
	ctx, cancel := context.WithTimeout(ctx, w.client.config.RequestTimeout)
	defer cancel()

	asked := proto.Clone(w.Connection()).(*networkservice.Connection)
	if reselect {
		asked.Mechanism = nil
		asked.NetworkServiceEndpointName = w.pinned
		asked.State = networkservice.State_RESELECT_REQUESTED
	}
	var at grpcpeer.Peer
	got, err := hop.Ask(rpc.WithFiles(ctx, w.netns), w.client.manager,
		&networkservice.NetworkServiceRequest{Connection: asked, MechanismPreferences: w.prefs}, grpc.Peer(&at))
	if err != nil {
		if errors.Is(err, nserr.NameTaken) {
			w.preferName("")
		}
		return err
	}
	rpc.DiscardReplyFile(&at, got.GetMechanism().GetParameters()["inodeURL"]) // our own, sent back by some
	if err := w.client.config.Verify(hop.PathOf(got), rpc.PeerCert(&at), time.Now()); err != nil {
		if !w.isUp() {
			_ = w.sendClose(context.WithoutCancel(ctx), got)
		}
		return err
	}
	got.State = networkservice.State_UP
	w.preferName(got.GetMechanism().GetParameters()["name"])
	w.established(got)
	return nil
}

// preferName makes name, which was made up for an interface that nobody has named,
// the one to ask for: it stays when the path changes. "" leaves it open again.
func (w *Wire) preferName(name string) {
	if w.named {
		return
	}
	m := proto.Clone(w.prefs[0]).(*networkservice.Mechanism)
	delete(m.Parameters, "name")
	if name != "" {
		m.Parameters["name"] = name
	}
	w.prefs = []*networkservice.Mechanism{m}
}

func (w *Wire) established(got *networkservice.Connection) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.up {
		w.client.log.Info("wire up", "connection", w.id, "service", got.GetNetworkService(), "endpoint", got.GetNetworkServiceEndpointName())
	}
	w.conn, w.up, w.attempts, w.last = got, true, 0, nil
	close(w.changed)
	w.changed = make(chan struct{})
}

// count notes a failed attempt. It returns err.
func (w *Wire) count(err error) error {
	if err == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attempts++
	w.last = err
	close(w.changed)
	w.changed = make(chan struct{})
	return err
}

// setDown notes that the mesh says that the wire is broken.
func (w *Wire) setDown() {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := proto.Clone(w.conn).(*networkservice.Connection)
	c.State = networkservice.State_DOWN
	w.conn = c
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *Wire) tries() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.attempts
}

func (w *Wire) isUp() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.up
}

// Close closes the wire. The interface is gone when it returns without error.
func (w *Wire) Close(ctx context.Context) error {
	w.cancel()
	<-w.done
	w.client.forget(w)
	defer w.netns.Close()
	select {
	case w.turn <- struct{}{}: // for ever
	default:
		return nil // closed already
	}
	if !w.isUp() {
		return nil // nothing of a failed Request is left
	}
	return w.sendClose(ctx, w.Connection())
}

func (w *Wire) sendClose(ctx context.Context, c *networkservice.Connection) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	_, err := networkservice.NewNetworkServiceClient(w.client.manager.Conn()).Close(ctx, c)
	return err
}

// Leave stops keeping the wire and leaves it up: until it expires, whoever asks
// for the same id takes it over.
func (w *Wire) Leave() {
	w.cancel()
	<-w.done
	w.client.forget(w)
	select {
	case w.turn <- struct{}{}:
		_ = w.netns.Close()
	default:
	}
}

// ID returns the connection's id at this end, that of the first segment of its path.
func (w *Wire) ID() string { return w.id }

// Connection returns the wire as the mesh last described it. The message must
// not be changed.
func (w *Wire) Connection() *networkservice.Connection {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conn
}

// Status returns how many attempts to make or refresh the wire have failed in a
// row, the error of the last one, nil if it succeeded, and a channel that is
// closed at the next change of either or of Connection.
func (w *Wire) Status() (attempts int, changed <-chan struct{}, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.attempts, w.changed, w.last
}

// Interface returns the name of the wire's interface.
func (w *Wire) Interface() string {
	k, err := hop.MechanismOf(w.Connection().GetMechanism()).Kernel()
	if err != nil {
		return ""
	}
	return k.Name
}

// Addrs returns the addresses of this end.
func (w *Wire) Addrs() []netip.Addr {
	return addrs(w.Connection().GetContext().GetIpContext().GetSrcIpAddrs())
}

// PeerAddrs returns the addresses of the endpoint.
func (w *Wire) PeerAddrs() []netip.Addr {
	return addrs(w.Connection().GetContext().GetIpContext().GetDstIpAddrs())
}

func addrs(texts []string) (out []netip.Addr) {
	for _, t := range texts {
		if p, err := hop.ParsePrefix(t); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out
}

// openNetNS returns a descriptor of its own for the namespace f, nil meaning
// that of this process.
func openNetNS(f *os.File) (*os.File, error) {
	path := "/proc/self/ns/net"
	if f != nil {
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, nserr.NoNetNS.Errorf("%s: %w", f.Name(), err)
		}
		var own *os.File
		err = errors.Join(raw.Control(func(fd uintptr) {
			own, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
		}), err)
		if err != nil {
			return nil, nserr.NoNetNS.Errorf("%s: %w", f.Name(), err)
		}
		return own, nil
	}
	own, err := os.Open(path)
	if err != nil {
		return nil, nserr.NoNetNS.Errorf("%s: %w", path, err)
	}
	return own, nil
}

func mergeLabels(base, more map[string]string) map[string]string {
	out := maps.Clone(base)
	if out == nil {
		out = make(map[string]string, len(more))
	}
	maps.Copy(out, more)
	return out
}

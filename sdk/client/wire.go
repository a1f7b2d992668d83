// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/nsurl"
	"github.com/openvwire/nsm/sdk/path"
)

const closeTimeout = 10 * time.Second

// Request is a wish for one wire, in more detail than a URL has.
type Request struct {
	// ID of the connection. A client whose Config.Name was given, and that asks for
	// the same id again after a restart, takes the connection over. Default: the
	// client's name and a number, counted from 0.
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
	client  *Client
	id      string
	service string
	prefs   []*networkservice.Mechanism // owned by whoever has turn; before run by open
	named   bool                        // the interface has the name that was asked for
	pinned  string                      // the one endpoint wanted; "" = any
	mtu     uint32                      // asked for; 0 = whatever the path takes
	netns   *namespace
	retry   bool

	inbox  *inbox
	prober prober
	cancel context.CancelFunc
	done   chan struct{} // closed when run has ended

	// Owned by run, and by open before it:
	due        conn.Decision // what is to be done, and when
	urged      int           // see conn.State
	urgedAt    time.Time
	stale      int
	hint       time.Duration // conn.State.Hint
	givenUp    bool
	complaints nserr.Book // why attempts have failed
	complained bool       // aloud, since the last success
	why        string     // the wire is broken, as was said last; "" = nobody has since the last success
	asked      time.Time  // when the last attempt began
	dry        drought    // run alone changes it

	turn chan struct{} // held while a Request or Close is under way

	mu       sync.Mutex
	conn     *networkservice.Connection // last answer, or what is asked for; guarded by mu, immutable
	up       bool                       // guarded by mu
	over     bool                       // was up, and its life has ended; guarded by mu
	ends     time.Time                  // when its life does; guarded by mu
	path     path.Path                  // as it is known to be; guarded by mu, immutable
	wished   time.Time                  // when it has last asked for another path itself, see echoes; guarded by mu
	attempts int                        // failed in a row; guarded by mu
	changed  chan struct{}              // closed at the next change; guarded by mu
	last     error                      // of the last attempt; guarded by mu
}

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
	netns, err := c.netns.enter(r.NetNS)
	if err != nil {
		return nil, err
	}
	if r.ID == "" {
		r.ID = fmt.Sprintf("%s-%d", c.config.Name, c.number())
	}
	w := &Wire{
		client: c, id: r.ID, service: r.Service, netns: netns, retry: r.Retry, named: r.Interface != "", pinned: r.Endpoint, mtu: r.Context.GetMTU(),
		prefs: []*networkservice.Mechanism{hop.MechanismMessage(
			mechanism.Kernel{NetNS: netns.url, Name: r.Interface}.With(mechanism.Mechanism{}))},
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
		inbox:   newInbox(),
		turn:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		changed: make(chan struct{}),
	}
	w.prober = prober{config: c.config.Liveness, netns: netns.file, pacer: c.pacer,
		lost: func() { w.inbox.replace(conn.DataBack, conn.DataLost) }, back: func() { w.inbox.replace(conn.DataLost, conn.DataBack) }, none: func() { w.inbox.post(conn.DataNone) }}
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.cancel = cancel
	if err := c.register(w); err != nil {
		cancel()
		c.netns.leave(netns)
		return nil, err
	}
	if err := w.open(ctx, runCtx); err != nil {
		cancel()
		w.prober.end()
		c.lookout.leave(w.service, w.inbox)
		close(w.done)
		c.forget(w)
		c.netns.leave(netns)
		return nil, err
	}
	go w.run(runCtx)
	return w, nil
}

// Close closes the wire. The interface is gone when it returns without error.
func (w *Wire) Close(ctx context.Context) error {
	w.cancel()
	<-w.done
	w.client.forget(w)
	select {
	case w.turn <- struct{}{}: // for ever
	default:
		return nil // closed already
	}
	defer w.client.netns.leave(w.netns)
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
		w.client.netns.leave(w.netns)
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

// Status returns how many attempts to make, refresh or heal the wire have failed in a
// row, the error of the last one, nil if none has, and a channel that is closed at
// the next change of either or of Connection. One that has succeeded, but has led to a
// path on which no packets come back either, has failed for nserr.NoPackets. When the
// life of the wire has ended both begin anew with the one that is asked for in its place.
func (w *Wire) Status() (attempts int, changed <-chan struct{}, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.attempts == 0 && w.dry.paths > 0 {
		return w.dry.paths, w.changed, errNoPackets
	}
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

func mergeLabels(base, more map[string]string) map[string]string {
	out := maps.Clone(base)
	if out == nil {
		out = make(map[string]string, len(more))
	}
	maps.Copy(out, more)
	return out
}

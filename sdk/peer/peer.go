// SPDX-License-Identifier: Apache-2.0

// Package peer shares what one part of the mesh holds towards another: one gRPC
// connection and one monitor stream, however many wires lead there.
//
//	pool := peer.NewPool(peer.PoolConfig{Name: "forwarder-1", Dial: dial})
//	defer pool.Close()
//
//	next := pool.Get("tcp://10.0.0.2:5003")
//	defer next.Release()
//	reply, err := networkservice.NewNetworkServiceClient(next.Conn()).Request(ctx, request)
//	…
//	cancel := next.Subscribe(id, func(e peer.Event) { … })
//
// The pool does not care what a URL means: Dial may answer some of them with an
// in-process connection (rpc.Local).
package peer

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/openvwire/nsm/sdk/nserr"
)

// idleGrace is how long a connection that nobody refers to stays open: the next
// refresh or Close of a wire usually wants it again.
const idleGrace = 30 * time.Second

// PoolConfig says how peers are reached.
type PoolConfig struct {
	// Dial returns the connection to a URL and what closes it (nil: nothing to
	// close). It must not block.
	Dial func(url string) (grpc.ClientConnInterface, io.Closer, error)
	// Name is the name of the own path segments, by which the events of own
	// connections are told from others.
	Name string
	// ProbeEvery is how long a peer may say nothing before it is asked whether it is
	// alive. 0: 2 s, for those who heal what leads through the peer.
	ProbeEvery time.Duration
	Logger     *slog.Logger // nil: slog.Default()
}

// Pool is a set of peers by URL.
type Pool struct {
	config PoolConfig

	mu     sync.Mutex // guards everything below and the fields of peers that say so
	closed bool
	peers  map[string]*Peer

	ignored nserr.Book // why events were, by URL of the peer

	streams sync.WaitGroup // of monitors; Add under mu and only while not closed
}

// NewPool returns an empty pool. Close it.
func NewPool(c PoolConfig) *Pool {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.ProbeEvery == 0 {
		c.ProbeEvery = defaultProbeEvery
	}
	return &Pool{config: c, peers: make(map[string]*Peer)}
}

// Peer is a shared connection to one URL. It stays open while somebody refers to
// it or subscribes, and some time longer.
type Peer struct {
	pool *Pool
	url  string

	dial sync.Once // sets conn and closer
	conn grpc.ClientConnInterface
	// closer is nil when there is nothing to close.
	closer io.Closer

	// Guarded by pool.mu:
	refs    int         // of Get and Subscribe
	idle    *time.Timer // runs while refs is 0; nil before the first time
	monitor *monitor    // nil while nobody subscribes
}

// Get returns the peer at url, to be released when no longer needed. A URL that
// cannot be dialled shows with the first call.
//
// A connection that nobody needed and that could not be made last is made anew
// at once: its back-off is for those who still call, and somebody else may
// be there by now. (An inode:// URL comes back when the number is used again.)
func (p *Pool) Get(url string) *Peer {
	peer, failed := p.get(url)
	if failed != nil {
		failed.close()
	}
	return peer
}

func (p *Pool) get(url string) (peer, failed *Peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	peer = p.peers[url]
	if peer != nil && peer.refs == 0 && peer.inBackoff() {
		peer.idle.Stop()
		peer, failed = nil, peer
	}
	if peer == nil {
		peer = &Peer{pool: p, url: url}
		if !p.closed {
			p.peers[url] = peer
		}
	}
	peer.refLocked()
	return peer, failed
}

// inBackoff reports whether gRPC waits before it tries to connect again. Only for
// peers that nobody refers to.
func (p *Peer) inBackoff() bool {
	c, ok := p.conn.(interface{ GetState() connectivity.State })
	return ok && c.GetState() == connectivity.TransientFailure
}

// Len returns the number of connections held.
func (p *Pool) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.peers)
}

// URLs returns those of the peers, in no order.
func (p *Pool) URLs() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.peers))
}

// Close ends all monitor streams, without events, and closes all connections. It
// returns when no subscriber's function runs any more.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	peers := p.peers
	p.peers = make(map[string]*Peer)
	for _, peer := range peers {
		if peer.monitor != nil {
			peer.monitor.cancel()
			peer.monitor = nil
		}
		if peer.idle != nil {
			peer.idle.Stop()
		}
	}
	p.mu.Unlock()
	p.streams.Wait()
	for _, peer := range peers {
		peer.close()
	}
}

// URL returns the URL that the peer was got with.
func (p *Peer) URL() string { return p.url }

// Conn returns the connection, for generated clients.
func (p *Peer) Conn() grpc.ClientConnInterface {
	p.dial.Do(func() {
		if p.isClosed() {
			p.conn = failing{nserr.Stopping.Errorf("no calls to %s any more", p.url)}
			return
		}
		conn, closer, err := p.pool.config.Dial(p.url)
		if err != nil {
			conn, closer = failing{err}, nil
		}
		p.conn, p.closer = conn, closer
	})
	return p.conn
}

func (p *Peer) isClosed() bool {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	return p.pool.closed
}

// Release gives a reference of Get back.
func (p *Peer) Release() {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	p.unrefLocked()
}

func (p *Peer) refLocked() {
	p.refs++
	if p.idle != nil {
		p.idle.Stop()
	}
}

func (p *Peer) unrefLocked() {
	p.refs--
	if p.refs < 0 {
		panic("peer: released more often than got: " + p.url)
	}
	if p.refs > 0 || p.pool.closed {
		return
	}
	if p.idle == nil {
		p.idle = time.AfterFunc(idleGrace, p.expire)
	} else {
		p.idle.Reset(idleGrace)
	}
}

// expire closes a connection that has been idle.
func (p *Peer) expire() {
	p.pool.mu.Lock()
	unused := p.refs == 0 && p.pool.peers[p.url] == p
	if unused {
		delete(p.pool.peers, p.url)
	}
	p.pool.mu.Unlock()
	if unused {
		p.close()
	}
}

// close closes the connection, if there ever was one, and prevents a later one.
func (p *Peer) close() {
	p.dial.Do(func() {
		p.conn = failing{nserr.Stopping.Errorf("no calls to %s any more", p.url)}
	})
	if p.closer != nil {
		if err := p.closer.Close(); err != nil {
			p.pool.config.Logger.Debug("closing a connection", "peer", p.url, "error", err)
		}
	}
}

// failing is a connection that could not be made.
type failing struct{ err error }

func (f failing) Invoke(context.Context, string, any, any, ...grpc.CallOption) error { return f.err }
func (f failing) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, f.err
}

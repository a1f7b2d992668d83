// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"context"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Cleanup closes at next hops, in the background, what this hop has no use for any
// more: old paths, and what attempts without an answer may have built. Nobody waits
// for a peer that is dead.
//
// A connection has the same id at a next hop each time, whatever lies behind. So a
// Close that is still under way there when it is asked for again would hit the wrong
// one: Asking ends it first. A hop that has heard both keeps their order, since
// nobody gets a turn who has given up (conn.Table).
type Cleanup struct {
	peers   *peer.Pool
	sockets *rpc.Sockets

	closing sync.WaitGroup

	mu       sync.Mutex
	underway map[place]*closing // guarded by mu
}

// place is where a connection is to be closed.
type place struct {
	id  string // of the own segment
	url string // of the next hop
}

// closing is one Close under way.
type closing struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended
}

// stopWait bounds how long Stop waits for Closes under way.
const stopWait = time.Second

// NewCleanup returns a Cleanup for next hops out of peers, some of which listen on
// sockets.
func NewCleanup(peers *peer.Pool, sockets *rpc.Sockets) *Cleanup {
	return &Cleanup{peers: peers, sockets: sockets, underway: make(map[place]*closing)}
}

// hold returns the peer at url with a reference of its own, and one to its socket:
// whoever asked it may let both go.
func (c *Cleanup) hold(url string) (p *peer.Peer, release func()) {
	p = c.peers.Get(url)
	socket, ok := c.sockets.HoldAgain(url)
	return p, func() {
		p.Release()
		if ok {
			socket()
		}
	}
}

// close sends a Close after a while, which survives the caller's giving up. done is
// closed when it was answered, or has failed.
func (c *Cleanup) close(ctx context.Context, at *peer.Peer, conn *networkservice.Connection, after time.Duration) (done <-chan struct{}) {
	where := place{conn.GetId(), at.URL()}
	p, release := c.hold(at.URL())
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	one := &closing{cancel: cancel, done: make(chan struct{})}

	c.mu.Lock()
	if before := c.underway[where]; before != nil {
		before.cancel() // this one does the same
	}
	c.underway[where] = one
	c.mu.Unlock()
	c.closing.Go(func() {
		if after > 0 {
			select {
			case <-time.After(after):
			case <-ctx.Done():
			}
		}
		_ = closeUntil(ctx, p, conn) // which is nothing if ctx has ended
		release()
		c.mu.Lock()
		if c.underway[where] == one {
			delete(c.underway, where)
		}
		c.mu.Unlock()
		cancel()
		close(one.done)
	})
	return one.done
}

// overtake ends a Close under way. It reports whether there was one: nobody knows
// then whether it has taken effect.
func (c *Cleanup) overtake(where place) bool {
	c.mu.Lock()
	one := c.underway[where]
	c.mu.Unlock()
	if one == nil {
		return false
	}
	one.cancel()
	<-one.done // the peer hears of the end before it hears of what comes next
	return true
}

// Stop waits a moment for what is under way, then gives it up.
func (c *Cleanup) Stop() {
	patience := time.AfterFunc(stopWait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, one := range c.underway {
			one.cancel()
		}
	})
	defer patience.Stop()
	c.closing.Wait()
}

// Asking is the way of one Request past the next hops that it is offered to, one
// after the other.
//
//	asking := cleanup.Asking()
//	defer asking.End(ctx)
//	got, err := asking.Ask(ctx, next, request)
//
// A hop that has not answered, or with nonsense, is told to close what it may have
// built when the way has ended: it may be asked again before, and then that one
// counts.
type Asking struct {
	cleanup *Cleanup
	left    []leftover
}

// leftover is what a next hop may have built in vain.
type leftover struct {
	peer    *peer.Peer
	release func()
	conn    *networkservice.Connection
}

// Asking begins the way of a Request.
func (c *Cleanup) Asking() *Asking { return &Asking{cleanup: c} }

// Ask sends the Request to a next hop and checks the answer.
func (a *Asking) Ask(ctx context.Context, p *peer.Peer, req *networkservice.NetworkServiceRequest, opts ...grpc.CallOption) (*networkservice.Connection, error) {
	overtaken := a.cleanup.overtake(place{req.GetConnection().GetId(), p.URL()})
	got, left, err := ask(ctx, p, req, opts...)
	before := a.forget(p.URL())
	if err != nil && (left || overtaken || before) {
		held, release := a.cleanup.hold(p.URL())
		a.left = append(a.left, leftover{held, release, req.GetConnection()})
	}
	return got, err
}

// forget drops what the hop at url may have built, and reports whether there was
// something.
func (a *Asking) forget(url string) bool {
	for i, l := range a.left {
		if l.peer.URL() == url {
			l.release()
			a.left = append(a.left[:i], a.left[i+1:]...)
			return true
		}
	}
	return false
}

// End has everything closed that was built in vain.
func (a *Asking) End(ctx context.Context) {
	for _, l := range a.left {
		a.cleanup.close(ctx, l.peer, l.conn, 0)
		l.release()
	}
	a.left = nil
}

// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
)

// nextHop writes down what it is asked, and says nothing, refuses, or answers.
type nextHop struct {
	mu      sync.Mutex
	silent  map[string]bool // methods that are not answered; guarded by mu
	refuses bool            // guarded by mu
	log     []string        // guarded by mu
	closing context.Context // of the last Close; guarded by mu
}

// wait is for as long as the caller waits if the method is not answered.
func (n *nextHop) wait(ctx context.Context, method string) error {
	n.mu.Lock()
	silent := n.silent[method]
	if method == "close" {
		n.closing = ctx
	} else if n.closing != nil && n.closing.Err() == nil {
		n.log = append(n.log, "while closing:")
	}
	n.log = append(n.log, method)
	n.mu.Unlock()
	if !silent {
		return nil
	}
	<-ctx.Done()
	return nserr.TimedOut.Errorf("%w", ctx.Err())
}

func (n *nextHop) Request(ctx context.Context, req *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	if err := n.wait(ctx, "request"); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuses {
		return nil, nserr.Busy.Errorf("not now")
	}
	c := proto.CloneOf(req.GetConnection())
	c.Path.PathSegments = append(c.Path.PathSegments, &networkservice.PathSegment{
		Name: "next", Id: "next-1", Expires: timestamppb.New(time.Now().Add(time.Hour)),
	})
	return c, nil
}

func (n *nextHop) Close(ctx context.Context, _ *networkservice.Connection) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, n.wait(ctx, "close")
}

func (n *nextHop) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// take returns what was asked since the last time.
func (n *nextHop) take() []string {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	log := n.log
	n.log = nil
	return log
}

// cleaning runs f with a Cleanup and a peer that is n.
func cleaning(t *testing.T, f func(t *testing.T, n *nextHop, c *Cleanup, p *peer.Peer)) {
	synctest.Test(t, func(t *testing.T) {
		n := &nextHop{silent: make(map[string]bool)}
		local := rpc.NewLocal(rpc.LocalOptions{Logger: slog.New(slog.DiscardHandler)})
		rpc.RegisterNetworkService(local, n)
		defer local.Close()
		pool := peer.NewPool(peer.PoolConfig{Dial: func(string) (grpc.ClientConnInterface, io.Closer, error) {
			return local.Dial(rpc.LocalCaller{}), nil, nil
		}})
		defer pool.Close()
		c := NewCleanup(pool, rpc.NewSockets())
		p := pool.Get("inproc://next")
		f(t, n, c, p)
		p.Release()
		c.Stop()
		time.Sleep(time.Minute)
		if n := pool.Len(); n != 0 {
			t.Errorf("%d peers are held", n)
		}
	})
}

func firstRequest() *networkservice.NetworkServiceRequest {
	return &networkservice.NetworkServiceRequest{Connection: &networkservice.Connection{
		Id: "hop-1", NetworkService: "db",
		Path: &networkservice.Path{Index: 1, PathSegments: []*networkservice.PathSegment{{Name: "client", Id: "c"}, {Name: "hop", Id: "hop-1"}}},
	}}
}

// tryFor asks with a time limit, and ends the way.
func tryFor(ctx context.Context, c *Cleanup, p *peer.Peer, limits ...time.Duration) (err error) {
	asking := c.Asking()
	for _, limit := range limits {
		limited, cancel := context.WithTimeout(ctx, limit)
		_, err = asking.Ask(limited, p, firstRequest())
		cancel()
	}
	asking.End(ctx)
	synctest.Wait() // the Close is under way
	return err
}

func expect(t *testing.T, n *nextHop, want ...string) {
	t.Helper()
	if got := n.take(); !slices.Equal(got, want) {
		t.Errorf("the next hop was asked %q, want %q", got, want)
	}
}

func TestUnansweredIsClosed(t *testing.T) {
	cleaning(t, func(t *testing.T, n *nextHop, c *Cleanup, p *peer.Peer) {
		n.set(func() { n.silent["request"], n.silent["close"] = true, true })
		start := time.Now()
		if err := tryFor(t.Context(), c, p, time.Second); err == nil {
			t.Error("no error")
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %v", took)
		}
		expect(t, n, "request", "close")
		time.Sleep(CloseTimeout)

		n.set(func() { n.silent["request"] = false })
		if err := tryFor(t.Context(), c, p, time.Second); err != nil {
			t.Error(err)
		}
		expect(t, n, "request")
	})
}

// Who is asked again before the way ends, and answers then, has nothing to close.
func TestAnsweredTheSecondTime(t *testing.T) {
	cleaning(t, func(t *testing.T, n *nextHop, c *Cleanup, p *peer.Peer) {
		n.set(func() { n.silent["request"] = true })
		time.AfterFunc(1500*time.Millisecond, func() { n.set(func() { n.silent["request"] = false }) })
		if err := tryFor(t.Context(), c, p, time.Second, time.Second, time.Second); err != nil {
			t.Error(err)
		}
		expect(t, n, "request", "request", "request")
	})
}

// A Close under way does not hit what is asked for after it.
func TestCloseIsOvertaken(t *testing.T) {
	cleaning(t, func(t *testing.T, n *nextHop, c *Cleanup, p *peer.Peer) {
		n.set(func() { n.silent["request"], n.silent["close"] = true, true })
		_ = tryFor(t.Context(), c, p, time.Second)
		n.set(func() { n.silent["request"] = false })
		if err := tryFor(t.Context(), c, p, time.Second); err != nil {
			t.Error(err)
		}
		expect(t, n, "request", "close", "request")
	})
}

// What a Close that was ended should have closed is closed if nothing takes its
// place.
func TestOvertakenInVain(t *testing.T) {
	cleaning(t, func(t *testing.T, n *nextHop, c *Cleanup, p *peer.Peer) {
		n.set(func() { n.silent["request"], n.silent["close"] = true, true })
		_ = tryFor(t.Context(), c, p, time.Second)
		n.set(func() { n.silent["request"], n.silent["close"], n.refuses = false, false, true })
		if err := tryFor(t.Context(), c, p, time.Second); err == nil {
			t.Error("no error")
		}
		expect(t, n, "request", "close", "request", "close")
	})
}

// A Close that is for later is sent then, unless the hop is asked again before.
func TestCloseLater(t *testing.T) {
	cleaning(t, func(t *testing.T, n *nextHop, c *Cleanup, p *peer.Peer) {
		later := func() <-chan struct{} {
			next := Next{Peer: c.peers.Get(p.URL()), Conn: firstRequest().Connection, unsubscribe: func() {}}
			return next.CloseLater(t.Context(), nil, time.Second, c)
		}
		done := later()
		time.Sleep(time.Second - 1)
		expect(t, n)
		time.Sleep(time.Nanosecond)
		expect(t, n, "close")
		<-done

		done = later()
		if err := tryFor(t.Context(), c, p, time.Second); err != nil {
			t.Error(err)
		}
		<-done
		time.Sleep(time.Minute)
		expect(t, n, "request")
	})
}

// Stop does not wait for who says nothing.
func TestCleanupStops(t *testing.T) {
	cleaning(t, func(t *testing.T, n *nextHop, c *Cleanup, p *peer.Peer) {
		n.set(func() { n.silent["request"], n.silent["close"] = true, true })
		_ = tryFor(t.Context(), c, p, time.Second)
		start := time.Now()
		c.Stop()
		if took := time.Since(start); took != stopWait {
			t.Errorf("stopped after %v", took)
		}
	})
}

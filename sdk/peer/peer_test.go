// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ownName = "forwarder-1"

var quiet = slog.New(slog.DiscardHandler)

// hop is a next hop whose monitor stream the test plays.
type hop struct {
	networkservice.UnimplementedMonitorConnectionServer
	local *rpc.Local

	mu      sync.Mutex
	opened  int           // streams so far
	streams []chan action // open now
	down    bool          // refuses streams
	mute    bool          // accepts streams and says nothing
	spared  int           // streams that want changes only
	first   *networkservice.ConnectionEvent
	dials   int
	closes  int
}

// action is an event to send or an error to end with.
type action struct {
	event *networkservice.ConnectionEvent
	err   error
}

func newHop(t *testing.T) *hop {
	h := &hop{local: rpc.NewLocal(rpc.LocalOptions{Logger: quiet}), first: initial()}
	rpc.RegisterMonitorConnection(h.local, h)
	t.Cleanup(h.local.Close)
	return h
}

func (h *hop) MonitorConnections(sel *networkservice.MonitorScopeSelector, s networkservice.MonitorConnection_MonitorConnectionsServer) error {
	if p := sel.GetPathSegments(); len(p) != 1 || p[0].GetName() != ownName || p[0].GetId() != "" {
		return nserr.BadSelector.Errorf("%v", sel)
	}
	actions := make(chan action, 16)
	h.mu.Lock()
	h.opened++
	h.spared += len(metadata.ValueFromIncomingContext(s.Context(), ChangesOnly))
	if h.down {
		h.mu.Unlock()
		return nserr.Stopping.Errorf("down")
	}
	h.streams = append(h.streams, actions)
	first := h.first
	if h.mute {
		first = nil
	}
	h.mu.Unlock()
	if first != nil {
		if err := s.Send(first); err != nil {
			return err
		}
	}
	for {
		select {
		case a := <-actions:
			if a.err != nil {
				return a.err
			}
			if err := s.Send(a.event); err != nil {
				return err
			}
		case <-s.Context().Done():
			h.mu.Lock()
			defer h.mu.Unlock()
			h.streams = nil
			return s.Context().Err()
		}
	}
}

// send plays an event on the open stream and waits until it has had its effect.
func (h *hop) send(e *networkservice.ConnectionEvent) { h.act(action{event: e}) }

// fail ends the open stream; the next ones begin with the given connections.
func (h *hop) fail(first ...*networkservice.Connection) {
	h.mu.Lock()
	h.first = initial(first...)
	h.mu.Unlock()
	h.act(action{err: io.ErrUnexpectedEOF})
}

func (h *hop) act(a action) {
	h.mu.Lock()
	for _, s := range h.streams {
		s <- a
	}
	if a.err != nil {
		h.streams = nil
	}
	h.mu.Unlock()
	synctest.Wait()
}

func (h *hop) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *hop) count() (opened, open int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.opened, len(h.streams)
}

// connections returns how many were made and closed.
func (h *hop) connections() (dials, closes int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dials, h.closes
}

func (h *hop) dial(string) (grpc.ClientConnInterface, io.Closer, error) {
	h.set(func() { h.dials++ })
	return h.local.Dial(rpc.LocalCaller{}), closeFunc(func() { h.set(func() { h.closes++ }) }), nil
}

type closeFunc func()

func (f closeFunc) Close() error { f(); return nil }

// newPool returns a pool whose every URL leads to h.
func newPool(t *testing.T, h *hop) *Pool {
	p := NewPool(PoolConfig{Dial: h.dial, Name: ownName, Logger: quiet})
	t.Cleanup(p.Close)
	return p
}

// connection is how the peer sees the own connection with the given id.
func connection(id string, state networkservice.State) *networkservice.Connection {
	return &networkservice.Connection{
		Id: "peer-" + id, State: state,
		Path: &networkservice.Path{Index: 2, PathSegments: []*networkservice.PathSegment{
			{Name: "client", Id: "client-" + id}, {Name: ownName, Id: id}, {Name: "peer", Id: "peer-" + id},
		}},
	}
}

func up(id string) *networkservice.Connection { return connection(id, networkservice.State_UP) }

func event(kind networkservice.ConnectionEventType, conns ...*networkservice.Connection) *networkservice.ConnectionEvent {
	e := &networkservice.ConnectionEvent{Type: kind, Connections: make(map[string]*networkservice.Connection)}
	for _, c := range conns {
		e.Connections[c.GetId()] = c
	}
	return e
}

func initial(conns ...*networkservice.Connection) *networkservice.ConnectionEvent {
	return event(networkservice.ConnectionEventType_INITIAL_STATE_TRANSFER, conns...)
}

func update(conns ...*networkservice.Connection) *networkservice.ConnectionEvent {
	return event(networkservice.ConnectionEventType_UPDATE, conns...)
}

func remove(conns ...*networkservice.Connection) *networkservice.ConnectionEvent {
	return event(networkservice.ConnectionEventType_DELETE, conns...)
}

func TestPoolSharesConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		pool := newPool(t, h)
		expect := func(held, dialled, closed int) {
			t.Helper()
			synctest.Wait()
			if d, c := h.connections(); pool.Len() != held || d != dialled || c != closed {
				t.Errorf("%d held, %d dialled, %d closed", pool.Len(), d, c)
			}
		}
		a, b, other := pool.Get("a"), pool.Get("a"), pool.Get("b")
		defer other.Release()
		if a != b || a == other || a.URL() != "a" || a.Conn() != b.Conn() {
			t.Error("peers are not told apart by URL")
		}
		expect(2, 1, 0)
		a.Release()
		time.Sleep(2 * idleGrace)
		expect(2, 1, 0)
		b.Release()
		time.Sleep(idleGrace - 1)
		pool.Get("a").Release() // the grace begins anew
		time.Sleep(idleGrace - 1)
		expect(2, 1, 0)
		time.Sleep(time.Nanosecond)
		expect(1, 1, 1)
		again := pool.Get("a")
		defer again.Release()
		again.Conn()
		expect(2, 2, 1)
	})
}

func TestPoolClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		pool := newPool(t, h)
		used, idle := pool.Get("used"), pool.Get("idle")
		used.Conn()
		idle.Conn()
		idle.Release()
		var l listener
		cancel := used.Subscribe("1", l.hear)
		synctest.Wait()
		pool.Close()
		if _, closes := h.connections(); closes != 2 || pool.Len() != 0 {
			t.Errorf("%d closed, %d left", closes, pool.Len())
		}
		time.Sleep(time.Minute)
		l.expect(t)
		cancel()
		used.Release()
		late := pool.Get("late")
		defer late.Release()
		late.Subscribe("1", func(Event) { t.Error("called after Close") })()
		_, err := networkservice.NewMonitorConnectionClient(late.Conn()).MonitorConnections(t.Context(), &networkservice.MonitorScopeSelector{})
		if !errors.Is(err, nserr.Stopping) {
			t.Errorf("called after Close: %v", err)
		}
		pool.Close()
	})
}

func TestDialError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := NewPool(PoolConfig{Name: ownName, Logger: quiet, Dial: func(url string) (grpc.ClientConnInterface, io.Closer, error) {
			return nil, nil, nserr.BadFlag.Errorf("%s", url)
		}})
		defer pool.Close()
		p := pool.Get("nonsense")
		defer p.Release()
		if err := p.Conn().Invoke(t.Context(), "/x/y", nil, nil); !errors.Is(err, nserr.BadFlag) {
			t.Errorf("error %v", err)
		}
		var l listener
		defer p.Subscribe("1", l.hear)()
		l.expect(t, "lost")
	})
}

// Whoever asks for a peer that nobody needed does not inherit the back-off of
// those before: another one may listen at the same URL by now.
func TestNoBackoffFromEarlierUsers(t *testing.T) {
	url := "unix://" + filepath.Join(t.TempDir(), "s")
	client, server := rpc.Plaintext()
	var cc *grpc.ClientConn // the last one
	pool := NewPool(PoolConfig{Name: ownName, Logger: quiet, Dial: func(url string) (grpc.ClientConnInterface, io.Closer, error) {
		var err error
		cc, err = rpc.Dial(url, rpc.DialOptions{Credentials: client})
		return cc, cc, err
	}})
	defer pool.Close()
	call := func() error {
		p := pool.Get(url)
		defer p.Release()
		_, err := networkservice.NewNetworkServiceClient(p.Conn()).Close(t.Context(), up("1"))
		return err
	}
	if err := call(); status.Code(err) != codes.Unavailable {
		t.Fatalf("nobody listens: %v", err)
	}
	// gRPC fails the call a moment before it says that it waits.
	for state := cc.GetState(); state != connectivity.TransientFailure && cc.WaitForStateChange(t.Context(), state); {
		state = cc.GetState()
	}
	l, err := rpc.Listen(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.ServerOptions{Credentials: server, Logger: quiet})
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	defer serving.Wait()
	defer s.Stop()
	if err := call(); status.Code(err) != codes.Unimplemented {
		t.Errorf("somebody listens now: %v", err)
	}
}

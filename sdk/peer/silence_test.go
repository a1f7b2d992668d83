// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// gate is what stands between a process and its sockets: shut, the process is
// frozen. Its kernel still takes what fits in a buffer.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed while open
}

func newGate() *gate {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	return g
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

func (g *gate) reopen() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.open)
}

func (g *gate) pass() {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	<-open
}

// gated is a connection of a process behind a gate.
type gated struct {
	net.Conn
	gate *gate
	in   io.Reader // what the kernel has taken for it
}

func (g *gated) Read(p []byte) (int, error) {
	g.gate.pass()
	n, err := g.in.Read(p)
	g.gate.pass()
	return n, err
}

func (g *gated) Write(p []byte) (int, error) {
	g.gate.pass()
	return g.Conn.Write(p)
}

// process is a server behind a gate.
type process struct {
	*gate
	accept chan net.Conn
	pumps  sync.WaitGroup
}

// dial connects as a kernel does: without the process.
func (p *process) dial(ctx context.Context, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	r, w := io.Pipe()
	buffered := make(chan []byte, 1<<10)
	p.pumps.Go(func() {
		defer close(buffered)
		for {
			b := make([]byte, 1<<16)
			n, err := server.Read(b)
			if err != nil {
				return
			}
			buffered <- b[:n]
		}
	})
	p.pumps.Go(func() {
		defer w.Close()
		for b := range buffered {
			if _, err := w.Write(b); err != nil {
				server.Close()
			}
		}
	})
	select {
	case p.accept <- &gated{server, p.gate, r}:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *process) Accept() (net.Conn, error) {
	c, ok := <-p.accept
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p *process) Close() error   { close(p.accept); return nil }
func (p *process) Addr() net.Addr { return &net.UnixAddr{Name: "process", Net: "pipe"} }

// serve runs s until the test ends, and returns a pool whose URLs lead to it.
func (p *process) serve(t *testing.T, s *grpc.Server) *Pool {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- s.Serve(p) }()
	client, _ := rpc.Plaintext()
	pool := NewPool(PoolConfig{Name: ownName, Logger: quiet, Dial: func(string) (grpc.ClientConnInterface, io.Closer, error) {
		cc, err := rpc.Dial("tcp://192.0.2.1:5001", rpc.DialOptions{Credentials: client, Options: []grpc.DialOption{grpc.WithContextDialer(p.dial)}})
		return cc, cc, err
	}})
	t.Cleanup(func() {
		pool.Close()
		s.Stop()
		<-served
		p.pumps.Wait()
	})
	return pool
}

// The kernel of a frozen process answers for it: TCP notices nothing. Who has
// subscribed is told, and told again when it goes on.
func TestFrozenPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, creds := rpc.Plaintext()
		s := rpc.NewServer(rpc.ServerOptions{Credentials: creds, Logger: quiet})
		rpc.RegisterMonitorConnection(s, &hop{first: initial(up("1"))})
		process := &process{gate: newGate(), accept: make(chan net.Conn)}
		p := process.serve(t, s).Get("a")
		defer p.Release()
		var l listener
		defer p.Subscribe("1", l.hear)()
		l.expect(t, "update")
		time.Sleep(10 * time.Minute) // silence is no sign of death
		l.expect(t)

		for range 3 {
			process.shut()
			time.Sleep(2*probeLimit - 1)
			l.expect(t) // it may be busy
			time.Sleep(defaultProbeEvery + 1)
			l.expect(t, "lost")
			time.Sleep(3 * time.Second)
			l.expect(t)
			process.reopen()
			time.Sleep(retry.Max)
			l.expect(t, "restored")
			time.Sleep(time.Minute)
			l.expect(t)
		}
	})
}

// Who comes to a frozen peer is told so as well, and a moment of silence is none.
func TestFrozenFromTheBeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, creds := rpc.Plaintext()
		s := rpc.NewServer(rpc.ServerOptions{Credentials: creds, Logger: quiet})
		rpc.RegisterMonitorConnection(s, &hop{first: initial(up("1"))})
		process := &process{gate: newGate(), accept: make(chan net.Conn)}
		p := process.serve(t, s).Get("a")
		defer p.Release()
		process.shut()
		var l listener
		defer p.Subscribe("1", l.hear)()
		time.Sleep(defaultProbeEvery + 3*probeLimit)
		l.expect(t, "lost")
		process.reopen()
		time.Sleep(connectAgain)
		l.expect(t, "restored")

		for range 100 {
			process.shut()
			time.Sleep(probeLimit)
			process.reopen()
			time.Sleep(time.Second)
		}
		l.expect(t)
	})
}

// connectAgain is how long a connection takes to come back at most.
const connectAgain = 5 * time.Second

// A peer without a health service answers too.
func TestPeerWithoutHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := grpc.NewServer()
		rpc.RegisterMonitorConnection(s, &hop{first: initial(up("1"))})
		p := (&process{gate: newGate(), accept: make(chan net.Conn)}).serve(t, s).Get("a")
		defer p.Release()
		var l listener
		defer p.Subscribe("1", l.hear)()
		time.Sleep(10 * time.Minute)
		l.expect(t, "update")
	})
}

// counting counts the checks.
type counting struct {
	grpc.ClientConnInterface
	checks atomic.Int64
}

func (c *counting) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if method == healthpb.Health_Check_FullMethodName {
		c.checks.Add(1)
	}
	return c.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
}

// A peer is asked as often as the pool says, for all that is subscribed to together, and
// not while it tells of itself, nor while nobody wants to know.
func TestProbesAreFew(t *testing.T) {
	for set, every := range map[time.Duration]time.Duration{0: defaultProbeEvery, 10 * time.Second: 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			h := newHop(t)
			conn := &counting{ClientConnInterface: h.local.Dial(rpc.LocalCaller{})}
			pool := NewPool(PoolConfig{Name: ownName, ProbeEvery: set, Logger: quiet, Dial: func(string) (grpc.ClientConnInterface, io.Closer, error) { return conn, nil, nil }})
			defer pool.Close()
			p := pool.Get("a")
			defer p.Release()
			time.Sleep(time.Minute)
			if n := conn.checks.Load(); n != 0 {
				t.Errorf("%d checks that nobody wants", n)
			}
			var cancels []func()
			for _, id := range []string{"1", "2", "3"} {
				cancels = append(cancels, p.Subscribe(id, func(Event) {}))
			}
			time.Sleep(100 * every)
			if n := conn.checks.Load(); n < 99 || n > 140 {
				t.Errorf("%d checks in %v", n, 100*every)
			}
			h.send(update(up("1")))
			conn.checks.Store(0)
			for range 100 {
				time.Sleep(every / 2)
				h.send(update(up("1")))
			}
			if n := conn.checks.Load(); n != 0 {
				t.Errorf("%d checks while there is news", n)
			}
			for _, f := range cancels {
				f()
			}
			conn.checks.Store(0)
			time.Sleep(time.Minute)
			if n := conn.checks.Load(); n != 0 {
				t.Errorf("%d checks afterwards", n)
			}
		})
	}
}

// A peer that comes and goes ten times a second is watched less and less eagerly,
// and the log says so a few times, not each time.
func TestFlappingPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		h.first = initial(up("1"))
		var text syncBuffer
		pool := NewPool(PoolConfig{Dial: h.dial, Name: ownName, Logger: slog.New(slog.NewTextHandler(&text, nil))})
		defer pool.Close()
		p := pool.Get("a")
		defer p.Release()
		var l listener
		defer p.Subscribe("1", l.hear)()
		l.expect(t, "update")
		time.Sleep(time.Minute)

		start, breaks := time.Now(), 0
		for time.Since(start) < 10*time.Minute {
			if _, open := h.count(); open > 0 {
				h.fail(up("1"))
				breaks++
			}
			time.Sleep(100 * time.Millisecond)
		}
		if least := int(10 * time.Minute / (retry.Max + 200*time.Millisecond)); breaks < least/2 || breaks > 2*least {
			t.Errorf("%d breaks in 10 minutes", breaks)
		}
		kinds := l.kinds()
		if len(kinds) > 2*breaks {
			t.Errorf("%d events of %d breaks", len(kinds), breaks)
		}
		for i, k := range kinds {
			if want := []string{"lost", "restored"}[i%2]; k != want {
				t.Fatalf("event %d is %s", i, k)
			}
		}
		time.Sleep(time.Minute)
		text.expect(t, "connections of the peer cannot be watched", "count=10", "count=100", "connections of the peer are watched again")
	})
}

// One that breaks now and then, each time when it seemed to be well again, is spoken of
// no more often; one that was well for long is as if it never had.
func TestBreaksNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		h.first = initial(up("1"))
		var text syncBuffer
		pool := NewPool(PoolConfig{Dial: h.dial, Name: ownName, Logger: slog.New(slog.NewTextHandler(&text, nil))})
		defer pool.Close()
		p := pool.Get("a")
		defer p.Release()
		defer p.Subscribe("1", func(Event) {})()
		time.Sleep(time.Hour)
		for range 99 {
			h.fail(up("1"))
			time.Sleep(calm - time.Second)
		}
		time.Sleep(time.Hour)
		h.fail(up("1"))
		time.Sleep(time.Minute)
		text.expect(t, "connections of the peer cannot be watched", "connections of the peer are watched again",
			"the peer is unstable", "connections of the peer are watched again", // for the 10th time
			"connections of the peer cannot be watched", "connections of the peer are watched again")
	})
}

// A peer that is gone for long is logged when it goes and when it is back for good.
func TestGonePeerIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		var text syncBuffer
		pool := NewPool(PoolConfig{Dial: h.dial, Name: ownName, Logger: slog.New(slog.NewTextHandler(&text, nil))})
		defer pool.Close()
		p := pool.Get("a")
		defer p.Release()
		defer p.Subscribe("1", func(Event) {})()
		synctest.Wait()
		h.set(func() { h.down = true })
		h.act(action{err: nserr.Stopping.Errorf("bye")})
		time.Sleep(time.Hour)
		h.set(func() { h.down = false })
		time.Sleep(time.Minute)
		text.expect(t, "connections of the peer cannot be watched", "connections of the peer are watched again")
	})
}

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// expect compares the lines with what each must have.
func (b *syncBuffer) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(b.buf.String()), "\n")
	if len(lines) != len(want) {
		t.Fatalf("log:\n%s\nwant %q", b.buf.String(), want)
	}
	for i, w := range want {
		if !strings.Contains(lines[i], w) {
			t.Errorf("line %q, want %q", lines[i], w)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// A server of somebody else's, with gRPC's own idea of how often a client may
// ping, must keep a connection of ours for as long as we like.
func TestIdleConnectionBearsForeignServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := make(pipeListener)
		server := grpc.NewServer()
		RegisterMonitorConnection(server, silentMonitor{})
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()
		defer func() { server.Stop(); <-served }()

		creds, _ := Plaintext()
		cc, err := Dial("tcp://192.0.2.1:5001", DialOptions{Credentials: creds, Options: []grpc.DialOption{
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.dial(ctx) }),
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		stream, err := networkservice.NewMonitorConnectionClient(cc).MonitorConnections(ctx, &networkservice.MonitorScopeSelector{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		if ctx.Err() == nil {
			t.Errorf("the stream ended early: %v", err)
		}
	})
}

// Our servers bear clients that ping, and notice those that are gone without a word:
// what they asked for ends.
func TestServerBearsPingsAndNoticesSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := make(pipeListener)
		_, creds := Plaintext()
		server := NewServer(ServerOptions{Credentials: creds})
		ended := make(chan time.Time, 1)
		RegisterMonitorConnection(server, monitorFunc(func(ctx context.Context) {
			<-ctx.Done()
			ended <- time.Now()
		}))
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()
		defer func() { server.Stop(); <-served }()

		var conn *mutable
		cc, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: time.Hour, PermitWithoutStream: true}),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				c, err := l.dial(ctx)
				conn = &mutable{Conn: c, dead: make(chan struct{})}
				return conn, err
			}))
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		stream, err := networkservice.NewMonitorConnectionClient(cc).MonitorConnections(t.Context(), &networkservice.MonitorScopeSelector{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if len(ended) > 0 {
			t.Fatal("a client that pings was thrown out")
		}
		vanished := time.Now()
		close(conn.dead)
		if d := (<-ended).Sub(vanished); d > keepaliveTime+keepaliveTimeout {
			t.Errorf("noticed after %v", d)
		}
		cc.Close()
		if _, err := stream.Recv(); err == nil {
			t.Error("the stream goes on")
		}
	})
}

// mutable is a connection whose end can vanish: nothing comes out of it any more,
// nor does anybody hear what goes in.
type mutable struct {
	net.Conn
	dead chan struct{}
}

func (m *mutable) Read(p []byte) (int, error) {
	b := make([]byte, len(p))
	for {
		n, err := m.Conn.Read(b)
		select {
		case <-m.dead:
			if err != nil {
				return n, err
			}
		default:
			return copy(p, b[:n]), err
		}
	}
}

func (m *mutable) Write(p []byte) (int, error) {
	select {
	case <-m.dead:
		return len(p), nil
	default:
		return m.Conn.Write(p)
	}
}

// monitorFunc serves streams that say nothing.
type monitorFunc func(ctx context.Context)

func (f monitorFunc) MonitorConnections(_ *networkservice.MonitorScopeSelector, stream networkservice.MonitorConnection_MonitorConnectionsServer) error {
	f(stream.Context())
	return nil
}

// A node that is gone without a word is noticed all the same.
func TestDialerNoticesDeadNodes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := dialer.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]struct{ level, option, want int }{
		"SO_KEEPALIVE":     {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		"TCP_KEEPIDLE":     {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 10},
		"TCP_KEEPINTVL":    {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1},
		"TCP_KEEPCNT":      {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
		"TCP_USER_TIMEOUT": {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 3000},
	} {
		var got int
		if cerr := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), o.level, o.option) }); cerr != nil || err != nil {
			t.Fatal(name, cerr, err)
		}
		if got != o.want {
			t.Errorf("%s is %d, want %d", name, got, o.want)
		}
	}
}

// silentMonitor has nothing to say, ever.
type silentMonitor struct {
	networkservice.UnimplementedMonitorConnectionServer
}

func (silentMonitor) MonitorConnections(_ *networkservice.MonitorScopeSelector, stream networkservice.MonitorConnection_MonitorConnectionsServer) error {
	<-stream.Context().Done()
	return nil
}

// pipeListener accepts connections made in memory, whose time a test may bend.
type pipeListener chan net.Conn

func (l pipeListener) dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l pipeListener) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (l pipeListener) Close() error   { close(l); return nil }
func (l pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"net"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/test/bufconn"

	"github.com/openvwire/nsm/sdk/rpc"
)

// socket is where a part listens beside the Network: for connections with TLS, as
// between processes, which have a life of their own.
type socket struct {
	*bufconn.Listener

	mu   sync.Mutex
	open int           // connections; guarded by mu
	ever int           // guarded by mu
	gate chan struct{} // closed while connections can be made; guarded by mu
}

// overTLS has the part serve what register registers at a socket, too.
func (p *part) overTLS(register func(grpc.ServiceRegistrar)) *socket {
	_, creds := p.tls()
	s := rpc.NewServer(rpc.ServerOptions{Credentials: creds, Logger: p.log})
	register(s)
	l := &socket{Listener: bufconn.Listen(1 << 20), gate: make(chan struct{})}
	close(l.gate)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	p.mesh.t.Cleanup(func() {
		s.Stop()
		<-served
	})
	return l
}

// tls returns what the part shows on connections.
func (p *part) tls() (client, server credentials.TransportCredentials) {
	trusted := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(TrustDomain), p.mesh.authority.certs())
	return rpc.MutualTLS(p.identity, trusted)
}

// dialTLS returns a connection to the socket.
func (p *part) dialTLS(l *socket) *grpc.ClientConn {
	client, _ := p.tls()
	cc, err := rpc.Dial("tcp://192.0.2.1:5001", rpc.DialOptions{
		Credentials: client, Tokens: p.tokens,
		Options: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.dial(ctx) })},
	})
	if err != nil {
		p.mesh.t.Fatal(err)
	}
	return cc
}

func (l *socket) dial(ctx context.Context) (net.Conn, error) {
	l.mu.Lock()
	gate := l.gate
	l.mu.Unlock()
	select {
	case <-gate:
		return l.DialContext(ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// shut has connections wait until reopen. Those that stand go on.
func (l *socket) shut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gate = make(chan struct{})
}

func (l *socket) reopen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.gate)
}

// Accept implements net.Listener.
func (l *socket) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open++
	l.ever++
	return &counted{Conn: c, closed: sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.open--
	})}, nil
}

// connections returns how many there are, and have been.
func (l *socket) connections() (open, ever int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open, l.ever
}

// counted is one connection of a socket.
type counted struct {
	net.Conn
	closed func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.closed()
	return c.Conn.Close()
}

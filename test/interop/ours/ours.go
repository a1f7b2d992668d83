// SPDX-License-Identifier: Apache-2.0

package ours

import (
	"context"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/registration"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
	"github.com/openvwire/nsm/test/interop/ref"
)

// Part is a running part of either make.
type Part struct {
	URL  string
	Stop func() // as if killed; stopping twice is allowed
}

// Quiet is the logger of our parts here: what they would say of the reference's
// mistakes is not what these tests are about.
var Quiet = slog.New(slog.NewTextHandler(ref.LogOutput(), &slog.HandlerOptions{Level: slog.LevelDebug}))

// ID is the SPIFFE ID of the part with the name.
func ID(name string) string { return "spiffe://example.org/" + name }

// forwarders may register as such at our managers.
func forwarders(who string) bool {
	return slices.Contains([]string{ID("forwarder"), ID("forwarder-a"), ID("forwarder-b")}, who)
}

// managers may register for others at our registry.
func managers(who, _ string) bool {
	return slices.Contains([]string{ID("manager"), ID("manager-a"), ID("manager-b")}, who)
}

// relays may send our managers the Requests of others.
func relays(who string) bool { return forwarders(who) || managers(who, "") }

// everybody is the policy of hops on plaintext.
type everybody struct{}

func (everybody) Admit(rpc.Caller, path.Path, time.Time) error { return nil }
func (everybody) IsObserver(string) bool                       { return true }

// policyOf is the policy of hops with that identity.
func policyOf(s ref.Security) hop.Policy {
	if s.Checked {
		return hop.Strict{}
	}
	return everybody{}
}

// Credentials are our transport credentials for the identity.
func Credentials(s ref.Security) (client, server credentials.TransportCredentials) {
	if s.Checked {
		return rpc.MutualTLS(s.SVID, s.Bundle)
	}
	return rpc.Plaintext()
}

// Tokens is our token generator for the identity.
func Tokens(s ref.Security) token.Generator { return token.NewGenerator(s.SVID, s.TokensFor()) }

// dialOptions are how the identity calls.
func dialOptions(s ref.Security) rpc.DialOptions {
	creds, _ := Credentials(s)
	return rpc.DialOptions{Credentials: creds, Tokens: Tokens(s)}
}

// Dial returns our client connection.
func Dial(t testing.TB, s ref.Security, url string) *grpc.ClientConn {
	t.Helper()
	cc, err := rpc.Dial(url, dialOptions(s))
	must(t, err)
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// Pool returns peers as our parts have them. URLs in local lead to parts of the same
// process.
func Pool(s ref.Security, name string, sockets *rpc.Sockets, local map[string]*rpc.Local) *peer.Pool {
	dial := dialOptions(s)
	return peer.NewPool(peer.PoolConfig{Name: name, Logger: Quiet, Dial: func(url string) (grpc.ClientConnInterface, io.Closer, error) {
		if l, ok := local[url]; ok {
			return l.Dial(rpc.LocalCaller{Identity: identityOf(s), Tokens: dial.Tokens, Share: true}), nil, nil
		}
		cc, err := sockets.Dial(url, dial)
		return cc, cc, err
	}})
}

// Serve runs our server at the address, with what register puts on it.
func Serve(t testing.TB, s ref.Security, address string, register func(*grpc.Server)) Part {
	t.Helper()
	return serveAt(t, s, []string{address}, func([]string) func(*grpc.Server) { return register })
}

// serveAt is Serve at several addresses, of which it returns the first. What build
// returns is registered once it is known where they are.
func serveAt(t testing.TB, s ref.Security, addresses []string, build func(urls []string) func(*grpc.Server)) Part {
	t.Helper()
	_, creds := Credentials(s)
	server := rpc.NewServer(rpc.ServerOptions{Credentials: creds, Logger: Quiet})
	urls := make([]string, len(addresses))
	var serving sync.WaitGroup
	var serve []func()
	for i, address := range addresses {
		l, err := rpc.Listen(context.Background(), address)
		must(t, err)
		urls[i] = rpc.URL(l.Addr())
		serve = append(serve, func() {
			if err := server.Serve(l); err != nil {
				t.Errorf("our server on %s: %v", address, err)
			}
		})
	}
	build(urls)(server)
	for _, f := range serve {
		serving.Go(f)
	}
	p := Part{URL: urls[0], Stop: sync.OnceFunc(func() {
		server.Stop()
		serving.Wait()
	})}
	t.Cleanup(p.Stop)
	return p
}

// ending returns the part with more to do when it stops: before its server stops,
// and after.
func (p Part) ending(t testing.TB, first, last func()) Part {
	stop := p.Stop
	p.Stop = sync.OnceFunc(func() {
		first()
		stop()
		last()
	})
	t.Cleanup(p.Stop)
	return p
}

// Register registers what listens on a Unix socket as our parts do.
func Register(t testing.TB, s ref.Security, url, manager string, nse *api.NetworkServiceEndpoint, services ...*api.NetworkService) *registration.Registration {
	t.Helper()
	path := strings.TrimPrefix(url, "unix://")
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	socket := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { _ = socket.Close() })
	nse.Url, err = rpc.InodeURL(socket)
	must(t, err)
	return start(t, registration.Config{Registry: Dial(t, s, manager), Endpoint: nse, Services: services, Socket: socket, Logger: Quiet})
}

func start(t testing.TB, c registration.Config) *registration.Registration {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ref.CallTimeout)
	defer cancel()
	r, err := registration.Start(ctx, c)
	if err != nil {
		t.Fatalf("%s cannot register: %v", c.Endpoint.GetName(), err)
	}
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

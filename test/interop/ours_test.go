// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"log/slog"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
	"github.com/openvwire/nsm/test/interop/ref"
)

// securities are the two ways in which every test of this package runs.
var securities = []struct {
	name string
	as   func(ca *ref.CA, t testing.TB, path string) ref.Security
}{
	{"plaintext", (*ref.CA).Plain},
	{"mutual TLS with policies", (*ref.CA).MutualTLS},
}

// onBoth runs a test once per entry of securities. It gives the test a function
// that makes the identity of a part, such as as("manager").
func onBoth(t *testing.T, test func(t *testing.T, as func(path string) ref.Security)) {
	for _, s := range securities {
		t.Run(s.name, func(t *testing.T) {
			ca := ref.NewCA(t, "example.org")
			test(t, func(path string) ref.Security { return s.as(ca, t, path) })
		})
	}
}

// quiet is the logger of our parts here: what they would say of the reference's
// mistakes is not what these tests are about.
var quiet = slog.New(slog.NewTextHandler(ref.LogOutput(), &slog.HandlerOptions{Level: slog.LevelDebug}))

// credentialsOf are our transport credentials for the identity.
func credentialsOf(s ref.Security) (client, server credentials.TransportCredentials) {
	if s.Checked {
		return rpc.MutualTLS(s.SVID, s.Bundle)
	}
	return rpc.Plaintext()
}

// tokensOf is our token generator for the identity.
func tokensOf(s ref.Security) token.Generator {
	return token.NewGenerator(s.SVID, s.TokensFor())
}

// serveOurs runs our server at the address, with what register puts on it.
func serveOurs(t *testing.T, s ref.Security, address string, register func(*grpc.Server)) part {
	t.Helper()
	l, err := rpc.Listen(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	_, creds := credentialsOf(s)
	server := rpc.NewServer(rpc.ServerOptions{Credentials: creds, Logger: quiet})
	register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	p := part{url: rpc.URL(l.Addr()), stop: sync.OnceFunc(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("our server on %s: %v", address, err)
		}
	})}
	t.Cleanup(p.stop)
	return p
}

// dialOurs returns our client connection.
func dialOurs(t *testing.T, s ref.Security, url string) *grpc.ClientConn {
	t.Helper()
	creds, _ := credentialsOf(s)
	cc, err := rpc.Dial(url, rpc.DialOptions{Credentials: creds, Tokens: tokensOf(s)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// dialRef returns a client connection as the reference makes it.
func dialRef(t *testing.T, s ref.Security, url string) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient(url, s.DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// soon is the deadline of a single call.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), ref.CallTimeout)
	t.Cleanup(cancel)
	return ctx
}

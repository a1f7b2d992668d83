// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// A server that does not say that it bears more is asked little at a time.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var inside atomic.Int32
		release := make(chan struct{})
		l := make(pipeListener)
		server := grpc.NewServer()
		(&service{request: func(context.Context, *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
			inside.Add(1)
			<-release
			return &networkservice.Connection{}, nil
		}}).register(server)
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()
		defer func() { server.Stop(); <-served }()
		creds, _ := Plaintext()
		cc, err := Dial("unix:///foreign", DialOptions{Credentials: creds, Options: []grpc.DialOption{
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.dial(ctx) }),
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()

		const calls = 3 * paceOfPlaintext
		var calling sync.WaitGroup
		for range calls {
			calling.Go(func() {
				if _, err := request(t.Context(), cc); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := inside.Load(); n != paceOfPlaintext {
			t.Errorf("%d calls are under way at once, want %d", n, paceOfPlaintext)
		}
		if _, err := healthpb.NewHealthClient(cc).Check(t.Context(), &healthpb.HealthCheckRequest{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("whether the server is alive: %v", err) // waited for ever otherwise
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := request(ctx, cc); err == nil {
			t.Error("a call whose context has ended was made")
		}
		close(release)
		calling.Wait()
		if n := inside.Load(); n != calls {
			t.Errorf("%d calls were made, want %d", n, calls)
		}
	})
}

// Our own servers say that they do.
func TestPaceIsOff(t *testing.T) {
	const calls = 4 * paceOfTLS
	for name, creds := range transports(t) {
		t.Run(name, func(t *testing.T) {
			client, server := creds()
			var together sync.WaitGroup // all calls are inside at once
			together.Add(calls)
			s := &service{request: func(_ context.Context, r *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
				together.Done()
				together.Wait()
				return r.GetConnection(), nil
			}}
			cc := dial(t, serve(t, unixURL(t), ServerOptions{Credentials: server}, s.register), DialOptions{Credentials: client})
			var calling sync.WaitGroup
			for range calls {
				calling.Go(func() {
					if _, err := request(t.Context(), cc); err != nil {
						t.Error(err)
					}
				})
			}
			calling.Wait()
		})
	}
}

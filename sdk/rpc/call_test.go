// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/token"
)

// callerSeen returns a service that remembers who called.
func callerSeen(c *atomic.Pointer[Caller]) *service {
	return &service{request: func(ctx context.Context, r *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
		caller := CallerFrom(ctx)
		c.Store(&caller)
		return r.GetConnection(), nil
	}}
}

func request(ctx context.Context, cc grpc.ClientConnInterface, opts ...grpc.CallOption) (*networkservice.Connection, error) {
	return networkservice.NewNetworkServiceClient(cc).Request(ctx, &networkservice.NetworkServiceRequest{
		Connection: &networkservice.Connection{Id: "id"},
	}, opts...)
}

func TestMutualTLSTellsWhoCalls(t *testing.T) {
	home, abroad := newAuthority(t, "home.example"), newAuthority(t, "abroad.example")
	callerID := "spiffe://abroad.example/client"
	for network, rawURL := range listenURLs(t) {
		t.Run(network, func(t *testing.T) {
			server, client := home.source(t, "/server", abroad), abroad.source(t, "/client", home)
			_, serverCreds := MutualTLS(server, server)
			clientCreds, _ := MutualTLS(client, client)

			var seen atomic.Pointer[Caller]
			target := serve(t, rawURL, ServerOptions{Credentials: serverCreds}, callerSeen(&seen).register)
			cc := dial(t, target, DialOptions{Credentials: clientCreds, Tokens: token.NewGenerator(client, time.Minute)})
			if _, err := request(t.Context(), cc); err != nil {
				t.Fatal(err)
			}
			got := seen.Load()
			if got.ID != callerID || got.Cert == nil {
				t.Errorf("caller %q, certificate %v", got.ID, got.Cert)
			}
			tok, err := token.Parse(got.Token)
			if err != nil {
				t.Fatal(err)
			}
			if tok.Subject != callerID || len(tok.Audience) != 1 || tok.Audience[0] != "spiffe://home.example/server" {
				t.Errorf("token of %q for %q", tok.Subject, tok.Audience)
			}
			if err := tok.VerifiedBy(got.Cert); err != nil {
				t.Error(err)
			}
			if left := time.Until(got.TokenExpires); left <= 0 || left > time.Minute {
				t.Errorf("token expires in %v", left)
			}
		})
	}
}

func TestMutualTLSRefuses(t *testing.T) {
	home, abroad := newAuthority(t, "home.example"), newAuthority(t, "abroad.example")
	server := home.source(t, "/server")
	_, serverCreds := MutualTLS(server, server)
	stranger := abroad.source(t, "/client", home) // trusts the server, not the other way round
	gullible := home.source(t, "/client")
	strangerCreds, _ := MutualTLS(stranger, stranger)
	impostor := abroad.source(t, "/server", home)
	_, impostorCreds := MutualTLS(impostor, impostor)
	gullibleCreds, _ := MutualTLS(gullible, gullible)
	plain, _ := Plaintext()

	var seen atomic.Pointer[Caller]
	for _, test := range []struct {
		name   string
		server ServerOptions
		client DialOptions
	}{
		{"client of an unknown trust domain", ServerOptions{Credentials: serverCreds}, DialOptions{Credentials: strangerCreds}},
		{"server of an unknown trust domain", ServerOptions{Credentials: impostorCreds}, DialOptions{Credentials: gullibleCreds}},
		{"plaintext client", ServerOptions{Credentials: serverCreds}, DialOptions{Credentials: plain}},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := serve(t, unixURL(t), test.server, callerSeen(&seen).register)
			_, err := request(t.Context(), dial(t, target, test.client))
			if !errors.Is(err, nserr.PeerDown) || status.Code(err) != codes.Unavailable {
				t.Errorf("error %v", err)
			}
			if seen.Load() != nil {
				t.Error("the call was served")
			}
		})
	}
}

// After a rotation every token must verify against the certificate of the
// connection that it came over, also for calls that start at the same moment, and
// what is under way must not be disturbed.
func TestRotation(t *testing.T) {
	a := newAuthority(t, "example.org")
	server, client := a.source(t, "/server"), a.source(t, "/client")
	_, serverCreds := MutualTLS(server, server)
	clientCreds, _ := MutualTLS(client, client)
	impl := &service{
		request: func(ctx context.Context, r *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
			caller := CallerFrom(ctx)
			tok, err := token.Parse(caller.Token)
			if err != nil {
				return nil, err
			}
			return r.GetConnection(), tok.VerifiedBy(caller.Cert)
		},
		monitor: func(_ *networkservice.MonitorScopeSelector, s networkservice.MonitorConnection_MonitorConnectionsServer) error {
			if err := s.Send(&networkservice.ConnectionEvent{}); err != nil {
				return err
			}
			<-s.Context().Done()
			return nil
		},
	}
	target := serve(t, unixURL(t), ServerOptions{Credentials: serverCreds}, impl.register)
	cc := dial(t, target, DialOptions{Credentials: clientCreds, Tokens: token.NewGenerator(client, time.Minute)})

	ctx, cancel := context.WithCancel(t.Context())
	stream, err := networkservice.NewMonitorConnectionClient(cc).MonitorConnections(ctx, &networkservice.MonitorScopeSelector{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := stream.Recv(); ended <- err }()

	for range 5 {
		client.current.Store(a.issue(t, "/client"))
		errs := make(chan error)
		for range 20 {
			go func() { _, err := request(t.Context(), cc); errs <- err }()
		}
		for range 20 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	}
	select {
	case err := <-ended:
		t.Errorf("the stream was cut off: %v", err)
	default:
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the stream ended with %v", err)
	}
}

// A stream that is open when the SVID changes is told with the next call, once, unless
// it has ended by then.
func TestSuperseded(t *testing.T) {
	a := newAuthority(t, "example.org")
	server, client := a.source(t, "/server"), a.source(t, "/client")
	_, serverCreds := MutualTLS(server, server)
	clientCreds, _ := MutualTLS(client, client)
	impl := &service{
		request: func(_ context.Context, r *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
			return r.GetConnection(), nil
		},
		monitor: func(_ *networkservice.MonitorScopeSelector, s networkservice.MonitorConnection_MonitorConnectionsServer) error {
			if err := s.Send(&networkservice.ConnectionEvent{}); err != nil {
				return err
			}
			<-s.Context().Done()
			return nil
		},
	}
	cc := dial(t, serve(t, unixURL(t), ServerOptions{Credentials: serverCreds}, impl.register), DialOptions{Credentials: clientCreds})
	open := func(ctx context.Context, option grpc.CallOption) networkservice.MonitorConnection_MonitorConnectionsClient {
		t.Helper()
		stream, err := networkservice.NewMonitorConnectionClient(cc).MonitorConnections(ctx, &networkservice.MonitorScopeSelector{}, option)
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	var told, toldLate atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	open(ctx, WhenSuperseded(func() { told.Add(1) }))
	short, end := context.WithCancel(t.Context())
	ended := open(short, WhenSuperseded(func() { toldLate.Add(1) }))
	end()
	_, _ = ended.Recv()
	again, cancelAgain := context.WithCancelCause(t.Context())
	defer cancelAgain(nil)
	watch := open(again, EndSuperseded(cancelAgain))

	client.current.Store(a.issue(t, "/client"))
	if n := told.Load(); n != 0 {
		t.Errorf("told %d times before there was a call", n)
	}
	for range 2 {
		if _, err := request(t.Context(), cc); err != nil {
			t.Fatal(err)
		}
		client.current.Store(a.issue(t, "/client"))
	}
	if n := told.Load(); n != 1 {
		t.Errorf("told %d times", n)
	}
	if n := toldLate.Load(); n != 0 {
		t.Errorf("a stream that had ended was told %d times", n)
	}
	if _, err := watch.Recv(); !errors.Is(err, context.Canceled) || context.Cause(again) != ErrSuperseded {
		t.Errorf("the watch has ended with %v, since %v", err, context.Cause(again))
	}
}

func TestTokenMetadata(t *testing.T) {
	when := time.Date(2030, 1, 2, 3, 4, 5, 678, time.UTC)
	good := when.Format(time.RFC3339Nano)
	for _, test := range []struct {
		name  string
		pairs []string
		want  string
	}{
		{"one", []string{tokenKey, "a", tokenExpiresKey, good}, "a"},
		{"none", nil, ""},
		{"no expiry", []string{tokenKey, "a"}, ""},
		{"two tokens", []string{tokenKey, "a", tokenKey, "b", tokenExpiresKey, good}, ""},
		{"two expiries", []string{tokenKey, "a", tokenExpiresKey, good, tokenExpiresKey, good}, ""},
		{"no time", []string{tokenKey, "a", tokenExpiresKey, "soon"}, ""},
		{"before the first year", []string{tokenKey, "a", tokenExpiresKey, "0000-01-01T00:00:00Z"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := CallerFrom(metadata.NewIncomingContext(t.Context(), metadata.Pairs(test.pairs...)))
			if c.Token != test.want || c.TokenExpires.Equal(when) != (test.want != "") {
				t.Errorf("token %q until %v", c.Token, c.TokenExpires)
			}
		})
	}
}

// A token that cannot be made fails the call before anything is sent, with its reason.
func TestTokenError(t *testing.T) {
	client, server := Plaintext()
	var seen atomic.Pointer[Caller]
	target := serve(t, unixURL(t), ServerOptions{Credentials: server}, callerSeen(&seen).register)
	for _, want := range []*nserr.Reason{nserr.NoIdentity, nserr.StateDir} { // one code that gRPC allows here, one not
		tokens := func(*x509.Certificate) (string, time.Time, error) { return "", time.Time{}, want.Errorf("no token") }
		_, err := request(t.Context(), dial(t, target, DialOptions{Credentials: client, Tokens: tokens}))
		if !errors.Is(err, want) || seen.Load() != nil {
			t.Errorf("error %v, want %v", err, want)
		}
	}
}

func TestOversizedMessage(t *testing.T) {
	client, server := Plaintext()
	const around = 1 << 10 // bytes, more than what a message has besides its text
	var answer atomic.Int64
	impl := &service{request: func(context.Context, *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
		return &networkservice.Connection{Id: strings.Repeat("x", int(answer.Load()))}, nil
	}}
	target := serve(t, unixURL(t), ServerOptions{Credentials: server}, impl.register)
	cc := dial(t, target, DialOptions{Credentials: client})
	for _, tt := range []struct {
		name          string
		asked, answer int
		max           int // bytes, as the error says; 0: it passes
	}{
		{"as large as may be", maxRequest - around, maxMessage - around, 0},
		{"request", maxRequest, 1, maxRequest},
		{"request as large as an answer", maxMessage - around, 1, maxRequest},
		{"answer", 1, maxMessage, maxMessage},
	} {
		answer.Store(int64(tt.answer))
		_, err := networkservice.NewNetworkServiceClient(cc).Request(t.Context(), &networkservice.NetworkServiceRequest{
			Connection: &networkservice.Connection{Id: strings.Repeat("x", tt.asked)},
		})
		switch {
		case tt.max == 0:
			if err != nil {
				t.Errorf("%s: error %.200v", tt.name, err)
			}
		case !errors.Is(err, nserr.TooLarge), status.Code(err) != codes.ResourceExhausted, !strings.Contains(err.Error(), fmt.Sprint(tt.max)):
			t.Errorf("%s: error %.200v", tt.name, err)
		}
	}
}

func TestPanicFailsOneCall(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	client, server := Plaintext()
	impl := &service{
		request: func(context.Context, *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
			panic("unary")
		},
		monitor: func(*networkservice.MonitorScopeSelector, networkservice.MonitorConnection_MonitorConnectionsServer) error {
			panic("stream")
		},
	}
	local := NewLocal(LocalOptions{Logger: quiet})
	defer local.Close()
	impl.register(local)
	target := serve(t, unixURL(t), ServerOptions{Credentials: server, Logger: quiet}, impl.register)
	for name, cc := range map[string]grpc.ClientConnInterface{
		"socket": dial(t, target, DialOptions{Credentials: client}),
		"local":  local.Dial(LocalCaller{}),
	} {
		if _, err := request(t.Context(), cc); !errors.Is(err, nserr.Internal) {
			t.Errorf("%s: unary: %v", name, err)
		}
		stream, err := networkservice.NewMonitorConnectionClient(cc).MonitorConnections(t.Context(), &networkservice.MonitorScopeSelector{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); !errors.Is(err, nserr.Internal) {
			t.Errorf("%s: stream: %v", name, err)
		}
	}
}

func TestHealth(t *testing.T) {
	client, server := Plaintext()
	var ready atomic.Bool
	local := NewLocal(LocalOptions{Ready: ready.Load})
	defer local.Close()
	(&service{}).register(local)
	target := serve(t, unixURL(t), ServerOptions{Credentials: server, Ready: ready.Load}, (&service{}).register)
	for name, cc := range map[string]grpc.ClientConnInterface{
		"socket": dial(t, target, DialOptions{Credentials: client}),
		"local":  local.Dial(LocalCaller{}),
	} {
		t.Run(name, func(t *testing.T) {
			h := healthpb.NewHealthClient(cc)
			ready.Store(false)
			watch, err := h.Watch(t.Context(), &healthpb.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []healthpb.HealthCheckResponse_ServingStatus{
				healthpb.HealthCheckResponse_NOT_SERVING, healthpb.HealthCheckResponse_SERVING,
			} {
				for _, service := range []string{"", "networkservice.NetworkService", "connection.MonitorConnection"} {
					r, err := h.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
					if err != nil || r.GetStatus() != want {
						t.Errorf("%q is %v, %v; want %v", service, r.GetStatus(), err, want)
					}
				}
				if r, err := watch.Recv(); err != nil || r.GetStatus() != want {
					t.Errorf("watched %v, %v; want %v", r.GetStatus(), err, want)
				}
				ready.Store(true)
			}
			if _, err := h.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "other"}); status.Code(err) != codes.NotFound {
				t.Errorf("unknown service: %v", err)
			}
		})
	}
}

func FuzzParseExpires(f *testing.F) {
	for _, s := range []string{"2030-01-02T03:04:05.000000678Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "soon", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		when, ok := parseExpires(s)
		if !ok {
			return
		}
		again, ok := parseExpires(when.Format(time.RFC3339Nano))
		if !ok || !again.Equal(when) {
			t.Errorf("%q reads as %v, then %v", s, when, again)
		}
	})
}

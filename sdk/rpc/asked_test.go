// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/openvwire/nsm/sdk/nserr"
)

// requesting is what asks a peer for something, over a connection of any kind.
func requesting(cc grpc.ClientConnInterface) func(context.Context, *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	client := networkservice.NewNetworkServiceClient(cc)
	return func(ctx context.Context, r *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
		return client.Request(ctx, r)
	}
}

// piped serves s in a bubble until the test ends, and returns a connection to it by url.
func piped(t *testing.T, url string, s *service) grpc.ClientConnInterface {
	l := make(pipeListener)
	client, creds := Plaintext()
	server := NewServer(ServerOptions{Credentials: creds})
	s.register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	cc := dial(t, url, DialOptions{Credentials: client, Options: []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.dial(ctx) }),
	}})
	t.Cleanup(func() { server.Stop(); <-served })
	return cc
}

// Of the hops of a Request that is not answered in time the last one that is well says
// who is silent, and who has asked hears it from the first: over connections, and where
// hops are in one process.
func TestSilenceIsNamed(t *testing.T) {
	const silent = "tcp://192.0.2.9:5001"
	for kind, connect := range map[string]func(t *testing.T, s *service) grpc.ClientConnInterface{
		"connections": func(t *testing.T, s *service) grpc.ClientConnInterface { return piped(t, "tcp://192.0.2.1:5001", s) },
		"one process": func(t *testing.T, s *service) grpc.ClientConnInterface {
			l := NewLocal(LocalOptions{})
			s.register(l)
			t.Cleanup(l.Close)
			return l.Dial(LocalCaller{})
		},
	} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				defer close(release)
				last := piped(t, silent, &service{request: func(context.Context, *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
					<-release
					return nil, errors.New("late")
				}})
				second := connect(t, &service{request: requesting(last)})
				first := requesting(piped(t, "tcp://192.0.2.2:5001", &service{request: requesting(second)}))
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				within := map[string]string{"connections": "9.5s", "one process": "9.75s"}[kind]
				_, err := first(ctx, &networkservice.NetworkServiceRequest{})
				if !errors.Is(err, nserr.TimedOut) || !errors.Is(err, context.DeadlineExceeded) ||
					!strings.Contains(err.Error(), "no answer from "+silent+" within "+within) {
					t.Errorf("whoever asks hears %v", err)
				}
				if ctx.Err() != nil {
					t.Error("that was too late")
				}
			})
		})
	}
}

// Who is silent itself is named by whoever asks it, a call and a stream.
func TestWhomACallWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := &service{
			request: func(context.Context, *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
				<-release
				return nil, errors.New("late")
			},
			monitor: func(*networkservice.MonitorScopeSelector, networkservice.MonitorConnection_MonitorConnectionsServer) error {
				<-release
				return nil
			},
		}
		l := NewLocal(LocalOptions{})
		s.register(l)
		for whom, cc := range map[string]grpc.ClientConnInterface{
			"tcp://192.0.2.1:5001": piped(t, "tcp://192.0.2.1:5001", s),
			"192.0.2.1:5001":       piped(t, "192.0.2.1:5001", s),
			"this process":         l.Dial(LocalCaller{}),
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			_, err := requesting(cc)(ctx, &networkservice.NetworkServiceRequest{})
			cancel()
			check := func(what string) {
				if !errors.Is(err, nserr.TimedOut) || !strings.Contains(err.Error(), "no answer from "+whom) || !strings.Contains(err.Error(), " within 1.5s") {
					t.Errorf("of %s a %s says %v", whom, what, err)
				}
			}
			check("call")
			ctx, cancel = context.WithTimeout(t.Context(), 1500*time.Millisecond)
			stream, streamErr := networkservice.NewMonitorConnectionClient(cc).MonitorConnections(ctx, &networkservice.MonitorScopeSelector{})
			if err = streamErr; err == nil {
				_, err = stream.Recv()
			}
			cancel()
			check("stream")
		}
		close(release)
		l.Close()
	})
}

// What a peer says itself stays as it is, and one that cannot be reached is named once.
func TestWhatIsNotSilence(t *testing.T) {
	client, _ := Plaintext()
	url := unixURL(t)
	_, err := requesting(dial(t, url, DialOptions{Credentials: client}))(t.Context(), &networkservice.NetworkServiceRequest{})
	if n := strings.Count(err.Error(), strings.TrimPrefix(url, "unix://")); !errors.Is(err, nserr.PeerDown) || n != 1 {
		t.Errorf("of a socket that is not there the error is %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	for _, test := range []struct {
		sent error
		want string
	}{
		{status.Error(codes.DeadlineExceeded, "the other one was slow"), "NSM-4004: the other one was slow"},
		{status.Error(codes.Unavailable, "draining"), "NSM-4003: tcp://192.0.2.1:5001: draining"},
		{EncodeError(nserr.PeerDown.Errorf("no registry")), "NSM-4003: no registry"},
		{status.Error(codes.Canceled, "never mind"), "never mind"},
		{nil, "<nil>"},
	} {
		err := ask(ctx, "tcp://192.0.2.1:5001").decode(test.sent)
		text := "<nil>"
		if err != nil {
			text, _, _ = strings.Cut(err.Error(), " (fix: ")
		}
		if text != test.want {
			t.Errorf("%v becomes %q, want %q", test.sent, text, test.want)
		}
	}
}

// Whoever takes a connection and says nothing, as a process that is stopped, is told
// from one that nobody can connect to.
func TestSilentHandshake(t *testing.T) {
	ours, theirs := socketPair(t)
	defer theirs.Close()
	a := newAuthority(t, "example.org")
	client, _ := MutualTLS(a.source(t, "/client"), a.source(t, "/client"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := client.ClientHandshake(ctx, "localhost", ours); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "says nothing") {
		t.Errorf("error %v", err)
	}
}

// A handler has a little less time than its caller in another process, and knows how much that has:
// what it agrees on with it, such as the end of a wire, is by the caller's clock.
func TestCallerDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLocal(LocalOptions{})
		defer l.Close()
		handler := &service{request: func(ctx context.Context, r *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
			callers, bounded := CallerDeadline(ctx)
			own, _ := ctx.Deadline()
			return &networkservice.Connection{Labels: map[string]string{
				"bounded": fmt.Sprint(bounded), "caller": time.Until(callers).String(), "kept": callers.Sub(own).String(),
			}}, nil
		}}
		handler.register(l)
		far, near := requesting(piped(t, "tcp://192.0.2.1:5001", handler)), requesting(l.Dial(LocalCaller{}))
		for _, test := range []struct {
			call        func(context.Context, *networkservice.NetworkServiceRequest) (*networkservice.Connection, error)
			limit, kept time.Duration
		}{
			{far, time.Second, 50 * time.Millisecond},
			{far, 15 * time.Second, 250 * time.Millisecond},
			{far, time.Hour, 250 * time.Millisecond},
			{near, 15 * time.Second, 0},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), test.limit)
			got, err := test.call(ctx, &networkservice.NetworkServiceRequest{})
			cancel()
			if want := map[string]string{"bounded": "true", "caller": test.limit.String(), "kept": test.kept.String()}; err != nil || !maps.Equal(got.GetLabels(), want) {
				t.Errorf("with %v the handler has %v, %v, want %v", test.limit, got.GetLabels(), err, want)
			}
		}
		for _, call := range []func(context.Context, *networkservice.NetworkServiceRequest) (*networkservice.Connection, error){far, near} {
			got, err := call(t.Context(), &networkservice.NetworkServiceRequest{})
			if err != nil || got.GetLabels()["bounded"] != "false" {
				t.Errorf("without a limit the handler has %v, %v", got.GetLabels(), err)
			}
		}
	})
}

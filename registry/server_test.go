// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
)

func TestServiceRegistration(t *testing.T) {
	f := newFixture(t)
	admin := f.authority.issue(t, "admin")
	c := f.as(admin)
	matches := []*api.Match{{
		SourceSelector: map[string]string{"app": "web"},
		Routes:         []*api.Destination{{DestinationSelector: map[string]string{"nodeName": "{{.nodeName}}"}, Weight: 3}},
	}}
	got, err := c.services.Register(t.Context(), &api.NetworkService{Name: "s", Matches: matches, PathIds: []string{"spiffe://forged/id", "x", "y"}})
	want := &api.NetworkService{Name: "s", Payload: "IP", Matches: matches, PathIds: []string{"spiffe://test/admin", "spiffe://test/registry"}}
	if err != nil || diff(want, got) != "" {
		t.Errorf("Register: %v (-want +got):\n%s", err, diff(want, got))
	}
	stream, err := c.services.Find(t.Context(), &api.NetworkServiceQuery{NetworkService: &api.NetworkService{Name: "s"}})
	found := receive(t, stream, err)
	if d := diff([]*api.NetworkServiceResponse{{NetworkService: want}}, found); d != "" {
		t.Errorf("Find (-want +got):\n%s", d)
	}
	for range 2 { // an unknown one is gone already
		if _, err := c.services.Unregister(t.Context(), &api.NetworkService{Name: "s"}); err != nil {
			t.Errorf("Unregister: %v", err)
		}
	}
	if left := f.stored(t); left != nil {
		t.Errorf("left: %v", left)
	}
}

func TestEndpointTimes(t *testing.T) {
	for _, tt := range []struct {
		name               string
		lifetime, ask      time.Duration // of the caller's token; asked for by the endpoint, 0 is nothing
		initial            time.Duration // told by the endpoint, relative to now; 0 is nothing
		expires, initially time.Duration
	}{
		{name: "a minute at most", lifetime: 10 * time.Minute, expires: time.Minute},
		{name: "the caller's token", lifetime: 20 * time.Second, expires: 20 * time.Second},
		{name: "earlier if asked", lifetime: 10 * time.Minute, ask: 10 * time.Second, expires: 10 * time.Second},
		{name: "not later if asked", lifetime: 10 * time.Minute, ask: time.Hour, expires: time.Minute},
		{name: "the past is not asked for", lifetime: 10 * time.Minute, ask: -time.Second, expires: time.Minute},
		{name: "initial time is kept", lifetime: 10 * time.Minute, initial: -time.Hour, expires: time.Minute, initially: -time.Hour},
		{name: "initial time is not in the future", lifetime: 10 * time.Minute, initial: time.Hour, expires: time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				p := f.authority.issue(t, "nse")
				p.Certificates[0].NotAfter = time.Now().Add(tt.lifetime) // which limits its tokens
				now, nse := time.Now(), endpoint("e", "s")
				if tt.ask != 0 {
					nse.ExpirationTime = timestamppb.New(now.Add(tt.ask))
				}
				if tt.initial != 0 {
					nse.InitialRegistrationTime = timestamppb.New(now.Add(tt.initial))
				}
				got, err := f.as(p).endpoints.Register(t.Context(), nse)
				if err != nil {
					t.Fatal(err)
				}
				want := endpoint("e", "s")
				want.PathIds = []string{"spiffe://test/nse", "spiffe://test/registry"}
				want.ExpirationTime = timestamppb.New(now.Add(tt.expires))
				want.InitialRegistrationTime = timestamppb.New(now.Add(tt.initially))
				if d := diff(want, got); d != "" {
					t.Errorf("reply (-want +got):\n%s", d)
				}
			})
		})
	}
}

// TestPath registers as an endpoint, then as a manager for it, then refreshes.
func TestPath(t *testing.T) {
	f := newFixture(t)
	nse, manager := f.authority.issue(t, "nse"), f.authority.issue(t, "manager")
	first := nse.tokenFor(t, &manager)
	p := regpath.Path{Index: 1, PathSegments: []regpath.Segment{{Token: first}, {Token: "to be replaced"}}}
	for round, what := range []string{"first pass", "refresh", "with a stale tail"} {
		var header metadata.MD
		got, err := f.as(manager).endpoints.Register(p.ToOutgoing(t.Context()), endpoint("e", "s"), grpc.Header(&header))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if d := diff([]string{"spiffe://test/nse", "spiffe://test/manager", "spiffe://test/registry"}, got.PathIds); d != "" {
			t.Errorf("%s: path_ids (-want +got):\n%s", what, d)
		}
		p, err = regpath.FromHeader(header)
		if err != nil || p.Index != 1 || len(p.PathSegments) != 3 || p.PathSegments[0].Token != first {
			t.Fatalf("%s: reply has path %v, %v", what, p, err)
		}
		if err := (registry.Strict{}).Check(rpc.Caller{Cert: f.registry.cert()}, []string{p.PathSegments[2].Token, manager.tokenFor(t, nil)}, time.Now()); err != nil {
			t.Errorf("%s: the last token is not the registry's for the manager: %v", what, err)
		}
		if round == 1 {
			p.PathSegments = append(p.PathSegments, regpath.Segment{Token: "stale"})
		}
	}

	p.Index = 7
	_, err := f.as(manager).endpoints.Register(p.ToOutgoing(t.Context()), endpoint("e", "s"))
	if !errors.Is(err, nserr.BadPath) || !strings.Contains(err.Error(), "Path.Index+1==8 should be less or equal len(Path.PathSegments)==3") {
		t.Errorf("index out of range: %v", err)
	}
	_, err = f.as(manager).endpoints.Unregister(metadata.AppendToOutgoingContext(t.Context(), "path", "{"), endpoint("e", "s"))
	if !errors.Is(err, nserr.BadPath) {
		t.Errorf("malformed path: %v", err)
	}
}

// TestStrict is what the default policy refuses, and that nothing remains of it.
func TestStrict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		a := f.authority
		nse, manager, other := a.issue(t, "nse"), a.issue(t, "manager"), a.issue(t, "other")
		expiring := a.issue(t, "nse")
		expiring.Certificates[0].NotAfter = time.Now().Add(time.Minute)
		stale := expiring.tokenFor(t, &manager)
		time.Sleep(2 * time.Minute)

		caller := func(identity, signer party) clients {
			return clientsOf(f.local.Dial(rpc.LocalCaller{Identity: identity.identity, Tokens: signer.tokens()}))
		}
		for _, tt := range []struct {
			name   string
			caller clients
			tokens []string // of the path before the caller
			want   *nserr.Reason
		}{
			{"an endpoint", f.as(nse), nil, nil},
			{"a manager for an endpoint", f.as(manager), []string{nse.tokenFor(t, &manager)}, nil},
			{"anybody for an endpoint", f.as(other), []string{nse.tokenFor(t, &other)}, nserr.NotAllowed},
			{"no token", clientsOf(f.local.Dial(rpc.LocalCaller{Identity: nse.identity})), nil, nserr.NoToken},
			{"no certificate", clientsOf(f.local.Dial(rpc.LocalCaller{Tokens: nse.tokens()})), nil, nserr.ForeignToken},
			{"the token of another", caller(nse, other), nil, nserr.ForeignToken},
			{"no chain to the manager", f.as(manager), []string{nse.tokenFor(t, &other)}, nserr.BrokenChain},
			{"a token for nobody", f.as(manager), []string{nse.tokenFor(t, nil)}, nserr.BrokenChain},
			{"an expired token", f.as(manager), []string{stale}, nserr.TokenExpired},
			{"no token before", f.as(manager), []string{""}, nserr.NoToken},
			{"rubbish", f.as(manager), []string{"a.b.c"}, nserr.BadToken},
		} {
			ctx := t.Context()
			if tt.tokens != nil {
				p := regpath.Path{Index: uint32(len(tt.tokens))}
				for _, raw := range append(tt.tokens, "mine") {
					p.PathSegments = append(p.PathSegments, regpath.Segment{Token: raw})
				}
				ctx = p.ToOutgoing(ctx)
			}
			calls := map[string]error{}
			_, calls["NSE.Register"] = tt.caller.endpoints.Register(ctx, endpoint("e", "s"))
			_, calls["NS.Register"] = tt.caller.services.Register(ctx, &api.NetworkService{Name: "s"})
			if tt.want != nil {
				if left := f.stored(t); left != nil {
					t.Errorf("%s: left %v", tt.name, left)
				}
			}
			_, calls["NS.Unregister"] = tt.caller.services.Unregister(ctx, &api.NetworkService{Name: "s"})
			_, calls["NSE.Unregister"] = tt.caller.endpoints.Unregister(ctx, endpoint("e", "s"))
			for call, err := range calls {
				if tt.want == nil && err != nil || tt.want != nil && !errors.Is(err, tt.want) {
					t.Errorf("%s: %s = %v, want %v", tt.name, call, err, tt.want)
				}
				if tt.want != nil && status.Code(err) != tt.want.GRPC {
					t.Errorf("%s: %s has code %s, want %s", tt.name, call, status.Code(err), tt.want.GRPC)
				}
			}
		}
	})
}

// TestFindNeedsNoToken: whoever can connect may look, as at the reference's.
func TestFindNeedsNoToken(t *testing.T) {
	f := newFixture(t)
	nse := f.authority.issue(t, "nse")
	if _, err := f.as(nse).endpoints.Register(t.Context(), endpoint("e", "s")); err != nil {
		t.Fatal(err)
	}
	stranger := clientsOf(f.local.Dial(rpc.LocalCaller{}))
	stream, err := stranger.endpoints.Find(t.Context(), &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: &api.NetworkServiceEndpoint{Name: "e"}})
	if found := receive(t, stream, err); len(found) != 1 || found[0].GetNetworkServiceEndpoint().GetName() != "e" {
		t.Errorf("found %v", found)
	}
}

// TestMutualTLS is the same over a socket, as processes do it.
func TestMutualTLS(t *testing.T) {
	f := newFixture(t)
	nse := f.authority.issue(t, "nse")
	url := "unix://" + filepath.Join(t.TempDir(), "registry.sock")
	_, serverTLS := rpc.MutualTLS(f.registry, f.authority.bundle())
	clientTLS, _ := rpc.MutualTLS(nse, f.authority.bundle())
	l, err := rpc.Listen(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.ServerOptions{Credentials: serverTLS})
	f.srv.Register(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Stop()
		<-served
	}()
	cc, err := rpc.Dial(url, rpc.DialOptions{Credentials: clientTLS, Tokens: nse.tokens()})
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	c := clientsOf(cc)

	watching, err := c.endpoints.Find(t.Context(), &api.NetworkServiceEndpointQuery{Watch: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watching.Header(); err != nil { // comes when the watch stands
		t.Fatal(err)
	}
	var header metadata.MD
	registered, err := c.endpoints.Register(t.Context(), endpoint("e", "s"), grpc.Header(&header))
	if err != nil {
		t.Fatalf("Register: %v", err)
	}
	if p, err := regpath.FromHeader(header); err != nil || p.Index != 0 || len(p.PathSegments) != 2 {
		t.Errorf("path in the header: %v, %v", p, err)
	}
	if _, err := c.endpoints.Unregister(t.Context(), registered); err != nil {
		t.Errorf("Unregister: %v", err)
	}
	for deleted := false; !deleted; { // Register and Unregister may have merged
		e, err := watching.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(registered, e.NetworkServiceEndpoint); d != "" {
			t.Errorf("event (-registered +told):\n%s", d)
		}
		deleted = e.Deleted
	}

	f.srv.Close()
	if _, err := watching.Recv(); !errors.Is(err, nserr.Stopping) {
		t.Errorf("the watch ends with %v, want nserr.Stopping", err)
	}
	if _, err := c.endpoints.Register(t.Context(), endpoint("e", "s")); !errors.Is(err, nserr.Stopping) {
		t.Errorf("Register after Close = %v, want nserr.Stopping", err)
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	f := newFixture(t)
	c := f.as(f.authority.issue(t, "client"))
	ctx, cancel := context.WithCancel(t.Context())
	services, err := c.services.Find(ctx, &api.NetworkServiceQuery{Watch: true})
	if err != nil {
		t.Fatal(err)
	}
	endpoints, err := c.endpoints.Find(ctx, &api.NetworkServiceEndpointQuery{Watch: true})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := services.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("services: %v", err)
	}
	if _, err := endpoints.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("endpoints: %v", err)
	}
}

// TestClientThatDoesNotRead: it delays neither others nor Close, and what it
// reads late is what still matters.
func TestClientThatDoesNotRead(t *testing.T) {
	const changes = 2000 // far beyond what streams buffer
	f := newFixture(t)
	c := f.as(f.authority.issue(t, "client"))
	watching := func() api.NetworkServiceEndpointRegistry_FindClient {
		stream, err := c.endpoints.Find(t.Context(), &api.NetworkServiceEndpointQuery{Watch: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		return stream
	}
	stuck, slow, quick := watching(), watching(), watching()
	change := func(i int) {
		_, err := f.endpoints.Update(t.Context(), "e", func(*api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error) {
			nse := endpoint("e", "s")
			nse.Url = fmt.Sprintf("tcp://10.0.0.1:%d", i)
			return nse, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range changes {
		change(i)
		if e, err := quick.Recv(); err != nil || e.NetworkServiceEndpoint.Url != fmt.Sprintf("tcp://10.0.0.1:%d", i) {
			t.Fatalf("change %d: the quick one gets %v, %v", i, e, err)
		}
	}
	last := fmt.Sprintf("tcp://10.0.0.1:%d", changes-1)
	for received := 1; ; received++ {
		e, err := slow.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if e.NetworkServiceEndpoint.Url == last {
			if received == changes {
				t.Errorf("nothing has merged: something buffers %d events", changes)
			}
			break
		}
	}
	f.srv.Close() // does not wait for the stuck one
	for {
		if _, err := stuck.Recv(); err != nil {
			break // its context ends with the peer, or it has read up to the end
		}
	}
	if _, err := slow.Recv(); !errors.Is(err, nserr.Stopping) {
		t.Errorf("the slow one ends with %v, want nserr.Stopping", err)
	}
}

// A node that has moved is where it is now. Of two that run under one name the second is
// refused, until the first is gone.
func TestTwoOfOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		c := f.as(f.authority.issue(t, "forwarder-b"))
		register := func(url string) error {
			nse := endpoint("forwarder-b", "forwarder")
			nse.Url = url
			_, err := c.endpoints.Register(t.Context(), nse)
			return err
		}
		const first, second = "tcp://10.88.0.2:5001", "tcp://10.88.0.4:5001"
		for i, s := range []struct {
			url     string
			refused bool
			wait    time.Duration
		}{
			{first, false, 20 * time.Second}, {second, false, 10 * time.Second}, {first, false, 10 * time.Second},
			{second, true, 10 * time.Second}, {first, false, 20 * time.Second}, {second, true, 41 * time.Second},
			{second, false, 20 * time.Second}, {second, false, 0}, // the first has ended
		} {
			err := register(s.url)
			if errors.Is(err, nserr.NameInUse) != s.refused || !s.refused && err != nil {
				t.Errorf("registration %d, from %s: %v, want refused %v", i+1, s.url, err, s.refused)
			}
			time.Sleep(s.wait)
		}
	})
}

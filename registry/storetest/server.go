// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// lifetime of a registration in these tests: short where time is real.
func (s suite) lifetime() time.Duration {
	if s.Network {
		return 2 * time.Second
	}
	return time.Minute
}

// server is a registry over the stores under test, without a socket.
type server struct {
	local *rpc.Local
	srv   *registry.Server
}

func (s suite) serve(stores Stores) server {
	srv := registry.New(registry.Config{
		Tokens: tokensOf("spiffe://test/registry"), Policy: anybody{}, MaxExpiry: s.lifetime(),
		Services: stores.Services, Endpoints: stores.Endpoints, MayOperate: func(id string) bool { return id == operator },
	})
	local := rpc.NewLocal(rpc.LocalOptions{})
	srv.Register(local)
	return server{local, srv}
}

func (s server) close() {
	s.srv.Close()
	s.local.Close()
}

func (s server) as(id string) (api.NetworkServiceRegistryClient, api.NetworkServiceEndpointRegistryClient) {
	cc := s.local.Dial(rpc.LocalCaller{Tokens: tokensOf(id)})
	return api.NewNetworkServiceRegistryClient(cc), api.NewNetworkServiceEndpointRegistryClient(cc)
}

// operator is who may change the services of others.
const operator = "spiffe://test/operator"

// anybody admits every caller; tokens say who they are.
type anybody struct{}

func (anybody) Check(rpc.Caller, []string, time.Time) error { return nil }

// tokensOf makes tokens that name id and that nobody checks.
func tokensOf(id string) token.Generator {
	return func(*x509.Certificate) (string, time.Time, error) {
		expires := time.Now().Add(time.Hour)
		raw, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.RegisteredClaims{
			Subject: id, ExpiresAt: jwt.NewNumericDate(expires),
		}).SignedString([]byte("test"))
		return raw, expires, err
	}
}

// testOwnership: the first owner keeps a name until it unregisters it.
func (s suite) testOwnership(t *testing.T) {
	s.bubble(t, func(t *testing.T) {
		stores := s.open(t, t.TempDir())
		defer stores.close(t)
		srv := s.serve(stores)
		defer srv.close()
		ctx := t.Context()
		services, endpoints := srv.as("spiffe://test/a")
		foreignServices, foreignEndpoints := srv.as("spiffe://test/b")

		ns, nse := &api.NetworkService{Name: "s"}, endpoint("e", "s")
		if _, err := services.Register(ctx, ns); err != nil {
			t.Fatalf("registering: %v", err)
		}
		first, err := endpoints.Register(ctx, nse)
		if err != nil {
			t.Fatalf("registering: %v", err)
		}
		foreign := map[string]error{}
		_, foreign["service Register"] = foreignServices.Register(ctx, ns)
		_, foreign["service Unregister"] = foreignServices.Unregister(ctx, ns)
		_, foreign["endpoint Register"] = foreignEndpoints.Register(ctx, nse)
		_, foreign["endpoint Unregister"] = foreignEndpoints.Unregister(ctx, nse)
		for what, err := range foreign {
			if !errors.Is(err, nserr.NameOwned) {
				t.Errorf("%s by another identity: %v, want nserr.NameOwned", what, err)
			}
		}
		if d := diff(map[string]*api.NetworkServiceEndpoint{"e": first}, found(t, stores.Endpoints, nil)); d != "" {
			t.Errorf("stored after foreign calls (-want +got):\n%s", d)
		}
		if _, err := endpoints.Unregister(ctx, nse); err != nil {
			t.Errorf("unregistering: %v", err)
		}
		if _, err := services.Unregister(ctx, ns); err != nil {
			t.Errorf("unregistering: %v", err)
		}
		if _, err := foreignEndpoints.Register(ctx, nse); err != nil {
			t.Errorf("taking over a free name: %v", err)
		}
		if _, err := foreignServices.Register(ctx, ns); err != nil {
			t.Errorf("taking over a free name: %v", err)
		}
	})
}

// testOperator: an operator changes and deletes the services of others, which are
// the operator's from then on, and no endpoints.
func (s suite) testOperator(t *testing.T) {
	s.bubble(t, func(t *testing.T) {
		stores := s.open(t, t.TempDir())
		defer stores.close(t)
		srv := s.serve(stores)
		defer srv.close()
		ctx := t.Context()
		services, endpoints := srv.as("spiffe://test/a")
		operatorServices, operatorEndpoints := srv.as(operator)

		ns, nse := &api.NetworkService{Name: "s"}, endpoint("e", "s")
		if _, err := services.Register(ctx, ns); err != nil {
			t.Fatalf("registering: %v", err)
		}
		if _, err := endpoints.Register(ctx, nse); err != nil {
			t.Fatalf("registering: %v", err)
		}
		if _, err := operatorEndpoints.Register(ctx, nse); !errors.Is(err, nserr.NameOwned) {
			t.Errorf("an endpoint of somebody else: %v, want nserr.NameOwned", err)
		}
		if _, err := operatorEndpoints.Unregister(ctx, nse); !errors.Is(err, nserr.NameOwned) {
			t.Errorf("unregistering an endpoint of somebody else: %v, want nserr.NameOwned", err)
		}
		changed := &api.NetworkService{Name: "s", Matches: []*api.Match{{Fallthrough: true}}}
		got, err := operatorServices.Register(ctx, changed)
		if err != nil || registry.Owner(got) != operator || len(got.GetMatches()) != 1 {
			t.Errorf("changing a service: %v, %v", got, err)
		}
		if _, err := services.Register(ctx, ns); !errors.Is(err, nserr.NameOwned) {
			t.Errorf("the first owner changes it back: %v, want nserr.NameOwned", err)
		}
		if _, err := operatorServices.Unregister(ctx, ns); err != nil {
			t.Errorf("unregistering: %v", err)
		}
		if _, err := services.Register(ctx, ns); err != nil {
			t.Errorf("a free name: %v", err)
		}
		if _, err := operatorServices.Unregister(ctx, ns); err != nil {
			t.Errorf("unregistering what is somebody else's: %v", err)
		}
	})
}

// testExpiry: an endpoint that is not renewed is deleted when it expires, and
// its name is free; one that is renewed stays, and keeps the time of its
// first registration.
func (s suite) testExpiry(t *testing.T) {
	s.bubble(t, func(t *testing.T) {
		stores := s.open(t, t.TempDir())
		defer stores.close(t)
		srv := s.serve(stores)
		defer srv.close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, a := srv.as("spiffe://test/a")
		_, b := srv.as("spiffe://test/b")
		watching, err := b.Find(ctx, &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: endpoint("", "s"), Watch: true})
		if err != nil {
			t.Fatal(err)
		}

		lost, kept := endpoint("lost", "s"), endpoint("kept", "s")
		lost.Url, kept.Url = url(1), url(2)
		start := time.Now()
		first := make(map[string]*api.NetworkServiceEndpoint)
		for _, nse := range []*api.NetworkServiceEndpoint{lost, kept} {
			if first[nse.Name], err = a.Register(ctx, nse); err != nil {
				t.Fatalf("registering: %v", err)
			}
		}
		renew := time.AfterFunc(s.lifetime()*2/3, func() {
			again, err := a.Register(ctx, kept)
			if err != nil {
				t.Errorf("renewing: %v", err)
			}
			if d := diff(first["kept"].InitialRegistrationTime, again.GetInitialRegistrationTime()); d != "" {
				t.Errorf("initial registration after renewal (-want +got):\n%s", d)
			}
		})
		defer renew.Stop()

		for {
			e, err := watching.Recv()
			if err != nil {
				t.Fatalf("watching: %v", err)
			}
			if !e.Deleted {
				continue
			}
			took, want := time.Since(start), first["lost"].ExpirationTime.AsTime().Sub(start)
			if late := took - want; late < 0 || !s.Network && late > 0 {
				t.Errorf("deleted after %s, expiry was after %s", took, want)
			}
			if d := diff(first["lost"], e.NetworkServiceEndpoint); d != "" {
				t.Errorf("deleted (-want +got):\n%s", d)
			}
			break
		}
		if got := found(t, stores.Endpoints, nil); len(got) != 1 || got["kept"] == nil {
			t.Errorf("left: %v, want kept", names(got))
		}
		if _, err := b.Register(ctx, lost); err != nil {
			t.Errorf("taking over an expired name: %v", err)
		}
	})
}

// testRestart: services and unexpired endpoints survive with owner and times;
// what was removed or has expired does not come back.
func (s suite) testRestart(t *testing.T) {
	s.bubble(t, func(t *testing.T) {
		state, ctx := t.TempDir(), t.Context()
		stores := s.open(t, state)
		srv := s.serve(stores)
		services, endpoints := srv.as("spiffe://test/a")

		ns, err := services.Register(ctx, &api.NetworkService{Name: "s", Matches: []*api.Match{{Fallthrough: true}}})
		if err != nil {
			t.Fatal(err)
		}
		registered := make(map[string]*api.NetworkServiceEndpoint)
		soon := timestamppb.New(time.Now().Add(s.lifetime() / 4))
		for _, nse := range []*api.NetworkServiceEndpoint{
			endpoint("stays", "s"), endpoint("leaves", "s"), {Name: "expires", NetworkServiceNames: []string{"s"}, Url: url(1), ExpirationTime: soon},
		} {
			if registered[nse.Name], err = endpoints.Register(ctx, nse); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := endpoints.Unregister(ctx, registered["leaves"]); err != nil {
			t.Fatal(err)
		}
		srv.close()
		stores.close(t)
		timer := time.NewTimer(time.Until(soon.AsTime()))
		<-timer.C

		stores = s.open(t, state)
		defer stores.close(t)
		srv = s.serve(stores)
		defer srv.close()
		if d := diff(map[string]*api.NetworkService{"s": ns}, found(t, stores.Services, nil)); d != "" {
			t.Errorf("services (-before +after):\n%s", d)
		}
		_, stranger := srv.as("spiffe://test/b")
		if d := diff([]*api.NetworkServiceEndpoint{registered["stays"]}, list(t, stranger)); d != "" {
			t.Errorf("endpoints (-before +after):\n%s", d)
		}
		if _, err := stranger.Register(ctx, endpoint("stays", "s")); !errors.Is(err, nserr.NameOwned) {
			t.Errorf("ownership after a restart: %v, want nserr.NameOwned", err)
		}
		_, endpoints = srv.as("spiffe://test/a")
		again, err := endpoints.Register(ctx, endpoint("stays", "s"))
		if err != nil || !proto.Equal(again.GetInitialRegistrationTime(), registered["stays"].InitialRegistrationTime) {
			t.Errorf("renewal after a restart: %v, %v", again, err)
		}
	})
}

func list(t testing.TB, c api.NetworkServiceEndpointRegistryClient) (all []*api.NetworkServiceEndpoint) {
	t.Helper()
	stream, err := c.Find(t.Context(), &api.NetworkServiceEndpointQuery{})
	for err == nil {
		var r *api.NetworkServiceEndpointResponse
		if r, err = stream.Recv(); err == nil {
			all = append(all, r.NetworkServiceEndpoint)
		}
	}
	if err != io.EOF {
		t.Fatalf("Find: %v", err)
	}
	return all
}

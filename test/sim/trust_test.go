// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"crypto/x509"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/registration"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
)

// anything is the policy of a liar.
type anything struct{ hop.Strict }

func (anything) Admit(rpc.Caller, path.Path, time.Time) error { return nil }

// own is the network namespace that the forwarders of a mesh run in.
func own(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// Whoever is a forwarder gets the Requests of everybody on its node, with their
// namespaces. An SVID alone makes nobody one.
func TestForwarderOfAStranger(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		mallory := m.Stranger("mallory")
		for name, nse := range map[string]*api.NetworkServiceEndpoint{
			"a forwarder":            {Name: "aaa", Url: "tcp://mallory:1", NetworkServiceNames: []string{"forwarder"}},
			"a forwarder among else": {Name: "aaa", Url: "tcp://mallory:1", NetworkServiceNames: []string{"db", "forwarder"}},
			"a part's own address":   {Name: "aaa", Url: "inproc://forwarder-a", NetworkServiceNames: []string{"db"}},
		} {
			_, err := api.NewNetworkServiceEndpointRegistryClient(mallory.dial(a.ManagerURL())).Register(t.Context(), nse)
			if !errors.Is(err, nserr.NotAllowed) {
				t.Errorf("%s: %v, want NotAllowed", name, err)
			}
		}
		if n := a.Manager.Usage().Endpoints; n != 1 {
			t.Errorf("the manager knows %d endpoints, want its forwarder alone", n)
		}
	})
}

// Forwarders alone are given the sockets of endpoints.
func TestSocketsOfOthers(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", false)
		for _, tt := range []struct {
			who  grpc.ClientConnInterface
			want string
		}{
			{m.Stranger("mallory").dial(r.a.ManagerURL()), r.a.ManagerURL()},
			{r.a.Forwarder().dial(r.a.ManagerURL()), r.e.url},
		} {
			stream, err := api.NewNetworkServiceEndpointRegistryClient(tt.who).Find(t.Context(),
				&api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: &api.NetworkServiceEndpoint{Name: r.e.name}})
			if err != nil {
				t.Fatal(err)
			}
			found := 0
			if err := rpc.Drain(stream, func(f *api.NetworkServiceEndpointResponse) error {
				if found++; f.GetNetworkServiceEndpoint().GetUrl() != tt.want {
					t.Errorf("the endpoint is at %s, want %s", f.GetNetworkServiceEndpoint().GetUrl(), tt.want)
				}
				return nil
			}); err != nil || found != 1 {
				t.Errorf("%d endpoints, %v", found, err)
			}
		}
	})
}

// The owner of what is registered is proved by the manager that it registered
// with. Somebody who is none proves nothing.
func TestForgedRegistration(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", false)
		mallory := m.Raw("mallory")
		owner := ID(r.e.name)
		p := regpath.Path{Index: 1, PathSegments: []regpath.Segment{
			{Token: mallory.Forge(owner, ID("mallory"), time.Now().Add(time.Hour))}, {Token: "mine"},
		}}
		ctx := p.ToOutgoing(t.Context())
		cc := mallory.dial(RegistryURL)
		endpoints, services := api.NewNetworkServiceEndpointRegistryClient(cc), api.NewNetworkServiceRegistryClient(cc)
		errs := map[string]error{}
		_, errs["endpoint"] = endpoints.Register(ctx, &api.NetworkServiceEndpoint{Name: r.e.name, Url: "tcp://mallory:1", NetworkServiceNames: []string{"db"}})
		_, errs["service"] = services.Register(ctx, &api.NetworkService{Name: "db", Payload: "ETHERNET"})
		_, errs["no endpoint"] = endpoints.Unregister(ctx, &api.NetworkServiceEndpoint{Name: r.e.name})
		_, errs["no service"] = services.Unregister(ctx, &api.NetworkService{Name: "db"})
		for what, err := range errs {
			if !errors.Is(err, nserr.NotAllowed) {
				t.Errorf("%s: %v, want NotAllowed", what, err)
			}
		}
	})
}

// On whose behalf a Request comes is what the path says. Only parts of the mesh are
// believed: an endpoint may decide by it who is let in.
func TestRequestOnBehalfOfAnother(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", false)
		mallory := m.Raw("mallory")
		hour := time.Now().Add(time.Hour)
		req := mallory.Message("db")
		req.Connection.Id = "m"
		req.Connection.Path = &networkservice.Path{Index: 1, PathSegments: []*networkservice.PathSegment{
			{Name: "root", Id: "r", Token: mallory.Forge(ID("root"), ID("mallory"), hour), Expires: timestamppb.New(hour)},
			{Name: "mallory", Id: "m"},
		}}
		if _, err := mallory.Request(r.a.ManagerURL(), req); !errors.Is(err, nserr.NotAllowed) {
			t.Errorf("error is %v, want NotAllowed", err)
		}
		req = mallory.Message("db")
		if _, err := mallory.Request(r.a.ManagerURL(), req); err != nil {
			t.Errorf("as itself: %v", err)
		}
	})
}

// The node's own namespace is for those who may use it. That the path says so is
// no proof, be it the client's that a stranger pretends to pass on or that in an
// endpoint's answer.
func TestNodeNamespaceOfAStranger(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", false)
		host := own(t)

		mallory := m.Raw("mallory")
		url, err := rpc.InodeURL(host)
		if err != nil {
			t.Fatal(err)
		}
		for name, forged := range map[string]*networkservice.Path{
			"as itself": {PathSegments: []*networkservice.PathSegment{{Name: "mallory", Id: "m"}}},
			"for root": {Index: 1, PathSegments: []*networkservice.PathSegment{
				{Name: "root", Id: "r", Token: mallory.Forge(ID("root"), ID("mallory"), time.Now().Add(time.Hour)), Expires: timestamppb.New(time.Now().Add(time.Hour))},
				{Name: "mallory", Id: "m"},
			}},
		} {
			req := mallory.Message("db")
			req.Connection.Id, req.Connection.Path = "m", forged
			req.MechanismPreferences[0].Parameters["inodeURL"] = url
			if _, err := mallory.RequestWith(r.a.ManagerURL(), req, host); !errors.Is(err, nserr.NotAllowed) {
				t.Errorf("%s: %v, want NotAllowed", name, err)
			}
		}

		liar := m.newPart("liar")
		t.Cleanup(liar.peers.Close)
		forged := func(peer *x509.Certificate) (string, time.Time, error) {
			expires := time.Now().Add(TokenLifetime)
			return (&Stranger{liar}).Forge(ID("root"), peer.URIs[0].String(), expires), expires, nil
		}
		socket := m.file()
		if url, err = rpc.InodeURL(socket); err != nil {
			t.Fatal(err)
		}
		server := endpoint.New("liar", endpoint.Chain(endpoint.Interface(host)), forged, anything{}, liar.log)
		t.Cleanup(server.Stop)
		liar.listen(url, server.Register)
		t.Cleanup(liar.hangUp)
		registered, err := registration.Start(t.Context(), registration.Config{
			Registry: liar.dial(r.a.ManagerURL()),
			Endpoint: &api.NetworkServiceEndpoint{Name: "liar", Url: url, NetworkServiceNames: []string{"lies"}},
			Services: []*api.NetworkService{{Name: "lies"}},
			Socket:   socket,
			Logger:   liar.log,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(registered.Abandon)
		if _, err := mallory.Request(r.a.ManagerURL(), mallory.Message("lies")); !errors.Is(err, nserr.BadAnswer) {
			t.Errorf("an endpoint that says it is root: %v, want BadAnswer", err)
		}

		root := r.a.Client("root")
		links := r.a.Kernel.Links()
		w, err := root.Ask(t.Context(), client.Request{Service: "db", Interface: "nsm-2", NetNS: host})
		if err != nil {
			t.Fatalf("root itself: %v", err)
		}
		root.Close(w)
		if now := r.a.Kernel.Links(); now != links {
			t.Errorf("%d links, before it were %d", now, links)
		}
	})
}

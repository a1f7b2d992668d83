// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice/payload"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

// registries and registryClients are the two makes of each side. Every test of
// the first group runs with each pair; the reference with itself shows that the
// test asks for what the reference does.
var registries = []struct {
	name  string
	start func(t testing.TB, s ref.Security, expiry time.Duration, address string) ours.Part
}{
	{"our registry", ours.Registry},
	{"reference's registry", refRegistry},
}

var registryClients = []struct {
	name string
	dial func(t *testing.T, s ref.Security, url string) ref.RegistryClient
}{
	{"our client", ourRegistryClient},
	{"reference's client", func(t *testing.T, s ref.Security, url string) ref.RegistryClient {
		return ref.NewImpatientRegistryClient(t.Context(), t, s, url)
	}},
}

// onAllRegistries runs test with every pair of makes and every security. dial
// makes a client of the given identity.
func onAllRegistries(t *testing.T, test func(t *testing.T, dial func(identity string) ref.RegistryClient)) {
	for _, server := range registries {
		for _, client := range registryClients {
			t.Run(client.name+" at "+server.name, func(t *testing.T) {
				onBoth(t, func(t *testing.T, as func(string) ref.Security) {
					reg := server.start(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
					test(t, func(identity string) ref.RegistryClient { return client.dial(t, as(identity), reg.URL) })
				})
			})
		}
	}
}

func TestRegistryRegister(t *testing.T) {
	onAllRegistries(t, func(t *testing.T, dial func(string) ref.RegistryClient) {
		client := dial("endpoint")
		before := time.Now()
		first := mustRegister(t, client, endpoint("nse", "echo", "tcp://10.0.0.1:5001", nil))
		if left := first.GetExpirationTime().AsTime().Sub(before); left < ref.DefaultExpiry-time.Second || left > ref.DefaultExpiry+5*time.Second {
			t.Errorf("registered for %v, want %v", left, ref.DefaultExpiry)
		}
		if want := []string{"spiffe://example.org/endpoint", "spiffe://example.org/registry"}; !slices.Equal(first.GetPathIds(), want) {
			t.Errorf("path_ids %v, want %v", first.GetPathIds(), want)
		}
		if first.GetUrl() != "tcp://10.0.0.1:5001" || first.GetName() != "nse" {
			t.Errorf("name or URL changed: %v", first)
		}
		if at := first.GetInitialRegistrationTime().AsTime(); at.Before(before.Add(-time.Second)) || at.After(time.Now()) {
			t.Errorf("initial_registration_time %v, registered after %v", at, before)
		}

		// A renewal carries what the reply said, as the reference's does, and
		// what is new.
		renewal := first.Clone()
		renewal.ExpirationTime = nil
		renewal.NetworkServiceLabels["echo"].Labels["version"] = "2"
		second := mustRegister(t, client, renewal)
		if got, want := second.GetInitialRegistrationTime().AsTime(), first.GetInitialRegistrationTime().AsTime(); !got.Equal(want) {
			t.Errorf("a renewal set initial_registration_time to %v, was %v", got, want)
		}
		if second.GetExpirationTime().AsTime().Before(first.GetExpirationTime().AsTime()) {
			t.Errorf("a renewal shortened the registration: %v", second)
		}
		found := findEndpoints(t, client, &api.NetworkServiceEndpoint{Name: "nse"})
		if len(found) != 1 || found[0].GetNetworkServiceLabels()["echo"].GetLabels()["version"] != "2" {
			t.Errorf("after the renewal: %v", found)
		}

		for _, name := range []string{"nse", "never registered"} {
			if _, err := client.Endpoints.Unregister(soon(t), &api.NetworkServiceEndpoint{Name: name}); err != nil {
				t.Errorf("unregister %q: %v", name, err)
			}
		}
		if found := findEndpoints(t, client, &api.NetworkServiceEndpoint{Name: "nse"}); len(found) != 0 {
			t.Errorf("still there after Unregister: %v", found)
		}
	})
}

func TestRegistryFind(t *testing.T) {
	onAllRegistries(t, func(t *testing.T, dial func(string) ref.RegistryClient) {
		client := dial("endpoint")
		mustRegister(t, client, endpoint("a", "echo", "tcp://10.0.0.1:5001", map[string]string{"app": "x", "zone": "1"}))
		mustRegister(t, client, endpoint("b", "echo", "tcp://10.0.0.2:5001", map[string]string{"app": "x", "zone": "2"}))
		mustRegister(t, client, endpoint("ab", "time", "tcp://10.0.0.1:5001", nil))

		for _, tt := range []struct {
			name     string
			template *api.NetworkServiceEndpoint
			want     string
		}{
			{"all", &api.NetworkServiceEndpoint{}, "a ab b"},
			{"by name, exactly", &api.NetworkServiceEndpoint{Name: "a"}, "a"},
			{"by service", &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"echo"}}, "a b"},
			{"by part of the URL", &api.NetworkServiceEndpoint{Url: "10.0.0.1"}, "a ab"},
			{"by labels", endpoint("", "echo", "", map[string]string{"app": "x", "zone": "2"}), "b"},
			{"by service and URL", &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"echo"}, Url: "tcp://10.0.0.2:5001"}, "b"},
			{"nothing matches", endpoint("", "echo", "", map[string]string{"zone": "3"}), ""},
		} {
			var names []string
			for _, nse := range findEndpoints(t, client, tt.template) {
				names = append(names, nse.GetName())
			}
			slices.Sort(names)
			if got := strings.Join(names, " "); got != tt.want {
				t.Errorf("%s: found %q, want %q", tt.name, got, tt.want)
			}
		}
	})
}

func TestRegistryServices(t *testing.T) {
	onAllRegistries(t, func(t *testing.T, dial func(string) ref.RegistryClient) {
		client := dial("operator")
		service := &api.NetworkService{Name: "echo", Matches: []*api.Match{{
			SourceSelector: map[string]string{"app": "x"},
			Routes:         []*api.Destination{{DestinationSelector: map[string]string{"app": "y"}, Weight: 2}},
			Fallthrough:    true,
			Metadata:       &api.Metadata{Labels: map[string]string{"p2p": "true"}},
		}}}
		registered, err := client.Services.Register(soon(t), service.Clone())
		if err != nil {
			t.Fatal(err)
		}
		if registered.GetPayload() != payload.IP {
			t.Errorf("payload %q, want the default %q", registered.GetPayload(), payload.IP)
		}

		stream, err := client.Services.Find(soon(t), &api.NetworkServiceQuery{NetworkService: &api.NetworkService{Name: "echo"}, Watch: true})
		if err != nil {
			t.Fatal(err)
		}
		next := func() *api.NetworkServiceResponse {
			t.Helper()
			r, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		if got := next().GetNetworkService().GetMatches(); len(got) != 1 || !proto.Equal(got[0], service.GetMatches()[0]) {
			t.Errorf("matches came back as %v", got)
		}
		if _, err := client.Services.Register(soon(t), &api.NetworkService{Name: "other"}); err != nil { // no event
			t.Fatal(err)
		}
		if _, err := client.Services.Register(soon(t), &api.NetworkService{Name: "echo", Payload: payload.Ethernet}); err != nil {
			t.Fatal(err)
		}
		if r := next(); r.GetDeleted() || r.GetNetworkService().GetPayload() != payload.Ethernet {
			t.Errorf("after an update: %v", r)
		}
		// The event is the evidence, not the answer: with its default policies the
		// reference's client reports PermissionDenied for every Unregister of a
		// network service, after the registry has done it (its clientconn element
		// drops the call options, so that the policy sees no server certificate).
		_, err = client.Services.Unregister(soon(t), &api.NetworkService{Name: "echo"})
		if err != nil && status.Code(err) != codes.PermissionDenied {
			t.Error(err)
		}
		if r := next(); !r.GetDeleted() || r.GetNetworkService().GetName() != "echo" {
			t.Errorf("after Unregister: %v", r)
		}
	})
}

func TestRegistryWatch(t *testing.T) {
	onAllRegistries(t, func(t *testing.T, dial func(string) ref.RegistryClient) {
		client := dial("endpoint")
		mustRegister(t, client, endpoint("a", "echo", "tcp://10.0.0.1:5001", nil))
		mustRegister(t, client, endpoint("elsewhere", "time", "tcp://10.0.0.1:5001", nil))

		events := watchEndpoints(t, client, &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"echo"}})
		events.want("a", false) // what is there; there is no marker of its end
		mustRegister(t, client, endpoint("elsewhere-too", "time", "tcp://10.0.0.1:5001", nil))
		mustRegister(t, client, endpoint("b", "echo", "tcp://10.0.0.2:5001", nil))
		events.want("b", false)
		mustRegister(t, client, endpoint("a", "echo", "tcp://10.0.0.3:5001", nil))
		if got := events.want("a", false).GetUrl(); got != "tcp://10.0.0.3:5001" {
			t.Errorf("the update of a has URL %q", got)
		}
		if _, err := client.Endpoints.Unregister(soon(t), &api.NetworkServiceEndpoint{Name: "a"}); err != nil {
			t.Fatal(err)
		}
		if got := events.want("a", true).GetUrl(); got != "tcp://10.0.0.3:5001" {
			t.Errorf("the deleted a has URL %q, not its last one", got)
		}
	})
}

// The first owner keeps a name. Without TLS and policies the reference checks
// nobody, so plaintext has no say here.
func TestRegistryOwner(t *testing.T) {
	for _, server := range registries {
		for _, client := range registryClients {
			t.Run(client.name+" at "+server.name, func(t *testing.T) {
				ca := ref.NewCA(t, "example.org")
				reg := server.start(t, ca.MutualTLS(t, "registry"), ref.DefaultExpiry, ref.Loopback)
				owner := client.dial(t, ca.MutualTLS(t, "owner"), reg.URL)
				other := client.dial(t, ca.MutualTLS(t, "other"), reg.URL)
				mustRegister(t, owner, endpoint("nse", "echo", "tcp://10.0.0.1:5001", nil))

				_, err := other.Endpoints.Register(soon(t), endpoint("nse", "echo", "tcp://10.9.9.9:5001", nil))
				checkDenied(t, "another's Register", err)
				_, err = other.Endpoints.Unregister(soon(t), &api.NetworkServiceEndpoint{Name: "nse"})
				checkDenied(t, "another's Unregister", err)

				found := findEndpoints(t, other, &api.NetworkServiceEndpoint{Name: "nse"})
				if len(found) != 1 || found[0].GetUrl() != "tcp://10.0.0.1:5001" {
					t.Errorf("the owner's registration became %v", found)
				}
				mustRegister(t, owner, endpoint("nse", "echo", "tcp://10.0.0.2:5001", nil))
			})
		}
	}
}

func checkDenied(t *testing.T, what string, err error) {
	t.Helper()
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "no sufficient privileges") && !strings.Contains(err.Error(), "NSM-") {
		t.Errorf("%s: %v, want PermissionDenied", what, err)
	}
}

func endpoint(name, service, url string, labels map[string]string) *api.NetworkServiceEndpoint {
	if labels == nil {
		labels = map[string]string{"app": name}
	}
	return &api.NetworkServiceEndpoint{
		Name:                 name,
		NetworkServiceNames:  []string{service},
		NetworkServiceLabels: map[string]*api.NetworkServiceLabels{service: {Labels: labels}},
		Url:                  url,
	}
}

func mustRegister(t *testing.T, c ref.RegistryClient, nse *api.NetworkServiceEndpoint) *api.NetworkServiceEndpoint {
	t.Helper()
	reply, err := c.Endpoints.Register(soon(t), nse)
	if err != nil {
		t.Fatalf("register %s: %v", nse.GetName(), err)
	}
	return reply
}

func findEndpoints(t *testing.T, c ref.RegistryClient, template *api.NetworkServiceEndpoint) []*api.NetworkServiceEndpoint {
	t.Helper()
	stream, err := c.Endpoints.Find(soon(t), &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: template})
	if err != nil {
		t.Fatal(err)
	}
	var found []*api.NetworkServiceEndpoint
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, r.GetNetworkServiceEndpoint())
	}
}

// endpointEvents is a watch of endpoints, read one by one.
type endpointEvents struct {
	t      *testing.T
	stream api.NetworkServiceEndpointRegistry_FindClient
}

func watchEndpoints(t *testing.T, c ref.RegistryClient, template *api.NetworkServiceEndpoint) endpointEvents {
	t.Helper()
	ctx, cancel := context.WithCancel(soon(t))
	t.Cleanup(cancel)
	stream, err := c.Endpoints.Find(ctx, &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: template, Watch: true})
	if err != nil {
		t.Fatal(err)
	}
	return endpointEvents{t, stream}
}

// want takes the next event, which must be about the named endpoint.
func (e endpointEvents) want(name string, deleted bool) *api.NetworkServiceEndpoint {
	e.t.Helper()
	r, err := e.stream.Recv()
	if err != nil {
		e.t.Fatalf("waiting for an event of %s: %v", name, err)
	}
	nse := r.GetNetworkServiceEndpoint()
	if nse.GetName() != name || r.GetDeleted() != deleted {
		e.t.Fatalf("event of %s, deleted: %v; want %s, deleted: %v", nse.GetName(), r.GetDeleted(), name, deleted)
	}
	return nse
}

// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/payload"
	api "github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

// The reference's client renews at two thirds of the time that the registry
// grants, once, with the deadline of the first Register: a renewal that misses it
// is not tried again. Its registry takes an endpoint away earlier, by what was
// left of the deadline of the last Register.
func TestRegistryRenewal(t *testing.T) {
	const (
		granted  = 9 * time.Second
		deadline = 2 * time.Second // 1 s for the renewal at the reference's registry
	)
	for _, server := range registries {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel() // it waits, it does not work
			onBoth(t, func(t *testing.T, as func(string) ref.Security) {
				t.Parallel()
				reg := server.start(t, as("registry"), granted, ref.Loopback)
				client := ref.NewRegistryClient(t.Context(), t, as("endpoint"), reg.URL)
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				first, err := client.Endpoints.Register(ctx, endpoint("nse", "echo", "tcp://10.0.0.1:5001", nil))
				if err != nil {
					t.Fatal(err)
				}
				events := watchEndpoints(t, client, &api.NetworkServiceEndpoint{Name: "nse"})
				events.want("nse", false)
				renewed := events.want("nse", false)
				if !renewed.GetExpirationTime().AsTime().After(first.GetExpirationTime().AsTime()) {
					t.Errorf("renewed until %v, was until %v", renewed.GetExpirationTime().AsTime(), first.GetExpirationTime().AsTime())
				}
				if !slices.Equal(renewed.GetPathIds(), first.GetPathIds()) {
					t.Errorf("path_ids %v after a renewal, were %v", renewed.GetPathIds(), first.GetPathIds())
				}
			})
		})
	}
}

// An endpoint that nobody renews is gone when its time is over.
func TestRegistryExpiry(t *testing.T) {
	const (
		granted  = 3 * time.Second
		deadline = 2 * time.Second
		slack    = time.Second
	)
	for _, server := range registries {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, as func(string) ref.Security) {
				t.Parallel()
				reg := server.start(t, as("registry"), granted, ref.Loopback)
				client := ourRegistryClient(t, as("endpoint"), reg.URL) // does not renew
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				registered, err := client.Endpoints.Register(ctx, endpoint("nse", "echo", "tcp://10.0.0.1:5001", nil))
				if err != nil {
					t.Fatal(err)
				}
				events := watchEndpoints(t, ref.NewRegistryClient(t.Context(), t, as("observer"), reg.URL), &api.NetworkServiceEndpoint{Name: "nse"})
				events.want("nse", false)
				events.want("nse", true)
				if late := time.Since(registered.GetExpirationTime().AsTime()); late > slack || late < -deadline-slack {
					t.Errorf("gone %v after the end of its time", late)
				}
			})
		})
	}
}

// Our registry dies and comes back with nothing in memory: the reference's
// clients see their watch break and register again on their own, and the
// watches of others go on.
func TestReferenceClientsHealOnOurRegistry(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		registrySecurity, address := as("registry"), ref.Socket(t)
		reg := ours.Registry(t, registrySecurity, ref.DefaultExpiry, address)
		client := ref.NewRegistryClient(t.Context(), t, as("endpoint"), reg.URL)
		mustRegister(t, client, endpoint("nse", "echo", "tcp://10.0.0.1:5001", nil))
		observer := ref.NewRegistryClient(t.Context(), t, as("observer"), reg.URL)
		events := watchEndpoints(t, observer, &api.NetworkServiceEndpoint{Name: "nse"})
		events.want("nse", false)

		reg.Stop()
		ours.Registry(t, registrySecurity, ref.DefaultExpiry, address)
		if got := events.want("nse", false).GetUrl(); got != "tcp://10.0.0.1:5001" {
			t.Errorf("registered again with URL %q", got)
		}
	})
}

// The reference's manager as a proxy in front of either registry: the socket of
// the endpoint stays with the manager, the registry learns the manager's own
// URL and the whole path, and Find through the manager gives the socket back.
func TestReferenceManagerAtOurRegistry(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		reg := ours.Registry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
		manager := ref.Manager(t, as("manager"), ref.ManagerConfig{Name: "manager", Registry: reg.URL})
		direct := ourRegistryClient(t, as("observer"), reg.URL)
		proxied := ref.NewRegistryClient(t.Context(), t, as("endpoint"), manager.URL())

		socket := ref.Socket(t)
		refRegistry(t, as("endpoint"), ref.DefaultExpiry, socket) // anything that listens there
		reply := mustRegister(t, proxied, endpoint("nse", "echo", socket, nil))
		if reply.GetUrl() != socket {
			t.Errorf("the endpoint got its URL back as %q, want %q", reply.GetUrl(), socket)
		}

		stored := findEndpoints(t, direct, &api.NetworkServiceEndpoint{Name: "nse"})
		if len(stored) != 1 || stored[0].GetUrl() != manager.URLs[1] {
			t.Fatalf("the registry holds %v, want the URL %s", stored, manager.URLs[1])
		}
		want := []string{"spiffe://example.org/endpoint", "spiffe://example.org/manager", "spiffe://example.org/registry"}
		if got := stored[0].GetPathIds(); !slices.Equal(got, want) {
			t.Errorf("path_ids %v, want %v", got, want)
		}
		found := findEndpoints(t, proxied, &api.NetworkServiceEndpoint{Name: "nse"})
		if len(found) != 1 || !strings.HasPrefix(found[0].GetUrl(), "unix:///proc/") {
			t.Errorf("the manager says %v, want the socket by its descriptor", found)
		}

		if _, err := proxied.Endpoints.Unregister(soon(t), reply); err != nil {
			t.Errorf("unregister: %v", err)
		}
		if left := findEndpoints(t, direct, &api.NetworkServiceEndpoint{Name: "nse"}); len(left) != 0 {
			t.Errorf("still registered: %v", left)
		}
	})
}

// Everything of the reference but the registry, over two nodes.
func TestReferenceMeshOnOurRegistry(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		reg := ours.Registry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
		a := ref.Manager(t, as("manager-a"), ref.ManagerConfig{Name: "manager-a", Registry: reg.URL})
		b := ref.Manager(t, as("manager-b"), ref.ManagerConfig{Name: "manager-b", Registry: reg.URL})
		ref.Forwarder(t, as("forwarder-a"), ref.ForwarderConfig{Name: "forwarder-a", Manager: a.URL()})
		ref.Forwarder(t, as("forwarder-b"), ref.ForwarderConfig{Name: "forwarder-b", Manager: b.URL()})
		ref.RegisterService(t, as("operator"), reg.URL, &api.NetworkService{Name: "echo", Payload: payload.Ethernet})
		ref.Endpoint(t, as("endpoint"), ref.EndpointConfig{Name: "endpoint-b", Service: "echo", CIDR: "10.20.0.0/24", Manager: b.URL()})
		client := ref.Client(t, as("client"), ref.ClientConfig{Name: "client", Manager: a.URL()})

		conn, err := client.Request(soon(t), &networkservice.NetworkServiceRequest{
			Connection: &networkservice.Connection{Id: "id", NetworkService: "echo"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := names(conn.GetPath()), []string{"client", "manager-a", "forwarder-a", "manager-b", "forwarder-b", "endpoint-b"}; !slices.Equal(got, want) {
			t.Errorf("path %v, want %v", got, want)
		}
		if conn.GetPayload() != payload.Ethernet {
			t.Errorf("payload %q, want that of the service", conn.GetPayload())
		}
		if _, err := client.Close(soon(t), conn); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

// The same behind our manager, whose own watches go on: it has been told what the
// registry has lost, and breaks the watches of that.
func TestReferenceClientsHealBehindOurManager(t *testing.T) {
	// Without policies: with them the reference's client reads whom it has called while its
	// own watch writes that, which the race detector minds.
	ca := ref.NewCA(t, "example.org")
	as := func(path string) ref.Security { return ca.Plain(t, path) }
	registrySecurity, address := as("registry"), ref.Socket(t)
	reg := ours.Registry(t, registrySecurity, ref.DefaultExpiry, address)
	manager := ourManager(t, as("manager"), "manager", reg.URL)
	client := ref.NewRegistryClient(t.Context(), t, as("endpoint"), manager.URL)
	if _, err := client.Services.Register(soon(t), &api.NetworkService{Name: "echo", Payload: payload.Ethernet}); err != nil {
		t.Fatal(err)
	}
	mustRegister(t, client, endpoint("nse", "echo", "tcp://10.0.0.1:5001", nil))

	reg.Stop()
	ours.Registry(t, registrySecurity, ref.DefaultExpiry, address)
	observer := ref.NewRegistryClient(t.Context(), t, as("observer"), reg.URL)
	if got := watchEndpoints(t, observer, &api.NetworkServiceEndpoint{Name: "nse"}).want("nse", false).GetUrl(); got != manager.public {
		t.Errorf("registered again with URL %q, want the manager's, %s", got, manager.public)
	}
	services, err := observer.Services.Find(soon(t), &api.NetworkServiceQuery{NetworkService: &api.NetworkService{Name: "echo"}, Watch: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := services.Recv(); err != nil || got.GetNetworkService().GetPayload() != payload.Ethernet {
		t.Errorf("the service is registered again as %v, %v", got, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"net"
	"slices"
	"strings"
	"testing"

	api "github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/test/interop/ref"
)

// Our manager as a proxy between the reference's registry clients and either
// registry: the socket of the endpoint stays with the manager, the registry
// learns the manager's own URL and who has passed the registration on, renewals
// are the owner's, and Find through the manager gives the socket back.
func TestOurManagerAsRegistryProxy(t *testing.T) {
	for _, server := range registries {
		t.Run("at "+server.name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, as func(string) ref.Security) {
				reg := server.start(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
				manager := ourManager(t, as("manager"), "manager", reg.URL)
				direct := ref.NewRegistryClient(t.Context(), t, as("observer"), reg.URL)
				proxied := ref.NewRegistryClient(t.Context(), t, as("endpoint"), manager.URL)

				socket, called := listeningSocket(t)
				address := "unix://" + socket.Name()
				reply := mustRegister(t, proxied, endpoint("nse", "echo", address, nil))
				if reply.GetUrl() != address {
					t.Errorf("the endpoint got its URL back as %q, want %q", reply.GetUrl(), address)
				}
				stored := findEndpoints(t, direct, &api.NetworkServiceEndpoint{Name: "nse"})
				if len(stored) != 1 || stored[0].GetUrl() != manager.public {
					t.Fatalf("the registry holds %v, want the URL %s", stored, manager.public)
				}
				want := []string{"spiffe://example.org/endpoint", "spiffe://example.org/manager", "spiffe://example.org/registry"}
				if got := stored[0].GetPathIds(); !slices.Equal(got, want) {
					t.Errorf("path_ids %v, want %v", got, want)
				}
				mustRegister(t, proxied, endpoint("nse", "echo", address, nil)) // renewal by the owner

				found := findEndpoints(t, ref.NewRegistryClient(t.Context(), t, as("forwarder"), manager.URL), &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"echo"}})
				if len(found) != 1 || !strings.HasPrefix(found[0].GetUrl(), "unix://") {
					t.Fatalf("the manager says %v, want the endpoint's socket", found)
				}
				c, err := net.Dial("unix", strings.TrimPrefix(found[0].GetUrl(), "unix://"))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if err := <-called; err != nil {
					t.Errorf("nobody arrived at the endpoint's socket: %v", err)
				}

				events := watchEndpoints(t, direct, &api.NetworkServiceEndpoint{Name: "nse"})
				events.want("nse", false)
				if _, err := proxied.Endpoints.Unregister(soon(t), reply); err != nil {
					t.Errorf("unregister: %v", err)
				}
				events.want("nse", true)
			})
		})
	}
}

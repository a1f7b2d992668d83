// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/payload"
	"github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/test/interop/ref"
)

// The harness itself: nothing but reference parts, so that a failure of any
// other test in this package is about us.
func TestReferenceAlone(t *testing.T) {
	for _, tt := range []struct {
		name     string
		security func(*ref.CA, testing.TB, string) ref.Security
	}{
		{"plaintext", (*ref.CA).Plain},
		{"mutual TLS with policies", (*ref.CA).MutualTLS},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ca := ref.NewCA(t, "example.org")
			as := func(path string) ref.Security { return tt.security(ca, t, path) }

			reg := ref.Registry(t, as("registry"), ref.Loopback)
			a := ref.Manager(t, as("manager-a"), ref.ManagerConfig{Name: "manager-a", Registry: reg.URL()})
			b := ref.Manager(t, as("manager-b"), ref.ManagerConfig{Name: "manager-b", Registry: reg.URL()})
			ref.Forwarder(t, as("forwarder-a"), ref.ForwarderConfig{Name: "forwarder-a", Manager: a.URL()})
			ref.Forwarder(t, as("forwarder-b"), ref.ForwarderConfig{Name: "forwarder-b", Manager: b.URL()})
			ref.RegisterService(t, as("operator"), reg.URL(), &registry.NetworkService{Name: "echo", Payload: payload.IP})
			ref.Endpoint(t, as("endpoint"), ref.EndpointConfig{
				Name: "endpoint-b", Service: "echo", CIDR: "10.20.0.0/24", Manager: b.URL(),
			})

			for _, node := range []struct {
				name     string
				manager  *ref.Server
				segments []string
			}{
				{"same node", b, []string{"client", "manager-b", "forwarder-b", "endpoint-b"}},
				{"two nodes", a, []string{"client", "manager-a", "forwarder-a", "manager-b", "forwarder-b", "endpoint-b"}},
			} {
				t.Run(node.name, func(t *testing.T) {
					client := ref.Client(t, as("client"), ref.ClientConfig{Name: "client", Manager: node.manager.URL(), IfName: "nsm-1"})
					ctx, cancel := context.WithTimeout(t.Context(), ref.CallTimeout)
					defer cancel()
					conn, err := client.Request(ctx, &networkservice.NetworkServiceRequest{
						Connection: &networkservice.Connection{Id: "id-" + node.name, NetworkService: "echo"},
					})
					if err != nil {
						t.Fatal(err)
					}
					if got := names(conn.GetPath()); !slices.Equal(got, node.segments) {
						t.Errorf("path %v, want %v", got, node.segments)
					}
					if got := conn.GetContext().GetIpContext().GetSrcIpAddrs(); len(got) != 1 || !strings.HasPrefix(got[0], "10.20.0.") {
						t.Errorf("client addresses %v, want one of 10.20.0.0/24", got)
					}
					if got := conn.GetMechanism().GetParameters()["inodeURL"]; got != "file:///proc/thread-self/ns/net" {
						t.Errorf("client's own namespace came back as %q", got)
					}
					if _, err := client.Close(ctx, conn); err != nil {
						t.Errorf("close: %v", err)
					}
				})
			}
		})
	}
}

func names(path *networkservice.Path) []string {
	var all []string
	for _, segment := range path.GetPathSegments() {
		all = append(all, segment.GetName())
	}
	return all
}

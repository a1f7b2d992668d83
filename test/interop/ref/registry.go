// SPDX-License-Identifier: Apache-2.0

package ref

import (
	"context"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/registry"
	registryclient "github.com/networkservicemesh/sdk/pkg/registry/chains/client"
	"github.com/networkservicemesh/sdk/pkg/registry/chains/memory"
	"github.com/networkservicemesh/sdk/pkg/registry/common/recvfd"
	"github.com/networkservicemesh/sdk/pkg/registry/common/sendfd"
	"google.golang.org/grpc"
)

// Registry runs cmd-registry-memory's chain.
func Registry(t testing.TB, s Security, addresses ...string) *Server {
	t.Helper()
	return Serve(t, "registry", []grpc.ServerOption{s.ServerOption()}, addresses, func(ctx context.Context, _ []string) func(*grpc.Server) {
		return memory.NewServer(ctx, s.Tokens(),
			memory.WithAuthorizeNSRegistryServer(s.authorizeNSServer()),
			memory.WithAuthorizeNSERegistryServer(s.authorizeNSEServer()),
			memory.WithAuthorizeNSRegistryClient(s.authorizeNSClient()),
			memory.WithAuthorizeNSERegistryClient(s.authorizeNSEClient()),
			memory.WithDialOptions(s.DialOptions()...),
		).Register
	})
}

// RegistryClient is the reference's pair of registry clients for one registry
// or manager. They retry a failed Register for as long as its context lives,
// renew endpoints at two thirds of their time, watch their own name and
// register again when that watch breaks, and reopen watches: give every call a
// deadline. Endpoint URLs of scheme unix travel as descriptors both ways.
type RegistryClient struct {
	Services  registry.NetworkServiceRegistryClient
	Endpoints registry.NetworkServiceEndpointRegistryClient
}

// NewRegistryClient makes the clients; they stop refreshing with the test.
func NewRegistryClient(t testing.TB, s Security, url string) RegistryClient {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return newRegistryClient(ctx, t, s, url,
		sendfd.NewNetworkServiceEndpointRegistryClient(), recvfd.NewNetworkServiceEndpointRegistryClient())
}

func newRegistryClient(ctx context.Context, t testing.TB, s Security, url string, endpointElements ...registry.NetworkServiceEndpointRegistryClient) RegistryClient {
	t.Helper()
	options := func() []registryclient.Option { // chain elements are not to be shared
		return []registryclient.Option{
			registryclient.WithClientURL(parse(t, url)),
			registryclient.WithDialOptions(s.DialOptions()...),
			registryclient.WithAuthorizeNSRegistryClient(s.authorizeNSClient()),
			registryclient.WithAuthorizeNSERegistryClient(s.authorizeNSEClient()),
			registryclient.WithNSEAdditionalFunctionality(endpointElements...),
		}
	}
	return RegistryClient{
		Services:  registryclient.NewNetworkServiceRegistryClient(ctx, options()...),
		Endpoints: registryclient.NewNetworkServiceEndpointRegistryClient(ctx, options()...),
	}
}

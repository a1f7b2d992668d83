// SPDX-License-Identifier: Apache-2.0

package ref

import (
	"context"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	registryclient "github.com/networkservicemesh/sdk/pkg/registry/chains/client"
	"github.com/networkservicemesh/sdk/pkg/registry/chains/memory"
	"github.com/networkservicemesh/sdk/pkg/registry/common/null"
	"github.com/networkservicemesh/sdk/pkg/registry/common/recvfd"
	"github.com/networkservicemesh/sdk/pkg/registry/common/sendfd"
	"google.golang.org/grpc"
)

// DefaultExpiry is how long the reference's registry keeps an endpoint at most.
const DefaultExpiry = time.Minute

// Registry runs cmd-registry-memory's chain at the addresses.
func Registry(t testing.TB, s Security, addresses ...string) *Server {
	t.Helper()
	return RegistryExpiring(t, s, DefaultExpiry, addresses...)
}

// RegistryExpiring is a Registry that keeps endpoints for at most the given time.
func RegistryExpiring(t testing.TB, s Security, expiry time.Duration, addresses ...string) *Server {
	t.Helper()
	return Serve(t, "registry", []grpc.ServerOption{s.ServerOption()}, addresses, func(ctx context.Context, _ []string) func(*grpc.Server) {
		return memory.NewServer(ctx, s.Tokens(),
			memory.WithAuthorizeNSRegistryServer(s.authorizeNSServer()),
			memory.WithAuthorizeNSERegistryServer(s.authorizeNSEServer()),
			memory.WithAuthorizeNSRegistryClient(s.authorizeNSClient()),
			memory.WithAuthorizeNSERegistryClient(s.authorizeNSEClient()),
			memory.WithDefaultExpiration(expiry),
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

// NewRegistryClient makes the clients. They renew and watch until ctx ends,
// which is how a test lets a client die without a word.
func NewRegistryClient(ctx context.Context, t testing.TB, s Security, url string) RegistryClient {
	t.Helper()
	return newRegistryClient(ctx, t, s, url,
		sendfd.NewNetworkServiceEndpointRegistryClient(), recvfd.NewNetworkServiceEndpointRegistryClient())
}

// NewImpatientRegistryClient is NewRegistryClient without the retries: the first
// error is returned, as it came.
func NewImpatientRegistryClient(ctx context.Context, t testing.TB, s Security, url string) RegistryClient {
	t.Helper()
	options := func() []registryclient.Option {
		return append(registryOptions(t, s, url),
			registryclient.WithNSRetryClient(null.NewNetworkServiceRegistryClient()),
			registryclient.WithNSERetryClient(null.NewNetworkServiceEndpointRegistryClient()))
	}
	return RegistryClient{
		Services:  registryclient.NewNetworkServiceRegistryClient(ctx, options()...),
		Endpoints: registryclient.NewNetworkServiceEndpointRegistryClient(ctx, options()...),
	}
}

func newRegistryClient(ctx context.Context, t testing.TB, s Security, url string, endpointElements ...registry.NetworkServiceEndpointRegistryClient) RegistryClient {
	t.Helper()
	return RegistryClient{
		Services: registryclient.NewNetworkServiceRegistryClient(ctx, registryOptions(t, s, url)...),
		Endpoints: registryclient.NewNetworkServiceEndpointRegistryClient(ctx,
			append(registryOptions(t, s, url), registryclient.WithNSEAdditionalFunctionality(endpointElements...))...),
	}
}

// registryOptions makes new chain elements with each call: they are not to be shared.
func registryOptions(t testing.TB, s Security, url string) []registryclient.Option {
	t.Helper()
	return []registryclient.Option{
		registryclient.WithClientURL(parse(t, url)),
		registryclient.WithDialTimeout(dialTimeout),
		registryclient.WithDialOptions(s.DialOptions()...),
		registryclient.WithAuthorizeNSRegistryClient(s.authorizeNSClient()),
		registryclient.WithAuthorizeNSERegistryClient(s.authorizeNSEClient()),
	}
}

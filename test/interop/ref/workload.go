// SPDX-License-Identifier: Apache-2.0

package ref

import (
	"context"
	"net"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/kernel"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/client"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/endpoint"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/heal"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/recvfd"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/sendfd"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/null"
	"github.com/networkservicemesh/sdk/pkg/networkservice/ipam/point2pointipam"
	"google.golang.org/grpc"
)

// EndpointConfig describes an endpoint.
type EndpointConfig struct {
	Name    string
	Service string            // network service, already or later registered
	Labels  map[string]string // labels for that service
	CIDR    string            // point-to-point addresses, such as "10.20.0.0/24"
	Manager string            // URL of its manager, the reference's or ours
	NetNS   string            // path of its network namespace; "" = the calling thread's
	IfName  string            // its interface name; "" = generated
	// Extra elements run last, at the place where a service does its work.
	Extra []networkservice.NetworkServiceServer
}

// Endpoint runs cmd-nse-icmp-responder's chain on a Unix socket and registers
// it with its manager, the socket travelling as a descriptor.
func Endpoint(t testing.TB, s Security, c EndpointConfig) *Server {
	t.Helper()
	_, prefix, err := net.ParseCIDR(c.CIDR)
	must(t, err)
	e := Serve(t, c.Name, []grpc.ServerOption{s.ServerOption()}, []string{Socket(t)}, func(ctx context.Context, _ []string) func(*grpc.Server) {
		return endpoint.NewServer(ctx, s.Tokens(),
			endpoint.WithName(c.Name),
			endpoint.WithAuthorizeServer(s.authorizeServer()),
			endpoint.WithAdditionalFunctionality(append([]networkservice.NetworkServiceServer{
				point2pointipam.NewServer(prefix),
				recvfd.NewServer(),
				mechanisms.NewServer(map[string]networkservice.NetworkServiceServer{
					kernel.MECHANISM: inNetNS{c.NetNS, c.IfName}.server(),
				}),
				sendfd.NewServer(),
			}, c.Extra...)...),
		).Register
	})
	register(t, s, c.Manager, &registry.NetworkServiceEndpoint{
		Name:                c.Name,
		NetworkServiceNames: []string{c.Service},
		NetworkServiceLabels: map[string]*registry.NetworkServiceLabels{
			c.Service: {Labels: c.Labels},
		},
		Url: e.URL(),
	})
	return e
}

// ClientConfig describes a client.
type ClientConfig struct {
	Name    string
	Manager string // URL of its manager, the reference's or ours
	NetNS   string // path of its network namespace; "" = the calling thread's
	IfName  string // its interface name; "" = generated
	Heal    bool   // watch the connection and re-request it when it goes down
}

// Client is cmd-nsc's chain: kernel interface, descriptors, path checks, refresh
// (and healing when asked for) until the test ends. It does not close its
// connections at the end of the test.
func Client(t testing.TB, s Security, c ClientConfig) networkservice.NetworkServiceClient {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	healing := null.NewClient()
	if c.Heal {
		healing = heal.NewClient(ctx)
	}
	return client.NewClient(ctx,
		client.WithClientURL(parse(t, c.Manager)),
		client.WithName(c.Name),
		client.WithAuthorizeClient(s.authorizeClient()),
		client.WithHealClient(healing),
		client.WithDialOptions(s.DialOptions()...),
		client.WithDialTimeout(dialTimeout),
		client.WithAdditionalFunctionality(
			inNetNS{c.NetNS, c.IfName}.client(),
			sendfd.NewClient(),
		),
	)
}

// RegisterService announces a network service at a registry or manager.
func RegisterService(t testing.TB, s Security, url string, service *registry.NetworkService) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), CallTimeout)
	defer cancel()
	if _, err := newRegistryClient(ctx, t, s, url).Services.Register(ctx, service); err != nil {
		t.Fatalf("cannot register service %s at %s: %v", service.GetName(), url, err)
	}
}

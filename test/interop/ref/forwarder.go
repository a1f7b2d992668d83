// SPDX-License-Identifier: Apache-2.0

package ref

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/kernel"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/vxlan"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/wireguard"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/client"
	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/endpoint"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/connect"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/discover"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/recvfd"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/sendfd"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/vxlan/vni"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanismtranslation"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/null"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/roundrobin"
	registryrecvfd "github.com/networkservicemesh/sdk/pkg/registry/common/recvfd"
	registrysendfd "github.com/networkservicemesh/sdk/pkg/registry/common/sendfd"
	"google.golang.org/grpc"
)

// TunnelIP is the underlay address that a reference forwarder reports when
// nothing else is asked for. There is no tunnel behind it.
var TunnelIP = net.IPv4(127, 0, 0, 1)

// ForwarderConfig names what a forwarder needs.
type ForwarderConfig struct {
	Name     string
	Manager  string // URL of its manager's Unix socket, the reference's or ours
	TunnelIP net.IP // nil means the package's TunnelIP

	// Offer are more parameters of the tunnels that it offers to its right, Answer
	// of those that it answers with to its left.
	Offer, Answer map[string]string
	// Legs, if set, learns what passes.
	Legs *Legs
}

// Forwarder runs a forwarder without a data plane on a Unix socket and
// registers it with its manager. The chain is that of cmd-forwarder-vpp with
// every element that touches a device left out: KERNEL with descriptors to
// both sides, VXLAN (payload ETHERNET) and WIREGUARD (payload IP) negotiated
// with the real parameters, LOCAL or REMOTE chosen by the scheme of the next
// hop's URL.
func Forwarder(t testing.TB, s Security, c ForwarderConfig) *Server {
	t.Helper()
	if c.TunnelIP == nil {
		c.TunnelIP = TunnelIP
	}
	if c.Legs == nil {
		c.Legs = new(Legs)
	}
	forwarder := Serve(t, c.Name, []grpc.ServerOption{s.ServerOption()}, []string{Socket(t)}, func(ctx context.Context, _ []string) func(*grpc.Server) {
		registries := newRegistryClient(ctx, t, s, c.Manager, registryrecvfd.NewNetworkServiceEndpointRegistryClient())
		return endpoint.NewServer(ctx, s.Tokens(),
			endpoint.WithName(c.Name),
			endpoint.WithAuthorizeServer(s.authorizeServer()),
			endpoint.WithAdditionalFunctionality(
				leftOf{c.Legs},
				recvfd.NewServer(),
				sendfd.NewServer(),
				answer(c.Answer),
				discover.NewServer(registries.Services, registries.Endpoints),
				roundrobin.NewServer(),
				mechanisms.NewServer(map[string]networkservice.NetworkServiceServer{
					kernel.MECHANISM:    null.NewServer(),
					vxlan.MECHANISM:     vni.NewServer(c.TunnelIP),
					wireguard.MECHANISM: wireguardServer{c.TunnelIP},
				}),
				connect.NewServer(client.NewClient(ctx,
					client.WithName(c.Name),
					client.WithoutRefresh(),
					client.WithDialOptions(s.hopDialOptions()...),
					client.WithDialTimeout(dialTimeout),
					client.WithAdditionalFunctionality(
						mechanismtranslation.NewClient(),
						&nextHopMechanism{tunnelIP: c.TunnelIP, offer: c.Offer},
						vni.NewClient(c.TunnelIP),
						recvfd.NewClient(),
						sendfd.NewClient(),
						rightOf{c.Legs},
					),
				)),
			),
		).Register
	})
	register(t, s, c.Manager, &registry.NetworkServiceEndpoint{
		Name:                c.Name,
		NetworkServiceNames: []string{"forwarder"},
		NetworkServiceLabels: map[string]*registry.NetworkServiceLabels{
			"forwarder": {Labels: map[string]string{"p2p": "true"}},
		},
		Url: forwarder.URL(),
	})
	return forwarder
}

// register announces an endpoint or forwarder at a manager and keeps it
// announced for the rest of the test. The name is not unregistered at the end.
func register(t testing.TB, s Security, manager string, nse *registry.NetworkServiceEndpoint) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	registries := newRegistryClient(ctx, t, s, manager, registrysendfd.NewNetworkServiceEndpointRegistryClient())
	deadline, done := context.WithTimeout(ctx, CallTimeout)
	defer done()
	if _, err := registries.Endpoints.Register(deadline, nse); err != nil {
		t.Fatalf("%s cannot register at %s: %v", nse.GetName(), manager, err)
	}
}

// CallTimeout is the deadline this package gives to its own calls.
const CallTimeout = 10 * time.Second

// SPDX-License-Identifier: Apache-2.0

package ours

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/forwarder"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/nsmgr"
	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/registry/memory"
	"github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/ipam"
	"github.com/openvwire/nsm/sdk/registration"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/test/interop/ref"
)

// Registry runs our registry with empty stores in memory.
func Registry(t testing.TB, s ref.Security, expiry time.Duration, address string) Part {
	t.Helper()
	c := registry.Config{
		Name:      "registry",
		Tokens:    Tokens(s),
		Services:  memory.New[*api.NetworkService](),
		Endpoints: memory.New[*api.NetworkServiceEndpoint](),
		Logger:    Quiet,
		MaxExpiry: expiry,
		Policy:    registry.Strict{MaySpeakFor: managers},
	}
	if !s.Checked {
		c.Policy = anybody{}
	}
	server := registry.New(c)
	p := Serve(t, s, address, func(g *grpc.Server) { server.Register(g) })
	return p.ending(t, server.Close, func() {
		if err := c.Services.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
		if err := c.Endpoints.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	})
}

// anybody is the policy of a registry on plaintext.
type anybody struct{}

func (anybody) Check(rpc.Caller, []string, time.Time) error { return nil }

// ManagerConfig names what a manager needs.
type ManagerConfig struct {
	Name     string
	Registry string // URL of the registry, the reference's or ours
	Socket   string // where it listens; default a fresh Unix socket
	Public   string // and where others reach it; default a port of loopback

	locals map[string]*rpc.Local // forwarders in the same process, by URL
	local  *rpc.Local            // unless nil, serves the manager to them
}

// Manager runs our manager. It returns the URL that registries learn, too.
func Manager(t testing.TB, s ref.Security, c ManagerConfig) (p Part, public string) {
	t.Helper()
	if c.Socket == "" {
		c.Socket = ref.Socket(t)
	}
	if c.Public == "" {
		c.Public = ref.Loopback
	}
	sockets := rpc.NewSockets()
	pool := Pool(s, c.Name, sockets, c.locals)
	var manager *nsmgr.Manager
	p = serveAt(t, s, []string{c.Socket, c.Public}, func(urls []string) func(*grpc.Server) {
		var err error
		public = urls[1]
		manager, err = nsmgr.New(nsmgr.Config{
			MayForward: forwarders, MayRelay: relays,
			Name: c.Name, URL: public, Tokens: Tokens(s), Policy: policyOf(s), Peers: pool, Sockets: sockets,
			Registry: Dial(t, s, c.Registry), Logger: Quiet,
		})
		must(t, err)
		if c.local != nil {
			manager.Register(c.local)
		}
		return func(g *grpc.Server) { manager.Register(g) }
	}).ending(t, func() {}, func() {
		manager.Stop()
		pool.Close()
	})
	ctx, cancel := context.WithTimeout(context.Background(), ref.CallTimeout)
	defer cancel()
	must(t, manager.WaitReady(ctx))
	return p, public
}

// ForwarderConfig names what a forwarder needs.
type ForwarderConfig struct {
	Name       string
	Manager    string // URL of its manager's Unix socket, the reference's or ours
	TunnelIP   netip.Addr
	Kernel     forwarder.Kernel
	Namespaces *netns.Table
}

// Forwarder runs our forwarder on a Unix socket and registers it with its manager.
func Forwarder(t testing.TB, s ref.Security, c ForwarderConfig) (Part, *forwarder.Forwarder) {
	t.Helper()
	f, stop := newForwarder(t, s, c, Dial(t, s, c.Manager))
	p := Serve(t, s, ref.Socket(t), func(g *grpc.Server) { f.Register(g) })
	r := Register(t, s, p.URL, c.Manager, asForwarder(c.Name))
	return p.ending(t, r.Abandon, stop), f
}

func newForwarder(t testing.TB, s ref.Security, c ForwarderConfig, manager grpc.ClientConnInterface) (f *forwarder.Forwarder, stop func()) {
	t.Helper()
	sockets := rpc.NewSockets()
	pool := Pool(s, c.Name, sockets, nil)
	f, err := forwarder.New(forwarder.Config{
		Name: c.Name, TunnelIP: c.TunnelIP, Tokens: Tokens(s), Policy: policyOf(s), Peers: pool, Sockets: sockets,
		Registry: manager, Kernel: c.Kernel, Namespaces: c.Namespaces, Logger: Quiet,
	})
	must(t, err)
	return f, func() {
		f.Stop()
		pool.Close()
	}
}

// asForwarder is how a forwarder registers, but for its URL.
func asForwarder(name string) *api.NetworkServiceEndpoint {
	return &api.NetworkServiceEndpoint{
		Name:                 name,
		NetworkServiceNames:  []string{"forwarder"},
		NetworkServiceLabels: map[string]*api.NetworkServiceLabels{"forwarder": {Labels: map[string]string{"p2p": "true"}}},
	}
}

// Node runs our manager and forwarder as `nsm up` does: in one process, where they call
// each other without a socket. Each has an identity of its own. ForwarderConfig.Manager
// is not used. It returns what Manager does.
func Node(t testing.TB, manager, forwarder ref.Security, m ManagerConfig, f ForwarderConfig) (p Part, public string) {
	t.Helper()
	url := "inproc://" + f.Name
	here := rpc.NewLocal(rpc.LocalOptions{Identity: identityOf(forwarder), Logger: Quiet})
	m.local = rpc.NewLocal(rpc.LocalOptions{Identity: identityOf(manager), Logger: Quiet})
	m.locals = map[string]*rpc.Local{url: here}
	p, public = Manager(t, manager, m)
	up := m.local.Dial(rpc.LocalCaller{Identity: identityOf(forwarder), Tokens: Tokens(forwarder), Share: true})
	part, stop := newForwarder(t, forwarder, f, up)
	part.Register(here)
	nse := asForwarder(f.Name)
	nse.Url = url
	r := start(t, registration.Config{Registry: up, Endpoint: nse, Logger: Quiet})
	return p.ending(t, func() {
		r.Abandon()
		stop()
		here.Close()
		m.local.Close()
	}, func() {}), public
}

// identityOf is who a part is to others of its process.
func identityOf(s ref.Security) func() rpc.Identity {
	return func() rpc.Identity { return rpc.Identity{ID: s.SVID.ID.String(), Cert: s.SVID.Certificates[0]} }
}

// EndpointConfig describes an endpoint.
type EndpointConfig struct {
	Name    string
	Service *api.NetworkService
	CIDR    string   // of its addresses
	Manager string   // URL of its manager, the reference's or ours
	NetNS   *os.File // where its interfaces go
}

// Endpoint runs our endpoint on a Unix socket and registers it with its manager,
// its service included.
func Endpoint(t testing.TB, s ref.Security, c EndpointConfig) (Part, *endpoint.Server) {
	t.Helper()
	e := endpoint.New(c.Name, endpoint.Chain(endpoint.Interface(c.NetNS), endpoint.Addresses(Addresses(t, c.CIDR), endpoint.Strict)), Tokens(s), policyOf(s), Quiet)
	p := Serve(t, s, ref.Socket(t), func(g *grpc.Server) { e.Register(g) })
	r := Register(t, s, p.URL, c.Manager, &api.NetworkServiceEndpoint{
		Name:                 c.Name,
		NetworkServiceNames:  []string{c.Service.GetName()},
		NetworkServiceLabels: map[string]*api.NetworkServiceLabels{c.Service.GetName(): {}},
	}, c.Service)
	return p.ending(t, r.Abandon, e.Stop), e
}

// Addresses returns the addresses of a prefix, none of them taken.
func Addresses(t testing.TB, cidr string) *ipam.Pool {
	t.Helper()
	groups, err := ipam.ParseGroups(cidr)
	must(t, err)
	pool, err := ipam.New(groups)
	must(t, err)
	return pool
}

// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/sdk/client"
	nse "github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/ipam"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/test/interop/ref"
)

// source is an identity as our own constructors take it. It does not change.
type source struct{ ref.Security }

func (s source) GetX509SVID() (*x509svid.SVID, error) { return s.SVID, nil }
func (s source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.Bundle.GetX509BundleForTrustDomain(td)
}
func (source) Updated() <-chan struct{} { return nil }
func (source) Close() error             { return nil }

var _ identity.Source = source{}

// endpointPart is a running endpoint of ours.
type endpointPart struct {
	part
	*nse.Server
	in *workload
}

// ourEndpoint runs our endpoint on a Unix socket, registered with a manager of
// either make, its service included. It has a namespace of its own.
func ourEndpoint(t *testing.T, s ref.Security, name string, service *registry.NetworkService, cidr, manager string) endpointPart {
	t.Helper()
	in := newWorkload(t)
	var policy hop.Policy
	if !s.Checked {
		policy = everybody{}
	}
	e := nse.New(name, nse.Chain(nse.Interface(in.File()), nse.Addresses(poolOf(t, cidr), nse.Strict)), tokensOf(s), policy, quiet)
	p := serveOurs(t, s, ref.Socket(t), func(g *grpc.Server) { e.Register(g) })
	r := registerOurs(t, s, p.url, manager, &registry.NetworkServiceEndpoint{
		Name:                 name,
		NetworkServiceNames:  []string{service.GetName()},
		NetworkServiceLabels: map[string]*registry.NetworkServiceLabels{service.GetName(): {}},
	}, service)
	serving := p.stop
	p.stop = sync.OnceFunc(func() {
		r.Abandon()
		serving()
		e.Stop()
	})
	t.Cleanup(p.stop)
	return endpointPart{part: p, Server: e, in: in}
}

func poolOf(t *testing.T, cidr string) *ipam.Pool {
	t.Helper()
	groups, err := ipam.ParseGroups(cidr)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := ipam.New(groups)
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// ourClient opens our client at a manager of either make.
func ourClient(t *testing.T, s ref.Security, name, manager string) *client.Client {
	t.Helper()
	config := client.Config{Name: name, Manager: manager, Source: source{s}, TokenLifetime: s.TokensFor(), Logger: quiet}
	if s.Lifetime != 0 {
		config.RequestTimeout = requestTimeout
	}
	if !s.Checked {
		pool := ourPool(s, name, rpc.NewSockets())
		t.Cleanup(pool.Close)
		config.Peers = pool
		config.Verify = func(path.Path, *x509.Certificate, time.Time) error { return nil }
	}
	c, err := client.Open(soon(t), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("closing client %s: %v", name, err)
		}
	})
	return c
}

// connect makes a wire in a namespace of its own.
func connect(t *testing.T, c *client.Client, service, ifname string) (*client.Wire, *workload) {
	t.Helper()
	in := newWorkload(t)
	w, err := c.Request(soon(t), client.Request{Service: service, Interface: ifname, NetNS: in.File()})
	if err != nil {
		t.Fatal(err)
	}
	return w, in
}

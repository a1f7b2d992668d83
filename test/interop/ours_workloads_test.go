// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/openvwire/nsm/sdk/client"
	nse "github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/test/interop/ours"
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
	ours.Part
	*nse.Server
	in *workload
}

// ourEndpoint runs our endpoint on a Unix socket, registered with a manager of
// either make, its service included. It has a namespace of its own.
func ourEndpoint(t *testing.T, s ref.Security, name string, service *registry.NetworkService, cidr, manager string) endpointPart {
	t.Helper()
	in := newWorkload(t)
	p, e := ours.Endpoint(t, s, ours.EndpointConfig{Name: name, Service: service, CIDR: cidr, Manager: manager, NetNS: in.File()})
	return endpointPart{Part: p, Server: e, in: in}
}

// ourClient opens our client at a manager of either make.
func ourClient(t *testing.T, s ref.Security, name, manager string) *client.Client {
	t.Helper()
	config := client.Config{Name: name, Manager: manager, Source: source{s}, TokenLifetime: s.TokensFor(), Logger: ours.Quiet}
	if s.Lifetime != 0 {
		config.RequestTimeout = requestTimeout
	}
	if !s.Checked {
		pool := ours.Pool(s, name, rpc.NewSockets(), nil)
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

// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"io"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/registry/memory"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority issues SVIDs of the trust domain "test".
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: "test"}},
	}
	return &authority{sign(t, template, template, key, key), key}
}

func (a *authority) bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("test"), []*x509.Certificate{a.cert})
}

// party is somebody with an SVID.
type party struct{ *x509svid.SVID }

func (a *authority) issue(t testing.TB, name string) party {
	id, key := spiffeid.RequireFromString("spiffe://test/"+name), newKey(t)
	cert := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{id.URL()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key, a.key)
	return party{&x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}}
}

func (p party) tokens() token.Generator { return token.NewGenerator(p.SVID, 10*time.Minute) }
func (p party) cert() *x509.Certificate { return p.Certificates[0] }
func (p party) identity() rpc.Identity  { return rpc.Identity{ID: p.ID.String(), Cert: p.cert()} }

// tokenFor returns a token of p for somebody, nil for nobody in particular.
func (p party) tokenFor(t testing.TB, to *party) string {
	var peer *x509.Certificate
	if to != nil {
		peer = to.cert()
	}
	raw, _, err := p.tokens()(peer)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// fixture is a strict registry in this process, with parties that call it.
type fixture struct {
	authority *authority
	registry  party
	services  *memory.Store[*api.NetworkService]
	endpoints *memory.Store[*api.NetworkServiceEndpoint]
	srv       *registry.Server
	local     *rpc.Local
}

// speaking lets the manager register for others.
var speaking = registry.Strict{MaySpeakFor: func(caller, _ string) bool { return caller == "spiffe://test/manager" }}

func newFixture(t testing.TB) *fixture {
	a := newAuthority(t)
	f := &fixture{
		authority: a,
		registry:  a.issue(t, "registry"),
		services:  memory.New[*api.NetworkService](),
		endpoints: memory.New[*api.NetworkServiceEndpoint](),
	}
	f.srv = registry.New(registry.Config{Name: "test", Tokens: f.registry.tokens(), Policy: speaking, Services: f.services, Endpoints: f.endpoints})
	f.local = rpc.NewLocal(rpc.LocalOptions{Identity: f.registry.identity})
	f.srv.Register(f.local)
	t.Cleanup(func() {
		f.srv.Close()
		f.local.Close()
	})
	return f
}

// clients of the two services.
type clients struct {
	services  api.NetworkServiceRegistryClient
	endpoints api.NetworkServiceEndpointRegistryClient
}

func clientsOf(cc grpc.ClientConnInterface) clients {
	return clients{api.NewNetworkServiceRegistryClient(cc), api.NewNetworkServiceEndpointRegistryClient(cc)}
}

func (f *fixture) as(p party) clients {
	return clientsOf(f.local.Dial(rpc.LocalCaller{Identity: p.identity, Tokens: p.tokens()}))
}

// stored returns everything in the stores, by name.
func (f *fixture) stored(t testing.TB) (all []string) {
	t.Helper()
	for v, err := range f.services.Find(context.Background(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v.Object.Name)
	}
	for v, err := range f.endpoints.Find(context.Background(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v.Object.Name)
	}
	return all
}

func endpoint(name string, services ...string) *api.NetworkServiceEndpoint {
	return &api.NetworkServiceEndpoint{Name: name, NetworkServiceNames: services, Url: "tcp://10.0.0.1:5001"}
}

func diff(want, got any) string { return cmp.Diff(want, got, protocmp.Transform()) }

// receive reads a stream to its end.
func receive[T any](t testing.TB, stream grpc.ServerStreamingClient[T], err error) (all []*T) {
	t.Helper()
	for err == nil {
		var r *T
		if r, err = stream.Recv(); err == nil {
			all = append(all, r)
		}
	}
	if err != io.EOF {
		t.Fatalf("receiving: %v", err)
	}
	return all
}

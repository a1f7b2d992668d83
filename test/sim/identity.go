// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/openvwire/nsm/sdk/rpc"
)

// TrustDomain is that of every mesh.
const TrustDomain = "sim.test"

// ID returns the SPIFFE ID of the part with the given name.
func ID(name string) string { return "spiffe://" + TrustDomain + "/" + name }

// svidLifetime is longer than any test; Rotate is for those who want another.
const svidLifetime = 24 * time.Hour

// authority issues SVIDs.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: TrustDomain},
		NotBefore: now, NotAfter: now.Add(2 * svidLifetime),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return &authority{cert: sign(t, template, template, &key.PublicKey, key), key: key}
}

func sign(t testing.TB, template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// certs returns what SVIDs chain to.
func (a *authority) certs() []*x509.Certificate { return []*x509.Certificate{a.cert} }

// issue makes an SVID for the part with the given name.
func (a *authority) issue(t testing.TB, name string) *x509svid.SVID {
	id := spiffeid.RequireFromString(ID(name))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	cert := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), NotBefore: now, NotAfter: now.Add(svidLifetime),
		URIs: []*url.URL{id.URL()}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &key.PublicKey, a.key)
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}
}

// identity is who a part is. It implements x509svid.Source.
type identity struct {
	mu   sync.Mutex
	svid *x509svid.SVID
}

func (i *identity) GetX509SVID() (*x509svid.SVID, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.svid, nil
}

func (i *identity) set(svid *x509svid.SVID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.svid = svid
}

// local is what in-process peers see of the part.
func (i *identity) local() rpc.Identity {
	svid, _ := i.GetX509SVID()
	return rpc.Identity{ID: svid.ID.String(), Cert: svid.Certificates[0]}
}

// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/nserr"
)

func request(t testing.TB) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := identity.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

// certificate returns a self-signed certificate with one URI.
func certificate(t testing.TB, key *ecdsa.PrivateKey, uri string) []byte {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), URIs: []*url.URL{u}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestRequest(t *testing.T) {
	key, der := request(t)
	if got, err := identity.ParseRequest(der); err != nil || !key.PublicKey.Equal(got) {
		t.Fatalf("ParseRequest() = %v, %v", got, err)
	}
	wrongCurve, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p384, _ := identity.NewRequest(wrongCurve)
	_, wrongKind, _ := ed25519.GenerateKey(rand.Reader)
	ed, _ := identity.NewRequest(wrongKind)
	forged := slices.Clone(der)
	forged[len(forged)-1] ^= 1
	for name, der := range map[string][]byte{"empty": nil, "P-384": p384, "Ed25519": ed, "forged": forged, "cut": der[:20]} {
		if _, err := identity.ParseRequest(der); !errors.Is(err, nserr.BadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewSVID(t *testing.T) {
	key, _ := request(t)
	other, _ := request(t)
	good := certificate(t, key, "spiffe://nsm.local/a")
	if svid, err := identity.NewSVID(key, [][]byte{good}); err != nil || svid.ID.String() != "spiffe://nsm.local/a" {
		t.Errorf("NewSVID() = %v, %v", svid, err)
	}
	for name, chain := range map[string][][]byte{
		"none":          nil,
		"garbage":       {[]byte("x")},
		"garbage chain": {good, []byte("x")},
		"other key":     {certificate(t, other, "spiffe://nsm.local/a")},
		"no SPIFFE ID":  {certificate(t, key, "https://nsm.local/a")},
	} {
		if _, err := identity.NewSVID(key, chain); !errors.Is(err, nserr.BadAnswer) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBundles(t *testing.T) {
	key, _ := request(t)
	cert, _ := x509.ParseCertificate(certificate(t, key, "spiffe://nsm.local"))
	set := x509bundle.NewSet(x509bundle.FromX509Authorities(td, []*x509.Certificate{cert}))
	parsed, err := identity.ParseBundles(identity.MarshalBundles(set))
	if err != nil {
		t.Fatal(err)
	}
	bundles := identity.NewBundles(set.Bundles()...)
	_, changed := bundles.Current()
	if bundles.Replace(parsed) {
		t.Error("what was encoded and decoded differs")
	}
	if !bundles.Replace(x509bundle.NewSet()) {
		t.Error("the empty set does not differ")
	}
	<-changed
	if _, err := bundles.GetX509BundleForTrustDomain(td); err == nil {
		t.Error("the bundle is still there")
	}
	for name, in := range map[string]map[string][]byte{
		"no domain": {"": nil}, "bad domain": {"a b": nil}, "garbage": {"spiffe://nsm.local": []byte("x")},
	} {
		if _, err := identity.ParseBundles(in); !errors.Is(err, nserr.BadAnswer) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What comes from a peer: requests from nodes, answers from the authority.
func FuzzPeer(f *testing.F) {
	key, csr := request(f)
	cert := certificate(f, key, "spiffe://nsm.local/a")
	f.Add("nsm.local", csr)
	f.Add("spiffe://nsm.local", cert)
	f.Add("", []byte{})
	f.Fuzz(func(t *testing.T, domain string, data []byte) {
		if key, err := identity.ParseRequest(data); err == nil && key.Curve != elliptic.P256() {
			t.Error("a key that is not P-256")
		}
		if svid, err := identity.NewSVID(key, [][]byte{data}); err == nil && svid.ID.IsZero() {
			t.Error("an SVID without an ID")
		}
		if set, err := identity.ParseBundles(map[string][]byte{domain: data}); err == nil {
			again, err := identity.ParseBundles(identity.MarshalBundles(set))
			if err != nil || identity.NewBundles(set.Bundles()...).Replace(again) {
				t.Errorf("bundles change when encoded again: %v", err)
			}
		}
	})
}

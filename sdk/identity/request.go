// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/openvwire/nsm/sdk/nserr"
)

// NewKey returns a P-256 key, the only kind that is used: segment tokens are
// ES256 (protocol.md §2.5).
func NewKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// NewRequest returns a PKCS #10 request, in DER, that proves possession of key
// and says nothing else: the authority decides on the name.
func NewRequest(key crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// ParseRequest returns the key of a request whose sender has its private half.
func ParseRequest(der []byte) (*ecdsa.PublicKey, error) {
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, nserr.BadRequest.Errorf("certificate request: %w", err)
	}
	key, ok := request.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, nserr.BadRequest.Errorf("certificate request: the key is not P-256")
	}
	if err := request.CheckSignature(); err != nil {
		return nil, nserr.BadRequest.Errorf("certificate request: %w", err)
	}
	return key, nil
}

// NewSVID puts together the key of a request and the answer to it, checking
// that they belong together. The chain is DER, leaf first.
func NewSVID(key crypto.Signer, chain [][]byte) (*x509svid.SVID, error) {
	svid := &x509svid.SVID{PrivateKey: key}
	for _, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nserr.BadAnswer.Errorf("SVID: %w", err)
		}
		svid.Certificates = append(svid.Certificates, cert)
	}
	id, err := leafID(svid.Certificates, key)
	if err != nil {
		return nil, nserr.BadAnswer.Errorf("SVID: %w", err)
	}
	svid.ID = id
	return svid, nil
}

func leafID(chain []*x509.Certificate, key crypto.Signer) (spiffeid.ID, error) {
	if len(chain) == 0 {
		return spiffeid.ID{}, errors.New("no certificate")
	}
	public, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || !public.Equal(chain[0].PublicKey) {
		return spiffeid.ID{}, errors.New("certificate for another key")
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("certificate: %w", err)
	}
	return id, nil
}

// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/openvwire/nsm/sdk/identity"
)

// The life of a CA certificate:
//
//	0 ──────── ½ ──────── ⅔ ─────────── 1
//	│ signs    │ the next │ the next    │ leaves the bundle
//	│          │ is made, │ one signs   │
//	│          │ trusted  │             │
//
// So every node has had two months to learn of a CA before it signs anything,
// and what the old one signed stays valid for as long as it may live. When
// somebody replaces a CA before its time the steps are the same, only sooner.
const (
	caLife     = 365 * 24 * time.Hour
	caRenew    = caLife / 2 // age of the newest CA at which another is made
	caAnnounce = caLife / 6 // how long a CA is trusted before it signs

	// backdate is how much earlier than now a certificate becomes valid, for
	// peers whose clock is behind.
	backdate = time.Minute

	// maxCAs bounds how many CAs may be trusted at a time.
	maxCAs = 8
)

// ca is a certificate of the authority and its key. Values, never modified.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	signs  time.Time         // from then on; zero = when its age says so
	leaves time.Time         // from then on it is not trusted; zero = at its end
	rest   map[string]string // what a later version says of it
}

// hash is how join tokens name the CA.
func (c ca) hash() [sha256.Size]byte { return sha256.Sum256(c.cert.Raw) }

// newCA makes a self-signed CA for a trust domain.
func newCA(td spiffeid.TrustDomain, now time.Time) (ca, error) {
	key, err := identity.NewKey()
	if err != nil {
		return ca{}, err
	}
	serial := newSerial()
	template := &x509.Certificate{
		SerialNumber: serial,
		// A name of its own, so that verifiers never confuse two CAs of a domain.
		Subject:               pkix.Name{CommonName: "nsm authority of " + td.Name(), SerialNumber: serial.Text(16)},
		URIs:                  []*url.URL{td.ID().URL()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return ca{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return ca{cert: cert, key: key}, err
}

// sign makes the X.509-SVID of id for a key, valid for ttl from now but not
// longer than the CA is trusted. The profile is that of the SPIFFE X.509-SVID standard.
func (c ca) sign(id spiffeid.ID, key *ecdsa.PublicKey, ttl time.Duration, now time.Time) ([]byte, error) {
	notAfter := now.Add(ttl)
	if until := c.leavesAt(); notAfter.After(until) {
		notAfter = until
	}
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{Organization: []string{id.TrustDomain().Name()}},
		URIs:                  []*url.URL{id.URL()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, c.cert, key, c.key)
}

func newSerial() *big.Int {
	serial := make([]byte, 16)
	rand.Read(serial)
	serial[0] = serial[0]&0x7f | 0x40 // positive, of full length (RFC 5280, 4.1.2.2)
	return new(big.Int).SetBytes(serial)
}

// age is how long ago a CA was made.
func (c ca) age(now time.Time) time.Duration { return now.Sub(c.cert.NotBefore) - backdate }

func (c ca) signsAt() time.Time {
	if !c.signs.IsZero() {
		return c.signs
	}
	return c.cert.NotBefore.Add(backdate + caAnnounce)
}

func (c ca) leavesAt() time.Time {
	if !c.leaves.IsZero() && c.leaves.Before(c.cert.NotAfter) {
		return c.leaves
	}
	return c.cert.NotAfter
}

// rotate returns the CAs to have at a time, oldest first: without those that are
// not trusted any more, and with a new one if it is due. changed says whether
// that differs from cas.
func rotate(cas []ca, td spiffeid.TrustDomain, now time.Time) (next []ca, changed bool, err error) {
	for _, c := range cas {
		if now.Before(c.leavesAt()) {
			next = append(next, c)
		}
	}
	changed = len(next) != len(cas)
	if len(next) == 0 || next[len(next)-1].age(now) >= caRenew {
		c, err := newCA(td, now)
		if err != nil {
			return nil, false, err
		}
		next, changed = append(next, c), true
	}
	return next, changed, nil
}

// replace returns the CAs with a new one, which signs from a time on. The others
// are trusted for as long after that as the longest of what they sign may live.
func replace(cas []ca, td spiffeid.TrustDomain, now, signs time.Time, longest time.Duration) ([]ca, error) {
	c, err := newCA(td, now)
	if err != nil {
		return nil, err
	}
	c.signs = signs
	next := slices.Clone(cas)
	for i := range next {
		if end := signs.Add(longest); end.Before(next[i].leavesAt()) {
			next[i].leaves = end
		}
	}
	return append(next, c), nil
}

// signer returns the CA that signs at a time: the newest that has been known
// for long enough, else the oldest.
func signer(cas []ca, now time.Time) ca {
	for i := len(cas) - 1; i > 0; i-- {
		if !now.Before(cas[i].signsAt()) {
			return cas[i]
		}
	}
	return cas[0]
}

// nextChange returns when rotate has something to do at the latest.
func nextChange(cas []ca) time.Time {
	next := cas[len(cas)-1].cert.NotBefore.Add(backdate + caRenew)
	for _, c := range cas {
		if at := c.leavesAt(); at.Before(next) {
			next = at
		}
	}
	return next
}

// bundleOf returns what to trust while these are the CAs.
func bundleOf(cas []ca, td spiffeid.TrustDomain) *x509bundle.Bundle {
	bundle := x509bundle.New(td)
	for _, c := range cas {
		bundle.AddX509Authority(c.cert)
	}
	return bundle
}

// The CAs are kept as PEM: certificate, key, certificate, key, …, oldest first.
// Headers of a certificate say what its dates do not.
const (
	pemCert   = "CERTIFICATE"
	pemKey    = "PRIVATE KEY"
	pemSigns  = "Signs-From"
	pemLeaves = "Trusted-Until"
)

// errLater is what a later version of this program may have written.
var errLater = errors.New("it was written by a later version of nsm, in a way that this one does not understand")

func encodeCAs(cas []ca) ([]byte, error) {
	var out bytes.Buffer
	for _, c := range cas {
		key, err := x509.MarshalPKCS8PrivateKey(c.key)
		if err != nil {
			return nil, err
		}
		headers := maps.Clone(c.rest)
		for name, at := range map[string]time.Time{pemSigns: c.signs, pemLeaves: c.leaves} {
			if !at.IsZero() {
				if headers == nil {
					headers = make(map[string]string)
				}
				headers[name] = at.UTC().Format(time.RFC3339Nano)
			}
		}
		if err := pem.Encode(&out, &pem.Block{Type: pemCert, Headers: headers, Bytes: c.cert.Raw}); err != nil {
			return nil, err
		}
		pem.Encode(&out, &pem.Block{Type: pemKey, Bytes: key}) // a Buffer never fails
	}
	return out.Bytes(), nil
}

// decodeCAs is the inverse of encodeCAs. It accepts nothing that is damaged or
// belongs to another trust domain.
func decodeCAs(data []byte, td spiffeid.TrustDomain) ([]ca, error) {
	var cas []ca
	for len(bytes.TrimSpace(data)) > 0 {
		var cert, key *pem.Block
		var err error
		if cert, data, err = nextBlock(data, pemCert); err != nil {
			return nil, err
		}
		if key, data, err = nextBlock(data, pemKey); err != nil {
			return nil, err
		}
		c, err := parseCA(cert.Bytes, key.Bytes, td)
		if err == nil {
			err = c.setHeaders(cert.Headers)
		}
		if err != nil {
			return nil, err
		}
		cas = append(cas, c)
	}
	if len(cas) == 0 {
		return nil, errors.New("it is empty")
	}
	return cas, nil
}

func nextBlock(data []byte, kind string) (block *pem.Block, rest []byte, err error) {
	data = bytes.TrimLeft(data, " \t\r\n")
	block, rest = pem.Decode(data)
	switch {
	case !bytes.HasPrefix(data, []byte("-----BEGIN ")):
		return nil, nil, fmt.Errorf("no %s where one must be", kind)
	case block == nil:
		return nil, nil, fmt.Errorf("broken %s", kind)
	case !bytes.HasPrefix(data, []byte("-----BEGIN "+block.Type+"-----")): // Decode skips what it cannot read
		return nil, nil, fmt.Errorf("broken block before a %s", block.Type)
	case block.Type != pemCert && block.Type != pemKey:
		return nil, nil, fmt.Errorf("%w: it holds a %s", errLater, block.Type)
	case block.Type != kind:
		return nil, nil, fmt.Errorf("no %s where one must be", kind)
	}
	return block, rest, nil
}

func parseCA(certDER, keyDER []byte, td spiffeid.TrustDomain) (ca, error) {
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return ca{}, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return ca{}, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return ca{}, errors.New("a key does not belong to its certificate")
	}
	id, err := x509svid.IDFromCert(cert)
	if err != nil || !cert.IsCA {
		return ca{}, errors.New("a certificate is not that of a SPIFFE CA")
	}
	if id != td.ID() {
		return ca{}, fmt.Errorf("it holds the CA of %s, not of %s", id, td.IDString())
	}
	return ca{cert: cert, key: key}, nil
}

// setHeaders reads what a certificate's dates do not say.
func (c *ca) setHeaders(headers map[string]string) (err error) {
	for name, value := range headers {
		switch name {
		case pemSigns:
			c.signs, err = time.Parse(time.RFC3339Nano, value)
		case pemLeaves:
			c.leaves, err = time.Parse(time.RFC3339Nano, value)
		default:
			if c.rest == nil {
				c.rest = make(map[string]string)
			}
			c.rest[name] = value
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Bundles is the set of bundles that a process trusts, one per trust domain:
// its own, and later those it is federated with. It is a snapshot that is
// replaced as a whole and a channel that tells when. It is an x509bundle.Source.
type Bundles struct {
	mu      sync.RWMutex
	set     *x509bundle.Set // never modified once it is here
	changed chan struct{}   // closed when set is replaced
}

// NewBundles returns a set of the given bundles.
func NewBundles(bundles ...*x509bundle.Bundle) *Bundles {
	return &Bundles{set: x509bundle.NewSet(bundles...), changed: make(chan struct{})}
}

// Current returns the set, which the caller must not modify, and a channel that
// is closed when there is another.
func (b *Bundles) Current() (*x509bundle.Set, <-chan struct{}) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.set, b.changed
}

// Replace makes set the current one; the caller gives it away. It reports
// whether that made a difference.
func (b *Bundles) Replace(set *x509bundle.Set) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if equal(b.set, set) {
		return false
	}
	b.set = set
	close(b.changed)
	b.changed = make(chan struct{})
	return true
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (b *Bundles) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	set, _ := b.Current()
	return set.GetX509BundleForTrustDomain(td)
}

func equal(a, b *x509bundle.Set) bool {
	return slices.EqualFunc(a.Bundles(), b.Bundles(), func(a, b *x509bundle.Bundle) bool {
		return a.TrustDomain() == b.TrustDomain() && a.Equal(b) // both are sorted by domain
	})
}

// MarshalBundles returns each bundle of a set as concatenated DER certificates,
// by the SPIFFE ID of its trust domain, as the Workload API has them.
func MarshalBundles(set *x509bundle.Set) map[string][]byte {
	out := make(map[string][]byte, set.Len())
	for _, bundle := range set.Bundles() {
		var der []byte
		for _, cert := range bundle.X509Authorities() {
			der = append(der, cert.Raw...)
		}
		out[bundle.TrustDomain().IDString()] = der
	}
	return out
}

// ParseBundles is the inverse of MarshalBundles.
func ParseBundles(in map[string][]byte) (*x509bundle.Set, error) {
	set := x509bundle.NewSet()
	for name, der := range in {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, nserr.BadAnswer.Errorf("bundle of %q: %w", name, err)
		}
		bundle, err := x509bundle.ParseRaw(td, der)
		if err != nil {
			return nil, nserr.BadAnswer.Errorf("bundle of %q: %w", name, err)
		}
		set.Add(bundle)
	}
	return set, nil
}

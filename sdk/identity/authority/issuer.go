// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/openvwire/nsm/internal/backoff"
	"github.com/openvwire/nsm/internal/statedir"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/nserr"
)

// CAFile is where the authority keeps its keys in its state directory. A node that
// has it is the authority of a domain.
const CAFile = "ca.pem"

// rotateEvery spaces the looks at the age of the CAs, which live for months.
// After a failure to store a new one they come no sooner.
var rotateEvery = backoff.Policy{Min: time.Hour, Max: time.Hour}

// issuer signs SVIDs and looks after the CAs that it does that with.
type issuer struct {
	td      spiffeid.TrustDomain
	dir     *statedir.Dir
	bundles *identity.Bundles
	log     *slog.Logger

	mu  sync.RWMutex
	cas []ca // oldest first, never empty; replaced as a whole, once it is on disk
}

func openIssuer(dir *statedir.Dir, td spiffeid.TrustDomain, log *slog.Logger, now time.Time) (*issuer, error) {
	i := &issuer{td: td, dir: dir, bundles: identity.NewBundles(), log: log}
	data, err := dir.Read(CAFile)
	switch {
	case errors.Is(err, fs.ErrNotExist): // the first start
	case err != nil:
		return nil, err
	default:
		if i.cas, err = decodeCAs(data, td); errors.Is(err, errLater) {
			return nil, nserr.StateDir.Errorf("%s cannot be used: %w", dir.Path(CAFile), err).
				WithFix("run that version again; the file is as it was")
		} else if err != nil {
			return nil, nserr.StateDir.Errorf("%s cannot be used: %w", dir.Path(CAFile), err).
				WithFix("restore it or name the right trust domain; without it, delete it and have every node join again")
		}
	}
	if err := i.rotate(now); err != nil {
		return nil, err
	}
	i.publish()
	return i, nil
}

// rotate replaces the CAs by those to have now. They are on disk first.
func (i *issuer) rotate(now time.Time) error {
	i.mu.RLock()
	cas := i.cas
	i.mu.RUnlock()
	next, changed, err := rotate(cas, i.td, now)
	if err != nil {
		return nserr.Internal.Errorf("make a CA: %w", err)
	}
	if !changed {
		return nil
	}
	data, err := encodeCAs(next)
	if err != nil {
		return nserr.Internal.Errorf("encode CAs: %w", err)
	}
	if err := i.dir.Write(CAFile, data); err != nil {
		return err
	}
	i.mu.Lock()
	i.cas = next
	i.mu.Unlock()
	newest := next[len(next)-1].cert
	i.log.Info("certificates of the authority have changed", "trust_domain", i.td.Name(),
		"count", len(next), "expires", newest.NotAfter)
	i.publish()
	return nil
}

// publish makes the CAs what is trusted for this domain, and leaves what is
// trusted for others.
func (i *issuer) publish() {
	i.mu.RLock()
	own := bundleOf(i.cas, i.td)
	i.mu.RUnlock()
	current, _ := i.bundles.Current()
	set := x509bundle.NewSet(current.Bundles()...)
	set.Add(own)
	i.bundles.Replace(set)
}

// keepRotating runs until ctx ends.
func (i *issuer) keepRotating(ctx context.Context) {
	for rotateEvery.Wait(ctx, 0) == nil {
		if err := i.rotate(time.Now()); err != nil {
			i.log.Error("cannot renew the certificate of the authority", "error", err)
		}
	}
}

// signer returns the CA that signs now.
func (i *issuer) signer(now time.Time) ca {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return signer(i.cas, now)
}

// sign returns the chain, DER, of a new SVID.
func (i *issuer) sign(id spiffeid.ID, key *ecdsa.PublicKey, ttl time.Duration) ([][]byte, error) {
	now := time.Now()
	der, err := i.signer(now).sign(id, key, ttl, now)
	if err != nil {
		return nil, nserr.Internal.Errorf("sign the SVID of %s: %w", id, err)
	}
	return [][]byte{der}, nil
}

// mint makes a key and its SVID.
func (i *issuer) mint(id spiffeid.ID, ttl time.Duration) (*x509svid.SVID, error) {
	key, err := identity.NewKey()
	if err != nil {
		return nil, nserr.Internal.Errorf("make a key: %w", err)
	}
	chain, err := i.sign(id, &key.PublicKey, ttl)
	if err != nil {
		return nil, err
	}
	return identity.NewSVID(key, chain)
}

// mintWithRoot is mint for the server that nodes join at: they know nothing but
// the hash of the CA, so it has to show the CA as well.
func (i *issuer) mintWithRoot(id spiffeid.ID, ttl time.Duration) (*x509svid.SVID, error) {
	svid, err := i.mint(id, ttl)
	if err != nil {
		return nil, err
	}
	bundle, err := i.bundles.GetX509BundleForTrustDomain(i.td)
	if err != nil {
		return nil, nserr.Internal.Errorf("%w", err)
	}
	for _, root := range bundle.X509Authorities() {
		if svid.Certificates[0].CheckSignatureFrom(root) == nil {
			svid.Certificates = append(svid.Certificates, root)
		}
	}
	return svid, nil
}

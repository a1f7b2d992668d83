// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/openvwire/nsm/internal/statedir"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/nserr"
)

// CAFile is where the authority keeps its keys in its state directory. A node that
// has it is the authority of a domain.
const CAFile = "ca.pem"

// rotateEvery bounds the time between looks at the CAs, which live for months: a
// timer stands still while a machine sleeps. After a failure to store a new one
// they come no sooner.
const rotateEvery = time.Hour

// clockSkew is how much the clocks of nodes may differ without anybody missing
// what was signed by a CA that leaves.
const clockSkew = 5 * time.Minute

// issuer signs SVIDs and looks after the CAs that it does that with.
type issuer struct {
	td      spiffeid.TrustDomain
	dir     *statedir.Dir
	bundles *identity.Bundles
	log     *slog.Logger

	writing  sync.Mutex    // held while the CAs are replaced
	replaced chan struct{} // capacity 1; for keepRotating

	mu  sync.RWMutex
	cas []ca // oldest first, never empty; replaced as a whole, once it is on disk

	servers servers
}

func openIssuer(dir *statedir.Dir, td spiffeid.TrustDomain, log *slog.Logger, now time.Time) (*issuer, error) {
	i := &issuer{td: td, dir: dir, bundles: identity.NewBundles(), log: log, replaced: make(chan struct{}, 1)}
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

// rotate replaces the CAs by those to have now.
func (i *issuer) rotate(now time.Time) error {
	i.writing.Lock()
	defer i.writing.Unlock()
	next, changed, err := rotate(i.current(), i.td, now)
	if err != nil {
		return nserr.Internal.Errorf("make a CA: %w", err)
	}
	if !changed {
		return nil
	}
	return i.storeLocked(next)
}

// replace makes a new CA that signs from a time on, and returns all.
func (i *issuer) replace(now, signs time.Time, longest time.Duration) ([]ca, error) {
	i.writing.Lock()
	defer i.writing.Unlock()
	cas, _, err := rotate(i.current(), i.td, now)
	if err != nil {
		return nil, nserr.Internal.Errorf("make a CA: %w", err)
	}
	if len(cas) >= maxCAs {
		return nil, nserr.Busy.Errorf("%d certificates of the authority are trusted already", len(cas)).
			WithFix("wait until %s, when the first of them leaves", nextChange(cas).UTC().Format(time.RFC3339))
	}
	if cas, err = replace(cas, i.td, now, signs, longest+clockSkew); err != nil {
		return nil, nserr.Internal.Errorf("make a CA: %w", err)
	}
	if err := i.storeLocked(cas); err != nil {
		return nil, err
	}
	select {
	case i.replaced <- struct{}{}:
	default:
	}
	return cas, nil
}

func (i *issuer) current() []ca {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.cas
}

// storeLocked makes other CAs the current ones, once they are on disk; writing
// is held.
func (i *issuer) storeLocked(next []ca) error {
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
	own := bundleOf(i.current(), i.td)
	current, _ := i.bundles.Current()
	set := x509bundle.NewSet(current.Bundles()...)
	set.Add(own)
	i.bundles.Replace(set)
}

// keepRotating runs until ctx ends.
func (i *issuer) keepRotating(ctx context.Context) {
	pause := time.Duration(0) // after a failure
	for {
		wait := max(pause, min(time.Until(nextChange(i.current())), rotateEvery))
		select {
		case <-ctx.Done():
			return
		case <-i.replaced:
			continue
		case <-time.After(wait):
		}
		pause = 0
		if err := i.rotate(time.Now()); err != nil {
			i.log.Error("cannot renew the certificate of the authority", "error", err)
			pause = rotateEvery
		}
	}
}

// signer returns the CA that signs now.
func (i *issuer) signer(now time.Time) ca { return signer(i.current(), now) }

// signerFor returns the CA that somebody asks for by the name of the server, else
// the one that signs now.
func (i *issuer) signerFor(serverName string, now time.Time) ca {
	cas := i.current()
	for _, c := range cas {
		if now.Before(c.leavesAt()) && identity.CAServerName(c.hash()) == serverName {
			return c
		}
	}
	return signer(cas, now)
}

// sign returns the chain, DER, of a new SVID.
func (i *issuer) sign(id spiffeid.ID, key *ecdsa.PublicKey, ttl time.Duration) ([][]byte, error) {
	now := time.Now()
	return signBy(i.signer(now), id, key, ttl, now)
}

func signBy(by ca, id spiffeid.ID, key *ecdsa.PublicKey, ttl time.Duration, now time.Time) ([][]byte, error) {
	der, err := by.sign(id, key, ttl, now)
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

// servers is what the authority shows to nodes: an SVID of its own from each CA,
// made when somebody asks for it. The zero value is ready.
type servers struct {
	mu    sync.Mutex
	svids map[[sha256.Size]byte]server // by the CA's hash
}

type server struct {
	certificate *tls.Certificate
	renew       time.Time
}

// server returns the certificate of an ID for a node that asks for it by the name of
// a server. The CA comes with it: a node that joins knows nothing but its hash.
func (i *issuer) server(id spiffeid.ID, serverName string, ttl time.Duration, now time.Time) (*tls.Certificate, error) {
	by := i.signerFor(serverName, now)
	i.servers.mu.Lock()
	defer i.servers.mu.Unlock()
	if s, ok := i.servers.svids[by.hash()]; ok && now.Before(s.renew) {
		return s.certificate, nil
	}
	key, err := identity.NewKey()
	if err != nil {
		return nil, nserr.Internal.Errorf("make a key: %w", err)
	}
	chain, err := signBy(by, id, &key.PublicKey, ttl, now)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, nserr.Internal.Errorf("%w", err)
	}
	certificate := &tls.Certificate{Certificate: append(chain, by.cert.Raw), PrivateKey: key, Leaf: leaf}
	trusted := make(map[[sha256.Size]byte]server)
	for _, c := range i.current() {
		if s, ok := i.servers.svids[c.hash()]; ok {
			trusted[c.hash()] = s
		}
	}
	trusted[by.hash()] = server{certificate, now.Add(leaf.NotAfter.Sub(now) / 2)}
	i.servers.svids = trusted
	return certificate, nil
}

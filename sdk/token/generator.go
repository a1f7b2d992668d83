// SPDX-License-Identifier: Apache-2.0

package token

import (
	"crypto/x509"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Generator makes the caller's token for the peer with the given certificate,
// nil when the peer is unknown. It returns the token and the time until which
// the path segment that carries it is good.
type Generator func(peer *x509.Certificate) (raw string, expires time.Time, err error)

// DefaultLifetime is the reference's NSM_MAX_TOKEN_LIFETIME (§8).
const DefaultLifetime = 10 * time.Minute

// A token is handed out again for the first tenth of its life: signing is the
// dearest step of a refresh, and a refresh that uses a token one tenth older
// comes one tenth earlier. Peers are few; the bound only guards against abuse.
const (
	reuseFraction = 10
	maxCached     = 1024
)

// NewGenerator returns a Generator that signs with the current SVID of source.
// Tokens live for at most lifetime and never longer than the SVID; the segment
// expiry is further limited by the peer's certificate (§2.5).
func NewGenerator(source x509svid.Source, lifetime time.Duration) Generator {
	g := &generator{source: source, lifetime: lifetime, cached: make(map[string]cachedToken)}
	return g.make
}

type generator struct {
	source   x509svid.Source
	lifetime time.Duration

	mu     sync.Mutex
	cached map[string]cachedToken // guarded by mu; by audience
}

type cachedToken struct {
	raw     string
	expires time.Time
	reuse   time.Time         // hand out until then
	signer  *x509.Certificate // by pointer: another SVID, another token
}

func (g *generator) make(peer *x509.Certificate) (string, time.Time, error) {
	svid, err := g.source.GetX509SVID()
	if err != nil {
		return "", time.Time{}, nserr.NoIdentity.Errorf("no SVID to sign a token with: %w", err)
	}
	now := time.Now()
	audience := ""
	if peer != nil && len(peer.URIs) > 0 {
		audience = peer.URIs[0].String()
	}
	t := g.lookup(audience, svid.Certificates[0], now)
	if t.raw == "" {
		if t, err = sign(svid, audience, now, g.lifetime); err != nil {
			return "", time.Time{}, err
		}
		g.store(audience, t)
	}
	if peer != nil && peer.NotAfter.Before(t.expires) {
		return t.raw, peer.NotAfter, nil
	}
	return t.raw, t.expires, nil
}

func (g *generator) lookup(audience string, signer *x509.Certificate, now time.Time) cachedToken {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t := g.cached[audience]; t.signer == signer && now.Before(t.reuse) {
		return t
	}
	return cachedToken{}
}

func (g *generator) store(audience string, t cachedToken) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.cached) >= maxCached {
		clear(g.cached)
	}
	g.cached[audience] = t
}

func sign(svid *x509svid.SVID, audience string, now time.Time, lifetime time.Duration) (cachedToken, error) {
	expires := now.Add(lifetime)
	if end := svid.Certificates[0].NotAfter; end.Before(expires) {
		expires = end
	}
	claims := jwt.RegisteredClaims{Subject: svid.ID.String(), ExpiresAt: jwt.NewNumericDate(expires)}
	if audience != "" {
		claims.Audience = jwt.ClaimStrings{audience}
	}
	raw, err := jwt.NewWithClaims(jwt.SigningMethodES256, claims).SignedString(svid.PrivateKey)
	if err != nil {
		return cachedToken{}, nserr.BadToken.Errorf("cannot sign with the key of %s: %w", svid.ID, err)
	}
	return cachedToken{
		raw:     raw,
		expires: claims.ExpiresAt.Time, // whole seconds, as the claim says
		reuse:   now.Add(expires.Sub(now) / reuseFraction),
		signer:  svid.Certificates[0],
	}, nil
}

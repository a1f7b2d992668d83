// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	"github.com/openvwire/nsm/internal/statedir"
	identityv1 "github.com/openvwire/nsm/proto/nsm/identity/v1"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/jointoken"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// membership is what makes this machine a node of a domain.
type membership struct {
	addresses []string       // of the authority, host:port, best first
	svid      *x509svid.SVID // of /node/<node>/agent
	bundles   *x509bundle.Set
	known     [][sha256.Size]byte // CAs that the domain has and had, oldest first
	rest      statedir.Rest       // of the file, of a later version
}

const (
	maxAddresses = 16
	maxKnown     = 64
)

// isOf reports whether a token is of the authority that this is a membership
// of. Names say nothing about that: most domains are called the same.
func (m membership) isOf(token jointoken.Token) bool {
	return token.TrustDomain == m.svid.ID.TrustDomain() && slices.Contains(m.known, token.CA)
}

// at adds addresses, which are better than those that were there.
func (m membership) at(addresses []string) membership {
	for _, old := range m.addresses {
		if !slices.Contains(addresses, old) {
			addresses = append(slices.Clip(addresses), old)
		}
	}
	m.addresses = addresses[:min(len(addresses), maxAddresses)]
	return m
}

// with replaces what the authority renews.
func (m membership) with(svid *x509svid.SVID, bundles *x509bundle.Set) membership {
	m.svid, m.bundles = svid, bundles
	own, ok := bundles.Get(svid.ID.TrustDomain())
	if !ok {
		return m
	}
	for _, ca := range own.X509Authorities() {
		if hash := sha256.Sum256(ca.Raw); !slices.Contains(m.known, hash) {
			m.known = append(slices.Clip(m.known), hash)
		}
	}
	m.known = m.known[max(0, len(m.known)-maxKnown):]
	return m
}

// membership returns the stored membership if that is still good and of the
// authority that the token is of, and joins with the token otherwise.
func (a *Agent) membership(ctx context.Context, dir *statedir.Dir, text string) (membership, error) {
	stored, err := load(dir)
	if err != nil {
		return membership{}, err
	}
	var token jointoken.Token
	if text != "" {
		if token, err = jointoken.Parse(text); err != nil {
			return membership{}, err
		}
	}
	m, why := stored.membership(a.node, time.Now())
	switch {
	case why == nil && text == "":
		return m, nil
	case why == nil && m.isOf(token):
		return m.at(token.Addresses), nil // stored when the agent starts
	case text == "":
		return membership{}, nserr.NoIdentity.Errorf("this node has to join: %w", why).
			WithFix("make a token with 'nsm token create' on the node of the authority and start this one with --join; if it shall be in no domain of others, move %s away", dir.Path(StateFile))
	}
	key, err := stored.key(dir, a.node, token)
	if err != nil {
		return membership{}, err
	}
	m, err = a.join(ctx, token, key)
	if err != nil {
		return membership{}, err
	}
	m.rest = stored.rest
	a.log.Info("this node has joined", "spiffe_id", m.svid.ID, "expires", m.svid.Certificates[0].NotAfter)
	return m, save(dir, m)
}

// join redeems a token, waiting for the authority as long as ctx allows.
func (a *Agent) join(ctx context.Context, token jointoken.Token, key *ecdsa.PrivateKey) (membership, error) {
	csr, err := identity.NewRequest(key)
	if err != nil {
		return membership{}, nserr.Internal.Errorf("request: %w", err)
	}
	p := &pin{token: token}
	conn, err := dial(token.Addresses, credentials.NewTLS(p.config()))
	if err != nil {
		return membership{}, err
	}
	defer conn.Close()
	client := identityv1.NewAuthorityClient(conn)
	for attempt := 0; ; attempt++ {
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		answer, err := client.Join(callCtx, &identityv1.JoinRequest{Secret: token.Secret[:], Node: a.node, Csr: csr})
		cancel()
		if err == nil {
			return a.accept(token, key, p, answer)
		}
		if stranger := p.stranger.Load(); stranger != nil {
			return membership{}, blameClocks(nserr.BadJoinToken.Errorf("join %s: %w", token.TrustDomain.Name(), *stranger), time.Now())
		}
		err = rpc.DecodeError(err)
		if code := nserr.From(err).Reason.GRPC; code != codes.Unavailable && code != codes.DeadlineExceeded {
			return membership{}, err
		}
		if attempt == 0 {
			a.log.Info("waiting for the authority", "address", token.Addresses, "error", err)
		}
		if retry.Wait(ctx, attempt) != nil {
			return membership{}, err
		}
	}
}

// accept checks the answer to a join against what the token promised.
func (a *Agent) accept(token jointoken.Token, key *ecdsa.PrivateKey, p *pin, answer *identityv1.JoinResponse) (membership, error) {
	svid, err := identity.NewSVID(key, answer.GetChain())
	if err != nil {
		return membership{}, err
	}
	bundles, err := identity.ParseBundles(answer.GetBundles().GetBundles())
	if err != nil {
		return membership{}, err
	}
	bundle, err := bundles.GetX509BundleForTrustDomain(token.TrustDomain)
	if err != nil || !bundle.HasX509Authority(p.root.Load()) {
		return membership{}, nserr.BadAnswer.Errorf("the authority does not trust itself")
	}
	want, err := identity.NodeID(token.TrustDomain, a.node, "agent")
	if err != nil || svid.ID != want {
		return membership{}, nserr.BadAnswer.Errorf("the authority calls this node %s instead of %s", svid.ID, want)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, bundles); err != nil {
		return membership{}, blameClocks(nserr.BadAnswer.Errorf("the authority signed what it does not trust: %w", err), time.Now())
	}
	return membership{addresses: token.Addresses}.with(svid, bundles), nil
}

// blameClocks says so if a certificate that has just been made, or is good for years, is
// not valid now: then it is the time that is wrong.
func blameClocks(e *nserr.Error, now time.Time) *nserr.Error {
	if invalid := (x509.CertificateInvalidError{}); !errors.As(e, &invalid) || invalid.Reason != x509.Expired {
		return e
	}
	return e.WithFix("set the clocks of this machine, where it is %s, and of the authority's, then join again", now.UTC().Format(time.RFC3339))
}

// pin recognises the authority by the hash of its CA, which it shows.
type pin struct {
	token    jointoken.Token
	root     atomic.Pointer[x509.Certificate] // the CA, once it was seen
	stranger atomic.Pointer[error]            // why whoever answered is not the authority
}

func (p *pin) config() *tls.Config {
	return &tls.Config{
		MinVersion:            tls.VersionTLS13,
		ServerName:            identity.CAServerName(p.token.CA),
		InsecureSkipVerify:    true, // verify does it, by the token instead of the system's CAs
		VerifyPeerCertificate: p.verify,
	}
}

func (p *pin) verify(raw [][]byte, chains [][]*x509.Certificate) error {
	err := p.check(raw, chains)
	if err != nil {
		p.stranger.Store(&err)
	}
	return err
}

func (p *pin) check(raw [][]byte, chains [][]*x509.Certificate) error {
	for _, der := range raw {
		if sha256.Sum256(der) != p.token.CA {
			continue
		}
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		trust := x509bundle.FromX509Authorities(p.token.TrustDomain, []*x509.Certificate{root})
		if err := tlsconfig.VerifyPeerCertificate(trust, tlsconfig.AuthorizeID(identity.AuthorityID(p.token.TrustDomain)))(raw, chains); err != nil {
			return err
		}
		p.root.Store(root)
		return nil
	}
	return errors.New("whoever answers is not the authority that made the join token")
}

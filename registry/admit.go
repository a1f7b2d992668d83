// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/query"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// Policy decides whether a caller may change the registry. raws are the tokens
// of the path from the originator to this registry: the last but one is the
// caller's own, from its metadata nsm-client-token, the last one is ours. What
// it refuses it refuses with an error of package nserr.
type Policy interface {
	Check(caller rpc.Caller, raws []string, now time.Time) error
}

// Strict is the policy of the reference (§2.6, common and server), natively:
// every token decodes and has not expired, the audience of each is the subject
// of the next, and the caller's is signed with the key of its certificate.
//
// Nothing of that proves the tokens before the caller's, the owner's among them:
// who may send such a path is trusted to have checked them.
type Strict struct {
	// MaySpeakFor reports whether the caller, a manager say, may send what owner
	// has registered with it. nil means nobody may for anybody else.
	MaySpeakFor func(caller, owner string) bool
}

// Check implements Policy.
func (p Strict) Check(caller rpc.Caller, raws []string, now time.Time) error {
	if len(raws) < 2 || raws[len(raws)-2] == "" {
		return nserr.NoToken.Errorf("caller %q sent no token", caller.ID)
	}
	if err := token.CheckChain(raws, now); err != nil {
		return err
	}
	previous, err := token.Parse(raws[len(raws)-2])
	if err != nil {
		return err
	}
	if err := previous.VerifiedBy(caller.Cert); err != nil {
		return err
	}
	if len(raws) == 2 {
		return nil
	}
	owner, err := token.Parse(raws[0])
	if err != nil {
		return err
	}
	if p.MaySpeakFor == nil || !p.MaySpeakFor(previous.Subject, owner.Subject) {
		return nserr.NotAllowed.Errorf("%s may not register for %s", previous.Subject, owner.Subject).
			WithFix("register without a path, or name the identity with --managers at the registry")
	}
	return nil
}

// admission is what a call brings with it, beside its message.
type admission struct {
	path    regpath.Path // with our place in it, to be answered
	ids     []string     // SPIFFE ID of each hop; the first is the owner
	expires time.Time    // earlier one of the caller's and our own token
}

// admit takes our place in the path of the call and has the policy judge it.
func (s *Server) admit(ctx context.Context, now time.Time) (admission, error) {
	caller := rpc.CallerFrom(ctx)
	path, err := regpath.FromIncoming(ctx)
	if err != nil {
		return admission{}, err
	}
	own, expires, err := s.tokens(caller.Cert)
	if err != nil {
		return admission{}, err
	}
	if err := path.Advance(caller.Token, own); err != nil {
		return admission{}, err
	}
	path.Trim() // the path ends here
	raws := path.Tokens()
	if err := s.policy.Check(caller, raws, now); err != nil {
		return admission{}, err
	}
	a := admission{path: path, ids: make([]string, len(raws)), expires: expires}
	for i, raw := range raws {
		claims := claimsOf(raw)
		a.ids[i] = claims.Subject
		if i == len(raws)-2 && claims.ExpiresAt != nil {
			a.expires = query.Earlier(a.expires, claims.ExpiresAt.Time)
		}
	}
	a.expires = query.Earlier(a.expires, caller.TokenExpires)
	return a, nil
}

var anyMethod = jwt.NewParser()

// claimsOf decodes a token that the policy has accepted, of whatever kind it
// accepts. What is no token has no claims.
func claimsOf(raw string) (claims jwt.RegisteredClaims) {
	if _, _, err := anyMethod.ParseUnverified(raw, &claims); err != nil && claims.Subject == "" {
		return jwt.RegisteredClaims{}
	}
	return claims
}

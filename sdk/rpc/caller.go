// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/openvwire/nsm/sdk/token"
)

// Metadata of every call (§2.2).
const (
	tokenKey        = "nsm-client-token"
	tokenExpiresKey = "nsm-client-token-expires"
)

// Caller is who is at the other end of the call being served.
type Caller struct {
	ID           string            // SPIFFE ID from the certificate; "" on plaintext
	Cert         *x509.Certificate // leaf, nil on plaintext
	Token        string            // "" unless the call carries exactly one token with an expiry
	TokenExpires time.Time         // zero when Token is ""
}

// CallerFrom returns the caller from the context of a handler. The certificate was
// verified; the token was not looked at.
func CallerFrom(ctx context.Context) Caller {
	c := Caller{}
	if p, ok := peer.FromContext(ctx); ok {
		c.Cert = peerCert(p.AuthInfo)
		if l, ok := p.AuthInfo.(localInfo); ok {
			c.ID = l.id
		} else if c.Cert != nil {
			c.ID = idOf(c.Cert)
		}
	}
	c.Token, c.TokenExpires = tokenFrom(ctx)
	return c
}

type deadlineKey struct{}

// CallerDeadline returns until when the caller of the handler waits for an answer; ok is
// false if that is for ever. The handler's own time ends a little before, unless its
// caller is in this process.
func CallerDeadline(ctx context.Context) (deadline time.Time, ok bool) {
	if deadline, ok = ctx.Value(deadlineKey{}).(time.Time); ok {
		return deadline, ok
	}
	return ctx.Deadline()
}

func idOf(cert *x509.Certificate) string {
	id, err := x509svid.IDFromCert(cert)
	if err != nil {
		return ""
	}
	return id.String()
}

// tokenFrom returns the token of the call if there is exactly one, with exactly one expiry.
func tokenFrom(ctx context.Context) (string, time.Time) {
	raw, expires := metadata.ValueFromIncomingContext(ctx, tokenKey), metadata.ValueFromIncomingContext(ctx, tokenExpiresKey)
	if len(raw) != 1 || len(expires) != 1 {
		return "", time.Time{}
	}
	t, ok := parseExpires(expires[0])
	if !ok {
		return "", time.Time{}
	}
	return raw[0], t
}

// parseExpires reads an RFC 3339 time that a protobuf Timestamp can hold.
func parseExpires(s string) (time.Time, bool) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, false
	}
	t = t.UTC()
	return t, t.Year() >= 1 && t.Year() <= 9999
}

// perCall adds the caller's token to every call and sends the files of WithFiles
// over the connection that gRPC has picked for it.
type perCall struct {
	tokens token.Generator // nil: no tokens
	secure bool
}

func (c *perCall) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	info, _ := credentials.RequestInfoFromContext(ctx)
	if err := sendWith(ctx, info.AuthInfo); err != nil {
		return nil, beforeCall(err)
	}
	md, err := tokenMetadata(c.tokens, peerCert(info.AuthInfo))
	if err != nil {
		return nil, beforeCall(err)
	}
	return md, nil
}

func (c *perCall) RequireTransportSecurity() bool { return c.secure }

func tokenMetadata(tokens token.Generator, peer *x509.Certificate) (map[string]string, error) {
	if tokens == nil {
		return nil, nil
	}
	raw, expires, err := tokenFor(tokens, peer)
	if err != nil {
		return nil, err
	}
	return map[string]string{tokenKey: raw, tokenExpiresKey: expires}, nil
}

// tokenFor returns a token for the peer, and when it expires as calls say it.
func tokenFor(tokens token.Generator, peer *x509.Certificate) (raw, expires string, err error) {
	raw, at, err := tokens(peer)
	return raw, at.UTC().Format(time.RFC3339Nano), err
}

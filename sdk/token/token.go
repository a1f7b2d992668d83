// SPDX-License-Identifier: Apache-2.0

// Package token makes and checks the tokens that path segments carry.
//
// A token is a compact JWT signed with ES256 and the key of the sender's
// X.509-SVID. It says who sends (sub), to whom (aud) and until when (exp), and
// nothing else (protocol.md §2.5). Hop i's token names hop i+1 as its audience,
// so the tokens of a path form a chain that each hop verifies as far as it can:
// the signature of its neighbour, and the subjects and audiences of the rest.
package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/openvwire/nsm/sdk/nserr"
)

// MaxLength bounds a token in bytes. A SPIFFE ID may have 2,048 bytes, and a
// token holds two of them in base64.
const MaxLength = 8 << 10

// Token is a decoded token. The signature is not part of what Parse checks.
type Token struct {
	Raw      string
	Subject  string   // SPIFFE ID of the sender
	Audience []string // SPIFFE IDs it is meant for; empty when the peer was unknown
	Expires  time.Time
}

// For reports whether the token was made for id.
func (t Token) For(id string) bool {
	for _, a := range t.Audience {
		if a == id {
			return true
		}
	}
	return false
}

// Parse decodes a token without verifying its signature. It fails with
// nserr.NoToken for "" and nserr.BadToken for what is not a JWT with a subject
// and an expiry. Whoever gets a token must not change its Audience.
func Parse(raw string) (Token, error) {
	if raw == "" {
		return Token{}, nserr.NoToken.Errorf("token is empty")
	}
	if len(raw) > MaxLength {
		return Token{}, nserr.BadToken.Errorf("token has %d bytes, at most %d are allowed", len(raw), MaxLength)
	}
	if k, ok := recent.get(raw); ok {
		return k.Token, nil
	}
	c, err := decode(raw)
	if err != nil {
		return Token{}, nserr.BadToken.Errorf("token cannot be decoded: %w", err)
	}
	if c.Expires == nil {
		return Token{}, nserr.BadToken.Errorf("token of %q has no expiry", c.Subject)
	}
	t := Token{Raw: raw, Subject: c.Subject, Audience: c.Audience, Expires: time.Unix(int64(*c.Expires), 0)}
	recent.put(t)
	return t, nil
}

// VerifiedBy checks the token's signature against the key of cert, as a peer
// presented it in its TLS handshake.
func (t Token) VerifiedBy(cert *x509.Certificate) error {
	if cert == nil {
		return nserr.ForeignToken.Errorf("peer of token %q presented no certificate", t.Subject)
	}
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nserr.BadToken.Errorf("certificate of %q has no P-256 key, which ES256 tokens need", t.Subject)
	}
	if k, _ := recent.get(t.Raw); k.signer == nil || !k.signer.Equal(key) {
		if err := t.verify(key); err != nil {
			return err
		}
		recent.setSigner(t.Raw, key)
	}
	if len(cert.URIs) == 1 && cert.URIs[0].String() != t.Subject {
		return nserr.ForeignToken.Errorf("token says %q, its sender is %q", t.Subject, cert.URIs[0])
	}
	return nil
}

// verify checks the signature.
func (t Token) verify(key *ecdsa.PublicKey) error {
	dot := strings.LastIndexByte(t.Raw, '.')
	if dot < 0 {
		return nserr.BadToken.Errorf("token of %q has no signature", t.Subject)
	}
	sig, err := base64.RawURLEncoding.DecodeString(t.Raw[dot+1:])
	if err != nil {
		return nserr.BadToken.Errorf("signature of %q cannot be decoded: %w", t.Subject, err)
	}
	if err := jwt.SigningMethodES256.Verify(t.Raw[:dot], sig, key); err != nil {
		return nserr.ForeignToken.Errorf("token of %q was not signed by the peer that sent it", t.Subject)
	}
	return nil
}

// CheckChain checks what can be known about the tokens of a path without their
// senders' certificates: each decodes, none has expired, and the audience of
// each is the subject of the next. An empty path is in order (§2.6).
func CheckChain(raws []string, now time.Time) error {
	var prev Token
	for i, raw := range raws {
		t, err := Parse(raw)
		if err != nil {
			return err
		}
		if !t.Expires.After(now) {
			return nserr.TokenExpired.Errorf("token %d of the path, of %q, expired %s ago", i, t.Subject, now.Sub(t.Expires).Round(time.Second))
		}
		if i > 0 && !prev.For(t.Subject) {
			return nserr.BrokenChain.Errorf("token %d was made by %q for %v, but the next hop is %q", i-1, prev.Subject, prev.Audience, t.Subject)
		}
		prev = t
	}
	return nil
}

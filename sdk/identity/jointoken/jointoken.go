// SPDX-License-Identifier: Apache-2.0

// Package jointoken is the text that one carries from the authority of a trust
// domain to a machine that shall join it.
//
// It holds all that the machine must know: where the authority is, how to
// recognise it without having met it (the hash of its CA certificate), and the
// secret that lets one node in, once. Whoever reads the text can use it, so it
// expires soon and prints as a redaction; only [Token.Encode] reveals it.
package jointoken

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"log/slog"
	"net"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/openvwire/nsm/sdk/nserr"
)

// prefix starts every token and says which form follows: the base64url
// (unpadded) of
//
//	secret [16] | CA hash [32] | domain | node | address … | check [4]
//
// where each text is preceded by its length in one byte and check is the start
// of the SHA-256 of all before it, so that a token which was cut short or
// mistyped is told from one that the authority refuses.
const prefix = "nsm1"

const (
	maxAddresses = 16
	checkLen     = 4
)

// Token is what a join token says.
type Token struct {
	Secret      [16]byte             // 128 random bits
	CA          [sha256.Size]byte    // SHA-256 of the DER of the CA certificate the authority uses
	TrustDomain spiffeid.TrustDomain // of the authority
	Node        string               // the only node that may use it, "" if any
	Addresses   []string             // host:port of the authority, 1 to 16, best first
}

// NewSecret returns a new random secret.
func NewSecret() (secret [16]byte) {
	rand.Read(secret[:]) // never fails
	return secret
}

// Encode returns the text of the token. The token must be one that Parse would
// accept.
func (t Token) Encode() string {
	data := append(t.Secret[:], t.CA[:]...)
	for _, s := range append([]string{t.TrustDomain.Name(), t.Node}, t.Addresses...) {
		data = append(append(data, byte(len(s))), s...)
	}
	return prefix + base64.RawURLEncoding.EncodeToString(append(data, check(data)...))
}

// String returns the token without its secret.
func (t Token) String() string {
	return "join token for " + t.TrustDomain.Name() + " at " + strings.Join(t.Addresses, ", ")
}

// LogValue implements slog.LogValuer: a token never gets into a log.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// Parse reads the text of a token, ignoring space around it. It fails with the
// reason nserr.BadJoinToken.
func Parse(text string) (Token, error) {
	encoded, ok := strings.CutPrefix(strings.TrimSpace(text), prefix)
	if !ok {
		return Token{}, nserr.BadJoinToken.Errorf("a join token starts with %q", prefix)
	}
	// The decoder skips line breaks; a token has none.
	data, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || strings.ContainsAny(encoded, "\r\n") || len(data) < checkLen {
		return Token{}, errMistyped()
	}
	data, sum := data[:len(data)-checkLen], data[len(data)-checkLen:]
	if !bytes.Equal(sum, check(data)) {
		return Token{}, errMistyped()
	}
	var t Token
	if len(data) < len(t.Secret)+len(t.CA) {
		return Token{}, errMistyped()
	}
	data = data[copy(t.Secret[:], data):]
	data = data[copy(t.CA[:], data):]
	var texts []string
	for len(data) > 0 {
		n := int(data[0])
		if len(data) < 1+n {
			return Token{}, errMistyped()
		}
		texts, data = append(texts, string(data[1:1+n])), data[1+n:]
	}
	if len(texts) < 3 {
		return Token{}, errMistyped()
	}
	td, err := spiffeid.TrustDomainFromString(texts[0])
	if err != nil || td.Name() != texts[0] {
		return Token{}, nserr.BadJoinToken.Errorf("the join token names the trust domain %q, which is not one", texts[0])
	}
	t.TrustDomain, t.Node, t.Addresses = td, texts[1], texts[2:]
	return t, t.Validate()
}

// Validate reports what a token could not be used with.
func (t Token) Validate() error {
	if len(t.TrustDomain.Name()) > 255 {
		return nserr.BadJoinToken.Errorf("the name of the trust domain is longer than 255 bytes")
	}
	if t.Node != "" {
		if err := CheckNode(t.Node); err != nil {
			return err
		}
	}
	if len(t.Addresses) == 0 || len(t.Addresses) > maxAddresses {
		return nserr.BadJoinToken.Errorf("a join token names 1 to %d addresses, not %d", maxAddresses, len(t.Addresses))
	}
	for _, address := range t.Addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil || host == "" || port == "" || len(address) > 255 {
			return nserr.BadJoinToken.Errorf("the address %q of the authority is not host:port", address)
		}
	}
	return nil
}

// CheckNode reports whether a name can be that of a node: it becomes a segment
// of SPIFFE IDs.
func CheckNode(name string) error {
	if err := spiffeid.ValidatePathSegment(name); err != nil || len(name) > 253 {
		return nserr.BadFlag.Errorf("%q cannot be the name of a node", name).
			WithFix("use up to 253 letters, digits, dots, dashes and underscores")
	}
	return nil
}

func check(data []byte) []byte {
	sum := sha256.Sum256(data)
	return sum[:checkLen]
}

func errMistyped() error {
	return nserr.BadJoinToken.Errorf("the join token is incomplete or mistyped").
		WithFix("copy the whole line that 'nsm token create' printed")
}

// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/openvwire/nsm/internal/statedir"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/jointoken"
	"github.com/openvwire/nsm/sdk/nserr"
)

// StateFile is what the agent keeps in its state directory. A node that has it has
// joined a domain, or has tried to.
const StateFile = "agent.json"

// state is the contents of agent.json: the membership, if there is one, and the
// join that is under way, if there is one. All binary values are DER.
type state struct {
	Authority []string          `json:"authority,omitempty"` // addresses, host:port
	Key       []byte            `json:"key,omitempty"`       // PKCS #8
	Chain     [][]byte          `json:"chain,omitempty"`     // of the SVID, leaf first
	Bundles   map[string][]byte `json:"bundles,omitempty"`   // by SPIFFE ID of the trust domain
	Known     [][]byte          `json:"known,omitempty"`     // SHA-256 of the CAs that the domain has and had since the node joined

	Join *joining `json:"join,omitempty"`

	rest statedir.Rest // of a later version
}

// joining remembers the key that a token was sent with: if the answer was lost,
// that key may use the token again.
type joining struct {
	Node  string `json:"node"`
	Token []byte `json:"token"` // SHA-256 of its secret
	Key   []byte `json:"key"`   // PKCS #8
}

// load returns the stored state, an empty one if nothing is stored.
func load(dir *statedir.Dir) (state, error) {
	var s state
	var err error
	s.rest, err = dir.ReadJSON(StateFile, &s, "delete it and join again, with a new token")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return state{}, nil
	case err != nil:
		return state{}, err
	case len(s.Chain) == 0 && s.Join == nil:
		return s, dir.Later(StateFile, s.rest)
	}
	return s, nil
}

func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the key is not an ECDSA key")
	}
	return key, nil
}

// membership returns the stored membership, or why there is no use for it.
func (s state) membership(node string, now time.Time) (membership, error) {
	if len(s.Chain) == 0 {
		return membership{}, errors.New("it has not joined yet")
	}
	key, err := parseKey(s.Key)
	if err != nil {
		return membership{}, err
	}
	svid, err := identity.NewSVID(key, s.Chain)
	if err != nil {
		return membership{}, err
	}
	bundles, err := identity.ParseBundles(s.Bundles)
	if err != nil {
		return membership{}, err
	}
	if want, err := identity.NodeID(svid.ID.TrustDomain(), node, "agent"); err != nil || svid.ID != want {
		return membership{}, fmt.Errorf("it was %s, not node %s", svid.ID, node)
	}
	if until := svid.Certificates[0].NotAfter; !now.Before(until) {
		return membership{}, fmt.Errorf("its identity has expired at %s", until.Format(time.RFC3339))
	}
	m := membership{addresses: s.Authority, rest: s.rest}
	for _, hash := range s.Known {
		if len(hash) == sha256.Size {
			m.known = append(m.known, [sha256.Size]byte(hash))
		}
	}
	return m.with(svid, bundles), nil
}

// key returns the key to join with: that of an attempt with the same token, or
// a new one, which is stored before it is used.
func (s state) key(dir *statedir.Dir, node string, token jointoken.Token) (*ecdsa.PrivateKey, error) {
	hash := sha256.Sum256(token.Secret[:])
	if s.Join != nil && s.Join.Node == node && bytes.Equal(s.Join.Token, hash[:]) {
		if key, err := parseKey(s.Join.Key); err == nil {
			return key, nil
		}
	}
	key, err := identity.NewKey()
	if err != nil {
		return nil, nserr.Internal.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nserr.Internal.Errorf("encode the key: %w", err)
	}
	s.Join = &joining{Node: node, Token: hash[:], Key: der}
	return key, store(dir, s)
}

// save stores a membership.
func save(dir *statedir.Dir, m membership) error {
	key, err := x509.MarshalPKCS8PrivateKey(m.svid.PrivateKey)
	if err != nil {
		return nserr.Internal.Errorf("encode the key: %w", err)
	}
	s := state{Authority: m.addresses, Key: key, Bundles: identity.MarshalBundles(m.bundles), rest: m.rest}
	for _, cert := range m.svid.Certificates {
		s.Chain = append(s.Chain, cert.Raw)
	}
	for _, hash := range m.known {
		s.Known = append(s.Known, hash[:])
	}
	return store(dir, s)
}

func store(dir *statedir.Dir, s state) error { return dir.WriteJSON(StateFile, s, s.rest) }

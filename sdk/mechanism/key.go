// SPDX-License-Identifier: Apache-2.0

package mechanism

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Key is a Curve25519 key of WireGuard, public or private by context.
type Key [32]byte

// NewPrivateKey returns a fresh private key, with the bits set that RFC 7748
// (section 5) sets before use: a WireGuard device is given it and reads the same.
func NewPrivateKey() (k Key) {
	_, _ = rand.Read(k[:]) // never fails
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

// KeyPair is a private key and its public one. To compute the latter takes as long as
// everything else that a hop does for a refresh, so it is kept.
type KeyPair struct{ Private, Public Key }

// NewKeyPair returns a fresh pair.
func NewKeyPair() KeyPair { return PairOf(NewPrivateKey()) }

// PairOf returns the pair of a private key.
func PairOf(private Key) KeyPair { return KeyPair{private, private.Public()} }

// Public returns the public key of the private key k.
func (k Key) Public() Key {
	priv, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		panic("mechanism: " + err.Error()) // only for a wrong length
	}
	return Key(priv.PublicKey().Bytes())
}

// IsZero reports whether k is no key.
func (k Key) IsZero() bool { return k == Key{} }

// String is k in base64, as `wg` prints it.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

func parseKey(name, text string) (k Key, err error) {
	if text == "" {
		return k, nil
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != len(k) {
		return k, nserr.BadMechanism.Errorf("WIREGUARD: %s is not a base64 Curve25519 key", name)
	}
	return Key(raw), nil
}

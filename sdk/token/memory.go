// SPDX-License-Identifier: Apache-2.0

package token

import (
	"crypto/ecdsa"
	"sync"
)

// recent are the tokens of late. Every hop asks several times what each token of a
// path says, and those of hops come again with every connection through them, each
// time to be verified.
var recent memory

// What recent holds at most: half a MiB, in tokens as they usually are. Longer ones
// are decoded and verified each time.
const (
	maxRecent       = 512
	maxRecentLength = 1 << 10
)

// memory remembers what tokens say and who has signed them. Both follow from their text
// alone, of which the signature is a part; whether one has expired does not.
type memory struct {
	mu  sync.RWMutex
	raw map[string]known // guarded by mu
}

type known struct {
	Token
	signer *ecdsa.PublicKey // the signature is this key's; nil: nobody has asked
}

func (m *memory) get(raw string) (known, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	k, ok := m.raw[raw]
	return k, ok
}

func (m *memory) put(t Token) {
	if len(t.Raw) > maxRecentLength {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.raw == nil || len(m.raw) >= maxRecent {
		m.raw = make(map[string]known)
	}
	m.raw[t.Raw] = known{Token: t}
}

// setSigner remembers whose signature a token has, if it remembers the token still.
func (m *memory) setSigner(raw string, signer *ecdsa.PublicKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k, ok := m.raw[raw]; ok {
		k.signer = signer
		m.raw[raw] = k
	}
}

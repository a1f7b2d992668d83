// SPDX-License-Identifier: Apache-2.0

package token

import "sync"

// parsed are the tokens of late. Every hop asks several times what each token of a
// path says, and those of hops come again with every connection through them.
var parsed memory

// What parsed holds at most: half a MiB, in tokens as they usually are. Longer ones
// are decoded each time.
const (
	maxParsed       = 512
	maxParsedLength = 1 << 10
)

// memory remembers what tokens say, which follows from their text alone.
type memory struct {
	mu  sync.RWMutex
	raw map[string]Token // guarded by mu
}

func (m *memory) get(raw string) (Token, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	t, ok := m.raw[raw]
	return t, ok
}

func (m *memory) put(t Token) {
	if len(t.Raw) > maxParsedLength {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.raw == nil || len(m.raw) >= maxParsed {
		m.raw = make(map[string]Token)
	}
	m.raw[t.Raw] = t
}

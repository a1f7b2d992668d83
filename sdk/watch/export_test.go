// SPDX-License-Identifier: Apache-2.0

package watch

// Kept is how many tombstones there are.
func (m *Map[K, V]) Kept() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead.Len()
}

// Waiting is how many readers wait for a change.
func (m *Map[K, V]) Waiting() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, q := range m.waiting {
		n += len(q.readers)
	}
	return n
}

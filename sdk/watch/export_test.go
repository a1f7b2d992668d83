// SPDX-License-Identifier: Apache-2.0

package watch

// Kept is how many tombstones there are.
func (m *Map[K, V]) Kept() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead.Len()
}

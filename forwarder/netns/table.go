// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"os"
	"sync"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Table holds the namespaces a process works with open, once each, and counts
// who needs them. It is safe for concurrent use.
type Table struct {
	self string

	mu      sync.Mutex // never held across a system call that can block
	entries map[string]*entry
}

type entry struct {
	handle *Handle
	refs   int // > 0 while the entry is in the table
}

// NewTable returns a table that holds the caller's own namespace, see [Table.Self].
func NewTable() (*Table, error) {
	own, err := Current()
	if err != nil {
		return nil, err
	}
	return NewTableAt(own)
}

// NewTableAt returns a table whose own namespace is self, as for a process
// that runs there. It takes ownership of self.
func NewTableAt(self *os.File) (*Table, error) {
	t := &Table{entries: make(map[string]*entry)}
	key, err := t.Add(self)
	t.self = key
	return t, err
}

// Self returns the handle of the process's own namespace, open until Close.
func (t *Table) Self() *Handle {
	h, err := t.Get(t.self)
	if err != nil {
		panic("netns: Self of a closed table")
	}
	return h
}

// Add takes ownership of f, whatever the outcome, and returns the key of the
// namespace. Each Add needs one Release. A descriptor opened with O_PATH, as
// peers send them, is reopened. What is not a network namespace is refused
// with [nserr.NoNetNS].
func (t *Table) Add(f *os.File) (key string, err error) {
	if f != nil {
		// What the table has open is a network namespace, and nothing else has its key.
		if key, err := Key(f); err == nil && t.Hold(key) == nil {
			_ = f.Close()
			return key, nil
		}
	}
	f, err = reopen(f)
	if err != nil {
		return "", err
	}
	key, err = Key(f)
	if err != nil {
		f.Close()
		return "", err
	}
	t.mu.Lock()
	e, known := t.entries[key]
	if !known {
		e = &entry{handle: &Handle{key: key, file: f}}
		t.entries[key] = e
	}
	e.refs++
	t.mu.Unlock()
	if known {
		f.Close()
	}
	return key, nil
}

// Hold adds a reference to a namespace that the table has, or fails with
// [nserr.NoNetNS]. Each Hold needs one Release.
func (t *Table) Hold(key string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.entries[key]
	if !ok {
		return unknown(key)
	}
	e.refs++
	return nil
}

// Get returns the handle of a namespace without adding a reference: it works
// until the caller's Release, and fails cleanly after that.
func (t *Table) Get(key string) (*Handle, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.entries[key]
	if !ok {
		return nil, unknown(key)
	}
	return e.handle, nil
}

func unknown(key string) error {
	return nserr.NoNetNS.Errorf("network namespace %s is not open here", key)
}

// Release gives one reference back; with the last one the namespace is closed.
// Unknown keys are ignored.
func (t *Table) Release(key string) {
	t.mu.Lock()
	e, ok := t.entries[key]
	last := false
	if ok {
		if e.refs--; e.refs == 0 {
			last = true
			delete(t.entries, key)
		}
	}
	t.mu.Unlock()
	if last {
		e.handle.file.Close()
	}
}

// Do runs f inside the namespace, see [Handle.Do].
func (t *Table) Do(key string, f func() error) error {
	h, err := t.Get(key)
	if err != nil {
		return err
	}
	return h.Do(f)
}

// Keys returns the keys of all open namespaces, in no order.
func (t *Table) Keys() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	keys := make([]string, 0, len(t.entries))
	for key := range t.entries {
		keys = append(keys, key)
	}
	return keys
}

// Close closes every namespace, whoever still counts on it.
func (t *Table) Close() {
	t.mu.Lock()
	entries := t.entries
	t.entries = make(map[string]*entry)
	t.mu.Unlock()
	for _, e := range entries {
		e.handle.file.Close()
	}
}

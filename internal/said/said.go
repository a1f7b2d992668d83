// SPDX-License-Identifier: Apache-2.0

// Package said keeps logs short: it tells what is new from what was said already.
//
// Who tries again and again fails again and again, and each time for the same
// reason. Only the first failure is worth a line, and the next one that is
// different:
//
//	var failures said.Book
//	…
//	level := slog.LevelDebug
//	if failures.News(id, reason) {
//		level = slog.LevelWarn
//	}
//	…
//	failures.Forget(id) // it has succeeded
package said

import (
	"sync"
	"time"
)

const (
	// most bounds what a Book remembers, once over for what was said lately and once
	// for what was said before. Whatever is forgotten is said again.
	most = 1024
	// fresh is for how long something goes without saying after it was last true:
	// nobody who tries again waits that long.
	fresh = 5 * time.Minute
)

// Book remembers what was said last about each of many things. The zero value is
// empty and ready; it is safe for concurrent use.
type Book struct {
	mu     sync.Mutex
	lately map[string]entry // guarded by mu
	before map[string]entry // guarded by mu; becomes what lately was when that is full
}

type entry struct {
	what string
	at   time.Time // last true
}

// News reports whether what is something else than what was said about key last.
func (b *Book) News(key, what string) bool {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	last, known := b.lately[key]
	if !known {
		last, known = b.before[key]
	}
	if b.lately == nil || len(b.lately) >= most {
		b.before, b.lately = b.lately, make(map[string]entry)
	}
	b.lately[key] = entry{what, now}
	return !known || last.what != what || now.Sub(last.at) > fresh
}

// Forget makes whatever is said next about key news, and reports whether anything was
// said about it.
func (b *Book) Forget(key string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, lately := b.lately[key]
	_, before := b.before[key]
	delete(b.lately, key)
	delete(b.before, key)
	return lately || before
}

// Len returns how many things are remembered.
func (b *Book) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.lately) + len(b.before)
}

// SPDX-License-Identifier: Apache-2.0

package nserr

import (
	"log/slog"
	"slices"
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
	// mostOfOne bounds what is remembered of one thing: who has ever other things to
	// say is heard each time.
	mostOfOne = 8
)

// Book keeps logs short: it remembers what was said about each of many things, and
// tells what is new. Who tries again and again fails again and again, and each time
// for the same reason, or for the same few in turn. Only the first failure is worth a
// line, and the next one that is for another reason:
//
//	var failures nserr.Book // by connection
//	…
//	log.Log(ctx, failures.Level(slog.LevelWarn, id, nserr.From(err).Reason.Code), "request failed", …)
//
// What goes well and fails by turns is best never forgotten, so that it is said once;
// where that cannot be, Forget makes the next failure news.
//
// The zero value is empty and ready; it is safe for concurrent use.
type Book struct {
	mu     sync.Mutex
	lately map[string][]fact // guarded by mu; of one thing the latest comes last
	before map[string][]fact // guarded by mu; becomes what lately was when that is full
}

type fact struct {
	what string
	at   time.Time // last true
}

// News reports whether what was not said about key lately. What is said in turn with
// something else is no news.
func (b *Book) News(key, what string) bool {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	facts, known := b.lately[key]
	if !known {
		facts = b.before[key]
	}
	if b.lately == nil || len(b.lately) >= most {
		b.before, b.lately = b.lately, make(map[string][]fact)
	}
	facts = slices.DeleteFunc(facts, func(f fact) bool { return now.Sub(f.at) > fresh })
	said := slices.IndexFunc(facts, func(f fact) bool { return f.what == what })
	switch {
	case said >= 0:
		facts = slices.Delete(facts, said, said+1)
	case len(facts) == mostOfOne:
		facts = slices.Delete(facts, 0, 1)
	}
	b.lately[key] = append(facts, fact{what, now})
	return said < 0
}

// Level is the level of a line that says what about key: the one given if it is news,
// else that of what a developer looks for.
func (b *Book) Level(level slog.Level, key, what string) slog.Level {
	if b.News(key, what) {
		return level
	}
	return slog.LevelDebug
}

// Said reports whether what was said about key lately.
func (b *Book) Said(key, what string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	facts, known := b.lately[key]
	if !known {
		facts = b.before[key]
	}
	return slices.ContainsFunc(facts, func(f fact) bool { return f.what == what && time.Since(f.at) <= fresh })
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

// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/openvwire/nsm/internal/statedir"
	"github.com/openvwire/nsm/sdk/nserr"
)

const (
	ledgerFile = "join.json"

	// maxTokens bounds how many tokens may be known at a time.
	maxTokens = 1000

	// keepExpired is how long an expired token is told from one never made.
	keepExpired = 24 * time.Hour
)

// ledger is who may join and who has joined. What it says is on disk before
// anybody hears of it: a token that was used stays used, whatever happens next.
type ledger struct {
	dir *statedir.Dir

	mu   sync.Mutex
	book book // replaced as a whole, once it is on disk
}

// book is the contents of join.json.
type book struct {
	Tokens []entry              `json:"tokens"`
	Nodes  map[string]time.Time `json:"nodes"` // name: when it joined last

	rest statedir.Rest // of a later version
}

// entry is a join token as the authority knows it. Values, never modified.
type entry struct {
	Hash    []byte    `json:"hash"` // SHA-256 of the secret
	Node    string    `json:"node,omitempty"`
	Expires time.Time `json:"expires"`
	UsedBy  string    `json:"used_by,omitempty"` // node that it let in, "" = unused
	Key     []byte    `json:"key,omitempty"`     // SHA-256 of that node's public key

	rest statedir.Rest // of a later version
}

// entryFields is an entry without its methods.
type entryFields entry

func (e *entry) UnmarshalJSON(data []byte) (err error) {
	e.rest, err = statedir.Split(data, (*entryFields)(e))
	return err
}

func (e entry) MarshalJSON() ([]byte, error) { return statedir.Join(entryFields(e), e.rest) }

func openLedger(dir *statedir.Dir) (*ledger, error) {
	const damaged = "restore it, or delete it: join tokens that nobody has used yet are lost then"
	l := &ledger{dir: dir, book: book{Nodes: map[string]time.Time{}}}
	rest, err := dir.ReadJSON(ledgerFile, &l.book, damaged)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l, nil
	case err != nil:
		return nil, err
	case l.book.Nodes == nil:
		if err := dir.Later(ledgerFile, rest); err != nil {
			return nil, err
		}
		return nil, nserr.StateDir.Errorf("%s is damaged: it has no nodes", dir.Path(ledgerFile)).WithFix(damaged)
	}
	l.book.rest = rest
	return l, nil
}

// create records a token for node ("" = any).
func (l *ledger) create(secret [16]byte, node string, now, expires time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.editLocked(now)
	if len(next.Tokens) >= maxTokens {
		return nserr.Busy.Errorf("there are %d join tokens already", len(next.Tokens)).
			WithFix("wait until some have expired")
	}
	hash := sha256.Sum256(secret[:])
	next.Tokens = append(next.Tokens, entry{Hash: hash[:], Node: node, Expires: expires.UTC()})
	return l.saveLocked(next)
}

// redeem uses up the token with a secret to let node in; key is the node's
// public key, encoded. A node may ask again with the same key while the token
// is valid, since an answer can be lost. A token for any node lets in a new
// node only: names are not taken over by it.
func (l *ledger) redeem(secret []byte, node string, key []byte, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.editLocked(now)
	hash, keyHash := sha256.Sum256(secret), sha256.Sum256(key)
	i := find(next.Tokens, hash[:])
	if i < 0 {
		return nserr.BadJoinToken.Errorf("the join token is unknown here")
	}
	t := next.Tokens[i]
	again := t.UsedBy == node && bytes.Equal(t.Key, keyHash[:])
	_, known := next.Nodes[node]
	switch {
	case t.UsedBy != "" && !again:
		return nserr.BadJoinToken.Errorf("the join token has been used, by node %s", t.UsedBy)
	case !now.Before(t.Expires):
		return nserr.BadJoinToken.Errorf("the join token has expired at %s", t.Expires.Format(time.RFC3339))
	case t.Node != "" && t.Node != node:
		return nserr.BadJoinToken.Errorf("the join token is for node %s, not %s", t.Node, node)
	case again:
		return nil
	case known && t.Node == "":
		return nserr.NameOwned.Errorf("a node named %s has joined before", node).
			WithFix("choose another name for this node; if it is the same one, make a token with 'nsm token create --node %s'", node)
	}
	t.UsedBy, t.Key = node, keyHash[:]
	next.Tokens[i] = t
	next.Nodes[node] = now.UTC().Truncate(time.Second)
	return l.saveLocked(next)
}

// nodes returns the names of those that have joined.
func (l *ledger) nodes() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.book.Nodes))
}

// find returns the index of the token with a hash, -1 if there is none. Its
// time does not depend on how much of a hash is right.
func find(tokens []entry, hash []byte) int {
	found := -1
	for i, t := range tokens {
		if subtle.ConstantTimeCompare(t.Hash, hash) == 1 {
			found = i
		}
	}
	return found
}

// editLocked returns a copy of the book without what is long expired.
func (l *ledger) editLocked(now time.Time) book {
	b := book{Tokens: slices.Clone(l.book.Tokens), Nodes: maps.Clone(l.book.Nodes), rest: l.book.rest}
	b.Tokens = slices.DeleteFunc(b.Tokens, func(t entry) bool { return now.After(t.Expires.Add(keepExpired)) })
	return b
}

func (l *ledger) saveLocked(next book) error {
	if err := l.dir.WriteJSON(ledgerFile, next, next.rest); err != nil {
		return err
	}
	l.book = next
	return nil
}

// SPDX-License-Identifier: Apache-2.0

// Package conn is what a hop remembers of its connections and what time and
// events do to them.
//
// A [Table] holds one record per connection, of a type that the hop chooses, and
// lets one caller at a time work on it: the turn. A turn is held across the call
// to the next hop, so waiting for it can be cancelled, and turns are taken in
// the order of the calls. There is no goroutine per connection: a timer that
// fires is all that runs.
//
// [Decide] says what the originator of a connection does next, and when: refresh,
// healing and what follows expiry, as a pure function of what is known and what has
// happened.
package conn

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Table holds the records of a hop by connection id (the id of the hop's own
// path segment). The zero value is not usable, see NewTable.
//
// Never call Do from inside Do with the same id. The call that a hop makes to
// its next hop and that comes back to the same process carries the next
// segment's id, which is another record.
type Table[R any] struct {
	expired func(ctx context.Context, id string)
	ctx     context.Context // of expiry work; ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup // expiry work

	mu      sync.Mutex
	closed  bool                 // guarded by mu
	entries map[string]*entry[R] // guarded by mu
}

type entry[R any] struct {
	turn   chan struct{} // holds a token while somebody has the turn; waiters queue in order
	refs   int           // guarded by Table.mu: callers that have the turn or wait for it
	record *R            // owned by whoever has the turn; nil = none
	alarm  *alarm        // owned by whoever has the turn; nil = not armed
}

// alarm is one arming of a connection's timer. That it rang is what counts, not what
// a clock says: the machine's may be set while the connection lives, and the one
// that the timer follows cannot. A machine that was suspended has as much time left as before.
type alarm struct {
	timer *time.Timer
	rang  atomic.Bool
}

// NewTable returns an empty table. When the time given to Turn.ExpireAt has
// come, expired is called without the turn, in a goroutine that Close waits
// for; it takes the turn itself and asks Turn.Expired before it acts.
func NewTable[R any](expired func(ctx context.Context, id string)) *Table[R] {
	ctx, cancel := context.WithCancel(context.Background())
	return &Table[R]{expired: expired, ctx: ctx, cancel: cancel, entries: make(map[string]*entry[R])}
}

// Turn is one caller's exclusive time with a record.
type Turn[R any] struct {
	ID     string
	Record *R // nil when there is none; set it to keep one, set it to nil to drop it

	table *Table[R]
	entry *entry[R]
}

// Do runs f when id's turn comes. A caller whose context ends leaves the queue, and
// so does everybody when the table is closed.
func (t *Table[R]) Do(ctx context.Context, id string, f func(*Turn[R]) error) error {
	if id == "" {
		return nserr.SegmentID.Errorf("connection id is empty")
	}
	e, err := t.acquire(id)
	if err != nil {
		return err
	}
	defer t.release(id, e)
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		return nserr.TimedOut.Errorf("waiting for the turn of connection %s: %w", id, context.Cause(ctx))
	case <-t.ctx.Done():
		return errClosed
	}
	defer func() { <-e.turn }()
	// select may have chosen the turn although something else was there too. A
	// caller that has given up may have sent a Close already, which did not find
	// what this turn would make.
	if t.ctx.Err() != nil {
		return errClosed
	}
	if ctx.Err() != nil {
		return nserr.TimedOut.Errorf("the caller of connection %s has given up: %w", id, context.Cause(ctx))
	}

	turn := &Turn[R]{ID: id, Record: e.record, table: t, entry: e}
	defer func() {
		if e.record = turn.Record; e.record == nil {
			turn.disarm()
		}
	}()
	return f(turn)
}

var errClosed = nserr.Stopping.Errorf("no new work is taken")

func (t *Table[R]) acquire(id string) (*entry[R], error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errClosed
	}
	e := t.entries[id]
	if e == nil {
		e = &entry[R]{turn: make(chan struct{}, 1)}
		t.entries[id] = e
	}
	e.refs++
	return e, nil
}

func (t *Table[R]) release(id string, e *entry[R]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// Nobody has the turn when the last reference goes, so record may be read.
	if e.refs--; e.refs == 0 && e.record == nil {
		delete(t.entries, id)
	}
}

// ExpireAt arms the connection's timer, in place of what was armed before.
func (t *Turn[R]) ExpireAt(at time.Time) {
	t.disarm()
	a := &alarm{}
	t.entry.alarm = a
	table, id := t.table, t.ID
	a.timer = time.AfterFunc(time.Until(at), func() {
		a.rang.Store(true)
		table.fire(id)
	})
}

// Expired reports whether the time given to ExpireAt has come. A refresh that
// took the turn first has moved it.
func (t *Turn[R]) Expired() bool {
	return t.Record != nil && t.entry.alarm != nil && t.entry.alarm.rang.Load()
}

func (t *Turn[R]) disarm() {
	if t.entry.alarm != nil {
		t.entry.alarm.timer.Stop()
		t.entry.alarm = nil
	}
}

func (t *Table[R]) fire(id string) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	t.running.Add(1)
	t.mu.Unlock()
	defer t.running.Done()
	t.expired(t.ctx, id)
}

// Len returns the number of connections with a record or with a call under way.
func (t *Table[R]) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.entries)
}

// IDs returns the ids of the same connections, in no order.
func (t *Table[R]) IDs() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]string, 0, len(t.entries))
	for id := range t.entries {
		out = append(out, id)
	}
	return out
}

// Close stops all timers and waits for expiry work under way. Records are
// forgotten, not closed: what they stand for outlives this process.
func (t *Table[R]) Close() {
	t.mu.Lock()
	t.closed = true
	entries := t.entries
	t.entries = make(map[string]*entry[R])
	t.mu.Unlock()
	t.cancel()
	t.running.Wait()
	for _, e := range entries {
		e.turn <- struct{}{} // whoever has the turn ends first
		if e.alarm != nil {
			e.alarm.timer.Stop()
		}
		<-e.turn
	}
}

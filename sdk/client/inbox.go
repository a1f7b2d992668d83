// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"sync"

	"github.com/openvwire/nsm/sdk/conn"
)

// inbox holds the events of a wire that its run goroutine has not seen yet, each at
// most once. Anybody may post; nobody waits.
type inbox struct {
	wake chan struct{} // has room for one; something was posted

	mu        sync.Mutex
	waiting   uint                    // bit n: conn.Event n; guarded by mu
	interrupt context.CancelCauseFunc // of a Request that is in vain if packets stop; guarded by mu
}

// errDataLost is why a Request on the same path was given up.
var errDataLost = errors.New("packets have stopped meanwhile")

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

func (b *inbox) post(e conn.Event) {
	b.mu.Lock()
	b.waiting |= 1 << e
	if e == conn.DataLost && b.interrupt != nil {
		b.interrupt(errDataLost)
	}
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// replace posts e, and takes old back: they contradict each other.
func (b *inbox) replace(old, e conn.Event) {
	b.drop(old)
	b.post(e)
}

// take returns what has been posted and not yet been taken, in the order of the
// events' numbers.
func (b *inbox) take() (events []conn.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for e := conn.Event(0); b.waiting>>e != 0; e++ {
		if b.waiting>>e&1 != 0 {
			events = append(events, e)
		}
	}
	b.waiting = 0
	return events
}

// drop takes events back: they are answered by what happens now, or not true any more.
func (b *inbox) drop(events ...conn.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range events {
		b.waiting &^= 1 << e
	}
}

// guard returns a context that also ends when packets stop, with errDataLost, and
// perhaps at once. release must be called in the end.
func (b *inbox) guard(ctx context.Context) (guarded context.Context, release func()) {
	guarded, cancel := context.WithCancelCause(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.interrupt = cancel
	if b.waiting>>conn.DataLost&1 != 0 {
		cancel(errDataLost)
	}
	return guarded, func() {
		b.mu.Lock()
		b.interrupt = nil
		b.mu.Unlock()
		cancel(nil)
	}
}

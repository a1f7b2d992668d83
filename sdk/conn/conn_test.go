// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/openvwire/nsm/sdk/nserr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type record struct{ n int }

func nothing(context.Context, string) {}

// Five callers keep their order; a sixth gives up and leaves the queue.
func TestTurnsAreTakenInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable[record](nothing)
		defer table.Close()
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				err := table.Do(t.Context(), "c", func(*Turn[record]) error {
					mu.Lock()
					order = append(order, i)
					mu.Unlock()
					time.Sleep(time.Second)
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		err := table.Do(ctx, "c", func(*Turn[record]) error { t.Error("ran after giving up"); return nil })
		if !errors.Is(err, nserr.TimedOut) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("giving up: %v", err)
		}
		wg.Wait()
		if !slices.Equal(order, []int{0, 1, 2, 3, 4}) {
			t.Errorf("order = %v", order)
		}
		if n := table.Len(); n != 0 {
			t.Errorf("%d entries without a record are left", n)
		}
	})
}

func TestConnectionsDoNotWaitForEachOther(t *testing.T) {
	table := NewTable[record](nothing)
	defer table.Close()
	err := table.Do(t.Context(), "a", func(*Turn[record]) error {
		return table.Do(t.Context(), "b", func(*Turn[record]) error { return nil })
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRecordStaysUntilDropped(t *testing.T) {
	table := NewTable[record](nothing)
	defer table.Close()
	do := func(f func(*Turn[record])) {
		t.Helper()
		if err := table.Do(t.Context(), "c", func(turn *Turn[record]) error { f(turn); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	do(func(turn *Turn[record]) { turn.Record = &record{n: 1} })
	do(func(turn *Turn[record]) {
		if turn.Record == nil || turn.Record.n != 1 {
			t.Errorf("record = %v", turn.Record)
		}
		turn.Record = nil
	})
	do(func(turn *Turn[record]) {
		if turn.Record != nil {
			t.Errorf("record = %v after it was dropped", turn.Record)
		}
	})
	if n := table.Len(); n != 0 {
		t.Errorf("%d entries left", n)
	}
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var table *Table[record]
		expired := make(chan time.Duration, 1)
		table = NewTable[record](func(ctx context.Context, id string) {
			err := table.Do(ctx, id, func(turn *Turn[record]) error {
				if turn.Expired() {
					expired <- time.Since(start)
					turn.Record = nil
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
		defer table.Close()
		arm := func(after time.Duration) {
			_ = table.Do(t.Context(), "c", func(turn *Turn[record]) error {
				turn.Record = &record{}
				turn.ExpireAt(time.Now().Add(after))
				return nil
			})
		}
		arm(time.Minute)
		time.Sleep(59 * time.Second)
		arm(time.Minute) // a refresh moves it
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if len(expired) != 0 {
			t.Fatalf("expired after %v although it was refreshed", <-expired)
		}
		time.Sleep(2 * time.Second)
		if at := <-expired; at != 119*time.Second {
			t.Errorf("expired after %v, want 1m59s", at)
		}
		synctest.Wait()
		if n := table.Len(); n != 0 {
			t.Errorf("%d entries left", n)
		}
	})
}

// A refresh that holds the turn when the timer fires wins.
func TestRefreshBeatsExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := false
		var table *Table[record]
		table = NewTable[record](func(ctx context.Context, id string) {
			_ = table.Do(ctx, id, func(turn *Turn[record]) error {
				closed = closed || turn.Expired()
				return nil
			})
		})
		defer table.Close()
		_ = table.Do(t.Context(), "c", func(turn *Turn[record]) error {
			turn.Record = &record{}
			turn.ExpireAt(time.Now().Add(time.Second))
			return nil
		})
		_ = table.Do(t.Context(), "c", func(turn *Turn[record]) error {
			time.Sleep(2 * time.Second) // fires meanwhile
			turn.ExpireAt(time.Now().Add(time.Minute))
			return nil
		})
		synctest.Wait()
		if closed {
			t.Error("a connection that was just refreshed was closed")
		}
	})
}

// What is due when the timer fires is due whatever the clock of the machine says, which
// somebody may have set back meanwhile: nothing would ask again.
func TestExpiryAsksNoClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var table *Table[record]
		table = NewTable[record](func(ctx context.Context, id string) {
			_ = table.Do(ctx, id, func(turn *Turn[record]) error {
				if turn.Expired() {
					turn.Record = nil
				}
				return nil
			})
		})
		defer table.Close()
		_ = table.Do(t.Context(), "c", func(turn *Turn[record]) error {
			turn.Record = &record{}
			turn.ExpireAt(time.Now().Add(time.Minute).Round(0)) // as it comes out of a message
			return nil
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := table.Len(); n != 0 {
			t.Errorf("%d connections stay for ever", n)
		}
	})
}

func TestClosedTableTakesNoWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable[record](nothing)
		refused := func() {
			err := table.Do(t.Context(), "c", func(*Turn[record]) error { t.Error("got a turn"); return nil })
			if !errors.Is(err, nserr.Stopping) {
				t.Errorf("error = %v", err)
			}
		}
		end := make(chan struct{})
		var all sync.WaitGroup
		all.Go(func() {
			_ = table.Do(t.Context(), "c", func(*Turn[record]) error { <-end; return nil })
		})
		synctest.Wait()
		all.Go(refused) // waits for its turn when Close comes
		synctest.Wait()
		all.Go(table.Close)
		synctest.Wait()
		close(end)
		all.Wait()
		refused()
	})
}

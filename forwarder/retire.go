// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"context"
	"log/slog"
	"time"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/conn"
)

// linger is how long what a wire has left can still deliver what was under way: devices
// and the path behind them. It is the way there and back, once around the globe and through
// nodes that have much else to do, and where only the node behind has changed its end, what
// the answer takes that says so. Nobody waits for it.
const linger = 500 * time.Millisecond

// retire removes, in the background, what packets took until now: the rest of old, in
// whose place w has come. It takes old's holdings over. closed, if not nil, is closed
// when the path behind old is.
func (f *Forwarder) retire(id string, old, w *wire, closed <-chan struct{}) {
	holds := old.holds
	old.holds = nil
	if w.lingers.IsZero() && closed == nil {
		holds.release()
		return
	}
	f.removals.Go(func() {
		defer holds.release()
		select {
		case <-time.After(linger):
			f.removeRest(id, old.desired)
		case <-f.ending:
			return // whoever comes after finds it
		}
		if closed != nil {
			select {
			case <-closed:
			case <-f.ending:
			}
		}
	})
}

// removeRest removes what is left of a wire as it was. It may have come back since, or
// have been closed.
func (f *Forwarder) removeRest(id string, old plan.Wire) {
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	_ = f.wires.Do(ctx, id, func(t *conn.Turn[wire]) error {
		var now plan.Wire
		if t.Record != nil {
			now = t.Record.desired
		}
		var err error
		if rest := leaving(old, now); len(rest.Ends) > 0 {
			err = f.config.Kernel.Remove(ctx, rest)
		}
		if err == nil && now.Kind != "" && !t.Record.adopted && !time.Now().Before(t.Record.lingers) {
			_, err = f.config.Kernel.Apply(ctx, now)
		}
		if err != nil {
			f.log.Log(ctx, f.damaged.Level(slog.LevelWarn, id+" rest", err.Error()), "rest of a wire not removed", "connection", id, "error", err)
		}
		return nil
	})
}

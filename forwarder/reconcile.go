// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"context"
	"time"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/conn"
)

// Reconcile makes the kernel have again what every wire needs, whatever somebody
// else has deleted or changed, and says in the log what it found.
func (f *Forwarder) Reconcile(ctx context.Context) {
	for _, id := range f.wires.IDs() {
		if ctx.Err() != nil {
			return
		}
		f.repair(ctx, id)
	}
}

// KeepReconciled reconciles at the given interval until ctx ends. The wires are
// spread over the interval, so that a thousand of them are no burst.
func (f *Forwarder) KeepReconciled(ctx context.Context, every time.Duration) {
	for {
		ids := f.wires.IDs()
		for _, id := range ids {
			f.repair(ctx, id)
			if !pause(ctx, every/time.Duration(len(ids))) {
				return
			}
		}
		if len(ids) == 0 && !pause(ctx, every) {
			return
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (f *Forwarder) repair(ctx context.Context, id string) {
	err := f.wires.Do(ctx, id, func(t *conn.Turn[wire]) error {
		if t.Record == nil || t.Record.adopted || t.Record.desired.Kind == "" {
			return nil
		}
		steps, err := f.config.Kernel.Apply(ctx, t.Record.desired)
		if len(steps) > 0 {
			f.log.Warn("wire repaired", "connection", id, "steps", plan.Script(steps, func(key string) string { return key }))
		}
		return err
	})
	if err != nil && ctx.Err() == nil {
		f.log.Warn("wire not repaired", "connection", id, "error", err)
	}
}

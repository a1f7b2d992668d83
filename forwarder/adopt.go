// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"context"
	"errors"
	"time"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/conn"
)

// Adopt takes charge of the wires that an earlier life of this forwarder left in
// the kernel. Packets flow through them as if nothing had happened. The next
// refresh makes each whole again, without touching it; one that nobody refreshes
// within grace is removed. grace is the longest life of a token: by then every
// client that still lives has refreshed.
func (f *Forwarder) Adopt(ctx context.Context, grace time.Duration) error {
	found, err := f.config.Kernel.Adopt(ctx)
	if err != nil {
		return err
	}
	spaces := make(map[string][]string) // by wire id: namespaces held for it
	for _, link := range found {
		if link.Hidden {
			continue
		}
		spaces[link.Tag.ID] = append(spaces[link.Tag.ID], link.NetNS)
	}
	var errs []error
	wires := plan.Wires(found)
	for _, w := range wires {
		var holds holdings
		for _, key := range spaces[w.ID] {
			holds.add(func() { f.config.Namespaces.Release(key) })
		}
		errs = append(errs, f.wires.Do(ctx, w.ID, func(t *conn.Turn[wire]) error {
			if t.Record == nil { // else a Request was quicker
				t.Record = &wire{desired: w, adopted: true}
				t.Record.holds.take(&holds)
				t.ExpireAt(time.Now().Add(grace))
			}
			return nil
		}))
		holds.release()
	}
	if len(wires) > 0 {
		f.log.Info("wires adopted", "count", len(wires))
	}
	return errors.Join(errs...)
}

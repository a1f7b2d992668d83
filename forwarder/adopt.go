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
// within grace is removed. With Config.Encrypted those in the clear are removed at once. grace is the longest life of a token: by then every
// client that still lives has refreshed.
func (f *Forwarder) Adopt(ctx context.Context, grace time.Duration) error {
	until := time.Now().Add(grace)
	f.graceEnds.Store(&until)
	found, err := f.config.Kernel.FindLinks(ctx)
	if err != nil {
		return err
	}
	defer f.releaseSpaces(found)
	var errs []error
	wires := plan.Wires(found)
	for _, w := range wires {
		errs = append(errs, f.wires.Do(ctx, w.ID, func(t *conn.Turn[wire]) error {
			if t.Record == nil { // else a Request was quicker
				f.takeOn(ctx, t, w, until)
			}
			return nil
		}))
	}
	if len(wires) > 0 {
		f.log.Info("wires adopted", "count", len(wires))
	}
	return errors.Join(errs...)
}

// takeOn adopts w until then, unless it is in the clear, and must not be: that is removed
// now. A Request makes it anew, or is refused.
func (f *Forwarder) takeOn(ctx context.Context, t *conn.Turn[wire], w plan.Wire, until time.Time) {
	if !f.config.Encrypted || w.Kind != plan.KindVXLAN {
		f.adopt(t, w, until)
		return
	}
	if err := f.config.Kernel.Remove(ctx, w); err != nil {
		f.keepRest(t, &wire{desired: w}, err)
		return
	}
	f.log.Warn("wire removed, it was not encrypted", "connection", w.ID)
}

// adopt keeps what it takes to remove w, until then.
func (f *Forwarder) adopt(t *conn.Turn[wire], w plan.Wire, until time.Time) {
	t.Record = &wire{desired: w, adopted: true}
	for _, end := range w.Ends {
		if f.config.Namespaces.Hold(end.NetNS) == nil { // a hidden one is not in the table
			t.Record.holds.add(func() { f.config.Namespaces.Release(end.NetNS) })
		}
	}
	t.ExpireAt(until)
}

// releaseSpaces lets go of the namespaces that came with links.
func (f *Forwarder) releaseSpaces(found []plan.Found) {
	for _, link := range found {
		if !link.Hidden {
			f.config.Namespaces.Release(link.NetNS)
		}
	}
}

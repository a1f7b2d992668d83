// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"context"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/hop"
)

// Close closes a connection, what is behind it, and its wire (protocol.md §2.9).
// Closing what is not known succeeds.
func (f *Forwarder) Close(ctx context.Context, c *networkservice.Connection) (*emptypb.Empty, error) {
	call, err := f.hop.Admit(ctx, c)
	if err != nil {
		return nil, err
	}
	err = f.wires.Do(ctx, call.Conn.GetId(), func(t *conn.Turn[wire]) error {
		if t.Record == nil {
			return nil
		}
		if err := t.Record.binding.Check(call); err != nil {
			return err
		}
		return f.drop(ctx, t, call, "closed")
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// expire closes a connection that nobody refreshed in time.
func (f *Forwarder) expire(ctx context.Context, id string) {
	err := f.wires.Do(ctx, id, func(t *conn.Turn[wire]) error {
		if !t.Expired(time.Now()) {
			return nil
		}
		return f.drop(ctx, t, nil, "expired")
	})
	if err != nil {
		f.log.Error("wire not removed", "connection", id, "error", err)
	}
}

// drop closes the path behind this hop, takes the wire out of the kernel and
// forgets it. The kernel and the next hop work at the same time: deleting a link
// takes the kernel some 20 ms. What the next hop answers keeps nothing alive.
func (f *Forwarder) drop(ctx context.Context, t *conn.Turn[wire], call *hop.Call, why string) error {
	w := t.Record
	removed := make(chan error, 1)
	f.removals.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		removed <- f.config.Kernel.Remove(ctx, w.desired)
	})
	if err := w.next.Close(ctx, call); err != nil {
		f.log.Warn("next hop did not close", "connection", t.ID, "error", err)
	}
	err := <-removed
	w.holds.release()
	t.Record = nil
	f.monitor.Delete(t.ID)
	f.log.Info("wire "+why, "connection", t.ID, "left", w.left.String(), "right", w.right.String())
	return err
}

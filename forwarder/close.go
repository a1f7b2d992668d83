// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"context"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/openvwire/nsm/internal/backoff"
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
		if t.Record == nil || t.Record.adopted {
			f.passOn(ctx, call, spaceOf(t.Record))
		}
		switch {
		case t.Record == nil:
			return nil
		case t.Record.adopted:
			return f.drop(ctx, t, nil, "closed")
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

// passOn sends the Close of a connection that this forwarder does not know, as
// after a restart, to the endpoint that the connection names. The endpoint or its
// manager checks for itself whose connection it is. space is the endpoint's
// namespace, "" if not known.
func (f *Forwarder) passOn(ctx context.Context, call *hop.Call, space string) {
	name := call.Conn.GetNetworkServiceEndpointName()
	if name == "" || call.Conn.GetNextPathSegment() == nil {
		return
	}
	found, err := f.findEndpoints(ctx, &registry.NetworkServiceEndpoint{Name: name})
	if err != nil {
		f.log.Warn("close of an unknown connection not passed on", "connection", call.Conn.GetId(), "endpoint", name, "error", err)
		return
	}
	candidates := keep(found, []string{name}, "")
	defer releaseAll(candidates)
	for _, c := range candidates {
		p := f.config.Peers.Get(c.url)
		defer p.Release()
		closeCtx := ctx
		if c.local() {
			closeCtx = f.withSpace(ctx, space)
		}
		if err := hop.CloseAt(closeCtx, p, call.Conn); err != nil {
			f.log.Warn("close of an unknown connection not passed on", "connection", call.Conn.GetId(), "endpoint", name, "error", err)
		}
	}
}

// expire closes a connection that nobody refreshed in time, and tries again to
// remove what could not be removed.
func (f *Forwarder) expire(ctx context.Context, id string) {
	_ = f.wires.Do(ctx, id, func(t *conn.Turn[wire]) error {
		if !t.Expired() {
			return nil
		}
		return f.drop(ctx, t, nil, "expired")
	})
}

// removeTimeout bounds the removal of a wire from the kernel: a link takes the
// kernel about 20 ms, and many at a time wait for each other.
const removeTimeout = 30 * time.Second

// drop closes the path behind this hop, takes the wire out of the kernel and
// forgets it. The kernel and the next hop work at the same time: deleting a link
// takes the kernel some 20 ms. What the next hop answers keeps nothing alive.
//
// What the kernel does not let go of stays known, and is tried again.
func (f *Forwarder) drop(ctx context.Context, t *conn.Turn[wire], call *hop.Call, why string) error {
	w := t.Record
	removed := make(chan error, 1)
	f.removals.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		removed <- f.config.Kernel.Remove(ctx, w.desired)
	})
	if err := w.next.Close(f.withSpace(ctx, spaceOf(w)), call); err != nil {
		f.log.Warn("next hop did not close", "connection", t.ID, "error", err)
	}
	err := <-removed
	t.Record = nil
	f.monitor.Delete(t.ID)
	switch {
	case err != nil:
		f.keepRest(t, w, err)
	case w.stuck > 0:
		f.log.Info("rest of a wire removed", "connection", t.ID)
	default:
		f.log.Info("wire "+why, "connection", t.ID, "left", w.left.String(), "right", w.right.String())
	}
	w.holds.release()
	return err
}

// removeAgain spaces the attempts to remove what the kernel does not let go of.
var removeAgain = backoff.Policy{Min: time.Second, Max: time.Minute}

// keepRest keeps what it takes to remove a wire that could not be removed. Its
// numbers are free: the kernel itself tells who else would take them.
func (f *Forwarder) keepRest(t *conn.Turn[wire], w *wire, err error) {
	if w.stuck == 0 {
		f.log.Error("wire not removed, trying on", "connection", t.ID, "error", err)
	}
	f.adopt(t, w.desired, time.Now().Add(removeAgain.Delay(w.stuck)))
	t.Record.stuck = w.stuck + 1
}

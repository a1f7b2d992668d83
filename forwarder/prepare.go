// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"context"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/mechanism"
)

// prepare makes the WireGuard device of a new wire, or its interface in the tunnel, while the endpoint's side is
// being asked: a device takes about as long to make as the question to be answered.
// The caller calls join before it touches the kernel.
//
// The device waits for its parameters without a UDP socket: one that heard the other
// side's handshake before it knows of it, and then began its own, would meet it half
// way, and both would try again only after 5 s. A device that cannot be made is nothing
// to report: apply will fail likewise. One that is not needed after all is removed by
// discard, at the end of the Request.
func (f *Forwarder) prepare(ctx context.Context, r *task, l *leg) (join func()) {
	if r.turn.Record != nil || r.prepared != nil {
		return func() {}
	}
	w := &plan.Wire{
		ID: r.turn.ID, Owner: f.config.Name,
		Ends: []plan.End{{NetNS: r.left.space, Name: r.left.name, Side: plan.Client, MTU: l.mtu}},
	}
	kind, payload := ownKind(l.mech.Type)
	switch w.Payload = payload; {
	case l.tunnel != nil:
		w.Kind, w.Tunnel = plan.KindTunnel, &plan.Tunnel{Own: l.tunnel.Own, Wire: l.tunnel.Wire}
		if payload == plan.Ethernet {
			w.Ends[0].MAC = w.Tunnel.MAC(plan.Client)
		}
	case l.mech.Type == mechanism.TypeWireGuard:
		w.Kind, w.WireGuard = kind, &plan.WireGuard{}
	default:
		return func() {}
	}
	r.prepared = w
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := f.config.Kernel.Apply(ctx, *w); err != nil {
			f.log.Debug("device not made in advance", "connection", w.ID, "error", err)
		}
	}()
	return func() { <-done }
}

// discard removes a device that was prepared for a Request that has failed.
func (f *Forwarder) discard(ctx context.Context, r *task) {
	if r.prepared == nil || r.turn.Record != nil { // else it is the wire's
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := f.config.Kernel.Remove(ctx, *r.prepared); err != nil {
		f.keepRest(r.turn, &wire{desired: *r.prepared}, err)
	}
}

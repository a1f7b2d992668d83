// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/internal/undo"
	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
	hoppeer "github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Request makes or refreshes a wire (protocol.md §2.7, §3.3).
func (f *Forwarder) Request(ctx context.Context, req *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	if req.GetConnection().GetNetworkService() == "" {
		return nil, nserr.BadRequest.Errorf("the request names no network service")
	}
	if err := hop.ValidatePreferences(req.GetMechanismPreferences()); err != nil {
		return nil, err
	}
	call, err := f.hop.Admit(ctx, req.GetConnection())
	if err != nil {
		return nil, err
	}
	var out *networkservice.Connection
	err = f.wires.Do(ctx, call.Conn.GetId(), func(t *conn.Turn[wire]) error {
		var err error
		out, err = f.request(ctx, t, call, req.GetMechanismPreferences())
		if err != nil && t.Record != nil {
			f.monitor.Down(t.ID)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return call.Reply(out), nil
}

// task is one Request while it has its turn.
type task struct {
	turn   *conn.Turn[wire]
	known  *wire // what stands; nil if nothing does, or what is known of it does not suffice
	call   *hop.Call
	left   *leg
	asking *hop.Asking

	// anew: the client wants another path, or another service. What stands carries
	// packets until there is something to take its place.
	anew bool
	// plain: the tunnel that wires share has turned out not to be for this one.
	plain bool

	prepared *plan.Wire // see prepare; nil if none was
}

// request does the work of Request when it is the connection's turn.
func (f *Forwarder) request(ctx context.Context, t *conn.Turn[wire], call *hop.Call, prefs []*networkservice.Mechanism) (*networkservice.Connection, error) {
	known := t.Record
	if known != nil && known.adopted {
		known = nil
	}
	if known != nil {
		if err := known.binding.Check(call); err != nil {
			return nil, err
		}
	}
	anew := known != nil && hop.Anew(known.next.Conn, call.Conn)
	if anew && call.Conn.GetState() == networkservice.State_RESELECT_REQUESTED {
		f.suspects.wasLeft(known.endpoint(), time.Now())
	}
	left, err := f.openLeft(ctx, known, call, prefs)
	if err != nil {
		return nil, err
	}
	defer left.holds.release()
	r := &task{turn: t, known: known, call: call, left: left, asking: f.cleanup.Asking(), anew: anew}
	defer r.asking.End(ctx)
	defer f.discard(ctx, r)
	if c, ok := f.stay(call.Conn, known, anew); ok {
		defer c.holds.release()
		out, err := f.connectTwice(ctx, ctx, r, c)
		if err == nil || !errors.Is(err, nserr.EndpointGone) || ctx.Err() != nil {
			return out, err
		}
		// An endpoint that has restarted listens elsewhere.
		call.Conn.NetworkServiceEndpointName = c.name
	}
	return f.choose(ctx, r)
}

// patience is how long an endpoint may take to answer while there are others to be
// asked: tens of what a healthy path takes, and little enough for a wire to be
// healed within a second of which one endpoint was in vain.
const patience = 500 * time.Millisecond

// choose looks endpoints up and asks one after the other.
func (f *Forwarder) choose(ctx context.Context, r *task) (out *networkservice.Connection, err error) {
	candidates, err := f.candidates(ctx, r.call.Conn)
	if err != nil {
		return nil, err
	}
	defer releaseAll(candidates)
	failures := hop.InTurn(ctx, len(candidates), patience, func(limited context.Context, i int) (err error) {
		c := &candidates[i]
		if out, err = f.connectTwice(ctx, limited, r, c); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		return nil
	}, worthAnother)
	if len(failures) > 0 {
		what := fmt.Sprintf("all %d endpoints of %s have failed", len(failures), r.call.Conn.GetNetworkService())
		return nil, hop.AllFailed(nserr.EndpointsFailed, what, failures)
	}
	return out, nil
}

// connectTwice is connect, and again after a failure that is one of chance: a VNI
// that is in use here, which the other side will not choose again; a descriptor that
// did not come, as the reference now and then forgets one when it answers several
// Requests at once; a node that others say to be elsewhere.
func (f *Forwarder) connectTwice(ctx, limited context.Context, r *task, c *candidate) (*networkservice.Connection, error) {
	out, err := f.connect(ctx, limited, r, c)
	if errors.Is(err, errClaimed) {
		_ = f.withoutTunnel(r.turn.ID, "", err) // if it must be in the tunnel the error is another
		r.plain = true
	}
	if errors.Is(err, plan.ErrVNITaken) || errors.Is(err, nserr.NoDescriptor) || errors.Is(err, errClaimed) {
		out, err = f.connect(ctx, limited, r, c)
	}
	return out, err
}

// connect tries one endpoint: ask it for the right leg, make the wire, remember
// it. The endpoint's answer is waited for as long as limited lasts. Whatever it made
// for a failed attempt is undone; a wire that stood before stays as it was, but see apply.
func (f *Forwarder) connect(ctx, limited context.Context, r *task, c *candidate) (*networkservice.Connection, error) {
	t, known, call, left := r.turn, r.known, r.call, r.left
	right, err := f.offerRight(ctx, r, c)
	if err != nil {
		return nil, err
	}
	defer right.holds.release()

	p := f.config.Peers.Get(c.url)
	var u undo.Stack
	defer func() {
		if err := u.Run(ctx); err != nil {
			f.log.Warn("failed attempt not undone completely", "connection", t.ID, "error", err)
		}
	}()
	u.Add(func(context.Context) error { p.Release(); return nil })
	if right.stands {
		limited = f.withSpace(limited, spaceOf(known))
	}
	join := f.prepare(ctx, r, right)
	var at peer.Peer
	got, err := r.asking.Ask(limited, p, r.offer(right, c), grpc.Peer(&at))
	join()
	if errors.Is(err, nserr.PeerDown) && c.local() {
		err = nserr.EndpointGone.Errorf("endpoint %s does not answer: %w", c.name, err)
		f.confirm(ctx, c)
	}
	if err != nil {
		f.suspects.failed(c, err, time.Now())
		return nil, err
	}
	f.suspects.answered(c)
	if !right.stands { // what stood before stays, and so does its path
		u.Add(func(ctx context.Context) error {
			_, err := networkservice.NewNetworkServiceClient(p.Conn()).Close(f.withSpace(ctx, right.space), got)
			return err
		})
	}
	if err := f.acceptRight(ctx, known, right, got, &at); err != nil {
		return nil, err
	}
	if err := f.finishLeft(ctx, known, left, right, got); err != nil {
		return nil, err
	}
	want, err := desired(f.config.Name, t.ID, left, right, got)
	if err != nil {
		return nil, err
	}
	rest, err := f.apply(ctx, r, want)
	if err != nil {
		return nil, err
	}
	if left.renew || right.renew {
		if err := f.config.Kernel.RenewTunnel(ctx, want); err != nil {
			return nil, err
		}
	}
	u.Keep()
	w := &wire{binding: call.Binding, left: left.mech, right: right.mech, desired: want}
	if rest {
		w.lingers = time.Now().Add(linger)
	}
	w.own = ownKeysOf(left, right)
	w.holds.take(&left.holds, &right.holds, &c.holds)
	return f.establish(ctx, t, w, call, p, got), nil
}

// offer is the message that offers the leg to the endpoint. The mechanism is set
// when the leg stands already and is to stay, else it is one preference (§2.12).
func (r *task) offer(l *leg, to *candidate) *networkservice.NetworkServiceRequest {
	out := rpc.Shallow(r.call.Conn)
	if r.known != nil && r.known.next.Peer.URL() != to.url {
		hop.Trim(out) // what is behind is another hop's, until this one has answered
	}
	out.NetworkServiceEndpointName = to.name
	out.Payload = to.payload
	offer := hop.MechanismMessage(l.mech)
	out.Mechanism = nil
	if l.stands && !r.anew {
		out.Mechanism = offer
	}
	return &networkservice.NetworkServiceRequest{Connection: out, MechanismPreferences: []*networkservice.Mechanism{offer}}
}

// apply brings the kernel to what is wanted. A refresh that changes nothing makes no
// system call; whoever wants another path hears no packets, and that may be for damage
// here. What stood before stays if this fails, and if not until retire takes the
// rest of it, if there is any; but for what cannot be there at the same time
// (docs/adr/0006).
func (f *Forwarder) apply(ctx context.Context, r *task, want plan.Wire) (rest bool, err error) {
	t := r.turn
	same := t.Record != nil && t.Record.desired.Equal(want)
	if same && !r.anew {
		return false, nil
	}
	if err := f.spare(want); err != nil {
		return false, err
	}
	change := f.config.Kernel.Apply
	if t.Record != nil && !same {
		left := leaving(t.Record.desired, want)
		rest = len(left.Ends) > 0
		if !besides(left, want) {
			if err := f.config.Kernel.Remove(ctx, left); err != nil {
				return false, err
			}
			t.Record.desired = plan.Wire{ID: want.ID, Owner: want.Owner} // nothing, until the next succeeds
		}
		change = f.config.Kernel.Switch
	}
	steps, err := change(ctx, want)
	if err != nil {
		return false, err
	}
	f.log.Debug("kernel changed", "connection", t.ID, "steps", len(steps))
	return rest || plan.SetsAside(steps), nil
}

// establish puts w in the place of what was remembered, and publishes it.
func (f *Forwarder) establish(ctx context.Context, t *conn.Turn[wire], w *wire, call *hop.Call, p *hoppeer.Peer, got *networkservice.Connection) *networkservice.Connection {
	if t.Record != nil {
		var closed <-chan struct{}
		w.next = t.Record.next
		if w.next.Peer != nil && w.next.Peer != p { // the client wants another endpoint, or it has moved
			closed = w.next.CloseLater(f.withSpace(ctx, spaceOf(t.Record)), call, linger, f.cleanup) // nobody waits for it
		}
		f.retire(t.ID, t.Record, w, closed)
	} else {
		f.log.Info("wire up", "connection", t.ID, "service", got.GetNetworkService(), "owner", call.Binding.Owner,
			"endpoint", got.GetNetworkServiceEndpointName(), "left", w.left.String(), "right", w.right.String())
	}
	w.next.Hold(p, got, f.monitor)
	t.Record = w
	t.ExpireAt(call.Expiry(ctx))

	out := rpc.Shallow(got)
	out.Mechanism = hop.MechanismMessage(w.left)
	out.State = networkservice.State_UP
	// Both halves name their interface, as observers of old expect it (§2.12). A
	// tunnel stands in the workload's namespace: it is the interface of both.
	ends := w.desired.Ends
	hop.SetMetric(out, "server_interface", w.left.Shown()+"/"+ends[0].Name)
	hop.SetMetric(out, "client_interface", w.right.Shown()+"/"+ends[len(ends)-1].Name)
	f.monitor.Publish(out)
	return out
}

// worthAnother reports whether another endpoint could make a difference.
func worthAnother(err error) bool { return !nserr.From(err).Reason.AnyEndpoint() }

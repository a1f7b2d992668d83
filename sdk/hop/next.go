// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
)

// CloseTimeout bounds the clean-up of one connection, which goes on when the
// caller has given up.
const CloseTimeout = 5 * time.Second

// ReselectWait is how long whoever waits for another path waits for the end of the
// old one: what a Close takes on a healthy path, many times over.
const ReselectWait = 300 * time.Millisecond

// Next is what a hop keeps of the hop behind it for one connection: the peer,
// its last answer, and the subscription to what it tells about the connection.
// The holder of the connection's turn owns it.
type Next struct {
	Peer *peer.Peer
	Conn *networkservice.Connection // the last answer, in this hop's view; not to be changed

	unsubscribe func()
}

// Ask sends a Request to the next hop and checks the answer. When the answer is
// nonsense, or that to a first Request does not come, the next hop is told to
// close what it may have built: it knows the connection by the id it has here. Ask
// waits for that; a hop that has others to serve uses Asking.
func Ask(ctx context.Context, p *peer.Peer, req *networkservice.NetworkServiceRequest, opts ...grpc.CallOption) (*networkservice.Connection, error) {
	got, left, err := ask(ctx, p, req, opts...)
	if left {
		_ = CloseAt(ctx, p, req.GetConnection()) // as well as may be
	}
	return got, err
}

// ask reports in left whether the next hop may have built something that it is to
// close: in a first Request, which has nothing behind the own segment, or in any that
// it answers with nonsense.
func ask(ctx context.Context, p *peer.Peer, req *networkservice.NetworkServiceRequest, opts ...grpc.CallOption) (got *networkservice.Connection, left bool, err error) {
	got, err = networkservice.NewNetworkServiceClient(p.Conn()).Request(ctx, req, opts...)
	if err != nil {
		first := req.GetConnection().GetNextPathSegment() == nil
		return nil, first && unanswered(err), err
	}
	if err := checkReply(req.GetConnection(), got); err != nil {
		return nil, true, err
	}
	return got, false, nil
}

// unanswered reports whether the call may have been served in spite of err.
func unanswered(err error) bool {
	return nserr.From(err).Reason.Unanswered() || errors.Is(err, context.Canceled)
}

// Hold keeps an answer of p. It takes p over; the monitor relays what p tells
// about the connection until the next Hold with another peer, or Drop.
func (n *Next) Hold(p *peer.Peer, got *networkservice.Connection, m *Monitor) {
	if n.Peer != p {
		n.Drop()
		n.Peer = p
		n.unsubscribe = m.relay(p, got.GetId())
	} else {
		p.Release() // the one we have is the same, and counted once
	}
	n.Conn = got
}

// Drop forgets the next hop without telling it.
func (n *Next) Drop() {
	if n.Peer == nil {
		return
	}
	n.unsubscribe()
	n.Peer.Release()
	*n = Next{}
}

// Close tells the next hop that the connection is closed, and forgets it. call,
// if not nil, is the Close that arrived; its tokens are fresher than those of
// the last answer. What the next hop answers does not keep anything alive here.
func (n *Next) Close(ctx context.Context, call *Call) error {
	if n.Peer == nil {
		return nil
	}
	defer n.Drop()
	return CloseAt(ctx, n.Peer, n.lastWith(call))
}

// lastWith is the last answer with the tokens of call, if not nil. If call asks for
// another path, so does what is closed for it: whoever has given the connection
// something may keep it until it is back.
func (n *Next) lastWith(call *Call) *networkservice.Connection {
	if call == nil {
		return n.Conn
	}
	c := rpc.Shallow(n.Conn)
	c.Path.PathSegments = slices.Clone(c.Path.PathSegments)
	copy(c.Path.PathSegments, call.Conn.GetPath().GetPathSegments()[:call.Conn.GetPath().GetIndex()+1])
	if Anew(nil, call.Conn) {
		c.State = networkservice.State_RESELECT_REQUESTED
	}
	return c
}

// CloseSoon is Close that waits no longer than the given time for an answer: the
// next hop may be dead, and somebody waits for another path. It goes on in the
// background, and reports whether the answer came in time. Either way the caller trims
// its path: what comes next is a first Request.
func (n *Next) CloseSoon(ctx context.Context, call *Call, wait time.Duration, cleanup *Cleanup) (answered bool) {
	if n.Peer == nil {
		return true
	}
	n.unsubscribe() // first: that this path ends says nothing of the one that takes its place
	done := cleanup.close(ctx, n.Peer, n.lastWith(call), 0)
	n.Drop()
	select {
	case <-done:
		return true
	case <-time.After(wait):
		return false
	}
}

// CloseLater is Close that is sent after a while, in the background, unless the hop is
// asked again before: what is still under way there may arrive until then. done is
// closed when it was answered, or will not be sent.
func (n *Next) CloseLater(ctx context.Context, call *Call, after time.Duration, cleanup *Cleanup) (done <-chan struct{}) {
	n.unsubscribe()
	done = cleanup.close(ctx, n.Peer, n.lastWith(call), after)
	n.Drop()
	return done
}

// CloseAt sends a Close that survives the caller's giving up.
func CloseAt(ctx context.Context, p *peer.Peer, conn *networkservice.Connection) error {
	return closeUntil(context.WithoutCancel(ctx), p, conn)
}

// closeUntil sends a Close that ends with ctx.
func closeUntil(ctx context.Context, p *peer.Peer, conn *networkservice.Connection) error {
	ctx, cancel := context.WithTimeout(ctx, CloseTimeout)
	defer cancel()
	_, err := networkservice.NewNetworkServiceClient(p.Conn()).Close(ctx, conn)
	return err
}

// relay makes p's events about a connection this hop's own (§2.11): the path
// behind this hop, the context and the state are taken over, a Delete or the
// loss of the peer is a DOWN. An event that does not fit changes nothing.
func (m *Monitor) relay(p *peer.Peer, id string) (cancel func()) {
	return p.Subscribe(id, func(e peer.Event) {
		switch {
		case e.Kind == peer.Lost, e.Kind == peer.Down && e.Conn.GetPath() == nil:
			m.Down(id)
		case e.Kind == peer.Update && m.asTold(id, e.Conn):
			// As with most events: a refresh has passed here, and its answer said more.
		case e.Kind == peer.Down, e.Kind == peer.Update:
			var wrong string
			m.Amend(id, func(c *networkservice.Connection) bool {
				if wrong = misfit(c, e.Conn); wrong != "" {
					return false
				}
				if e.Kind == peer.Down {
					return becomeDown(c)
				}
				return takeOver(c, e.Conn)
			})
			if wrong != "" && wrong != late {
				p.Ignore(id, wrong)
			}
		}
	})
}

// late is what is wrong with an event that was true once. That happens: it comes on
// another stream than the answers.
const late = "it is older than what is known"

// misfit says why an event of the next hop is not about the connection as it is, "" if
// it is.
func misfit(own, event *networkservice.Connection) string {
	index := int(own.GetPath().GetIndex())
	segments := event.GetPath().GetPathSegments()
	switch at := int(event.GetPath().GetIndex()); {
	case len(segments) <= index || segments[index].GetId() != own.GetId():
		return "it is of another connection"
	case at != index && at != index+1:
		return "it is of another hop"
	case validateContext(event.GetContext()) != nil || validatePath(event.GetPath()) != nil:
		return "it is not well-formed"
	case older(own.GetPath().GetPathSegments(), segments, index+1):
		return late
	}
	return ""
}

// older reports whether the hop at index, if it is the same, had a token then that ends
// before the one it has now.
func older(own, told []*networkservice.PathSegment, index int) bool {
	if len(own) <= index || len(told) <= index || !sameSegment(own[index], told[index]) {
		return false
	}
	is, was := own[index].GetExpires(), told[index].GetExpires()
	return is != nil && was != nil && was.AsTime().Before(is.AsTime())
}

// asTold reports whether the connection is what an event of the next hop that fits
// says.
func (m *Monitor) asTold(id string, event *networkservice.Connection) bool {
	v, ok := m.Get(id)
	return ok && misfit(v.conn, event) == "" && asTold(v.conn, event)
}

// asTold reports whether an event that fits makes no difference to own. Until when
// tokens behind this hop are good makes none: they change with every refresh, whose
// answer says so.
func asTold(own, event *networkservice.Connection) bool {
	index := int(own.GetPath().GetIndex())
	return own.GetState() == event.GetState() &&
		samePath(own.GetPath().GetPathSegments()[index+1:], event.GetPath().GetPathSegments()[index+1:]) &&
		rpc.EqualContexts(own.GetContext(), narrowed(event.GetContext(), own.GetContext().GetMTU()))
}

// takeOver changes own to what an event of the next hop that fits says, and reports
// whether that makes a difference.
func takeOver(own, event *networkservice.Connection) bool {
	if asTold(own, event) {
		return false
	}
	index := int(own.GetPath().GetIndex())
	event = rpc.Clone(event)
	own.Path.PathSegments = append(own.Path.PathSegments[:index+1], event.Path.PathSegments[index+1:]...)
	hideTokens(own)
	own.Context = narrowed(event.GetContext(), own.GetContext().GetMTU())
	own.State = event.GetState()
	return true
}

// narrowed is what a hop makes of the context it is told: its own limit, where
// packets cannot be as large as the hops behind it think (protocol.md §2.16).
func narrowed(c *networkservice.ConnectionContext, mtu uint32) *networkservice.ConnectionContext {
	if mtu == 0 || c.GetMTU() != 0 && c.GetMTU() <= mtu {
		return c
	}
	return WithMTU(c, mtu)
}

// WithMTU returns c if it has the MTU, else a copy that has.
func WithMTU(c *networkservice.ConnectionContext, mtu uint32) *networkservice.ConnectionContext {
	if c != nil && c.MTU == mtu {
		return c
	}
	if c = proto.CloneOf(c); c == nil {
		c = &networkservice.ConnectionContext{}
	}
	c.MTU = mtu
	return c
}

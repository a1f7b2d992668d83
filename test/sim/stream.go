// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Told is an event of a monitor stream on its way.
type Told struct {
	From  string // URL of who tells
	To    string // name of who listens
	Event *networkservice.ConnectionEvent
}

// EventFate is what becomes of an event.
type EventFate int

// The fates of events. gRPC loses none and keeps their order; a hop that is
// written by somebody else need not.
const (
	Tell      EventFate = iota
	DropEvent           // nobody hears of it
	TellTwice           // it comes twice
	TellLater           // it comes after the next one
)

func (f EventFate) String() string {
	return []string{"told", "lost", "doubled", "swapped"}[f]
}

// SetEventFate has f decide about every event of every monitor stream from now on,
// nil delivers them all. It must not block.
func (n *Network) SetEventFate(f func(Told) EventFate) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.eventFate = f
}

// Forge has who listens hear an event that nobody has told, on each of its streams
// from there. It returns how many these are.
func (n *Network) Forge(t Told) (streams int) {
	n.mu.Lock()
	var hearing []*heard
	for h := range n.hearing {
		if h.from == t.From && h.to == t.To {
			hearing = append(hearing, h)
		}
	}
	n.mu.Unlock()
	for _, h := range hearing {
		select {
		case h.came <- received{event: proto.CloneOf(t.Event)}:
		case <-h.Context().Done():
		}
	}
	return len(hearing)
}

// heard is the listener's side of a monitor stream.
type heard struct {
	grpc.ClientStream
	network  *Network
	from, to string
	came     chan received

	// Owned by the listener:
	later *networkservice.ConnectionEvent   // comes after the next one
	ready []*networkservice.ConnectionEvent // to be returned
}

// received is what came on a stream.
type received struct {
	event *networkservice.ConnectionEvent
	err   error
}

// hear returns the stream with what becomes of its events.
func (n *Network) hear(stream grpc.ClientStream, from, to string) grpc.ClientStream {
	h := &heard{ClientStream: stream, network: n, from: from, to: to, came: make(chan received)}
	n.mu.Lock()
	n.hearing[h] = true
	n.mu.Unlock()
	go h.pump()
	return h
}

// pump takes in what is told, until the stream or its listener is gone.
func (h *heard) pump() {
	defer func() {
		h.network.mu.Lock()
		defer h.network.mu.Unlock()
		delete(h.network.hearing, h)
	}()
	for {
		r := received{event: new(networkservice.ConnectionEvent)}
		r.err = h.ClientStream.RecvMsg(r.event)
		select {
		case h.came <- r:
		case <-h.Context().Done():
			return
		}
		if r.err != nil {
			return
		}
	}
}

// RecvMsg implements grpc.ClientStream.
func (h *heard) RecvMsg(m any) error {
	for len(h.ready) == 0 {
		var r received
		select {
		case r = <-h.came:
		case <-h.Context().Done():
			return silence(h.Context())
		}
		if r.err != nil {
			return r.err
		}
		if err := h.network.pass(h.Context(), h.network.nameAt(h.from), h.to, ""); err != nil {
			return err
		}
		switch h.network.eventFateOf(Told{From: h.from, To: h.to, Event: r.event}) {
		case DropEvent:
			continue
		case TellTwice:
			h.ready = append(h.ready, r.event, r.event)
		case TellLater:
			if h.later == nil {
				h.later = r.event
				continue
			}
			h.ready = append(h.ready, r.event)
		default:
			h.ready = append(h.ready, r.event)
		}
		if h.later != nil {
			h.ready, h.later = append(h.ready, h.later), nil
		}
	}
	out := m.(proto.Message)
	proto.Reset(out)
	proto.Merge(out, h.ready[0])
	h.ready = h.ready[1:]
	return nil
}

func (n *Network) eventFateOf(t Told) EventFate {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.eventFate == nil {
		return Tell
	}
	return n.eventFate(t)
}

// SetCut has messages not get from one part to another while f says so: they wait, as
// on a network that drops packets and a sender that repeats them. nil ends all that.
// Streams that stand go on standing. f must not block.
func (n *Network) SetCut(f func(from, to string) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = f
	close(n.healed)
	n.healed = make(chan struct{})
}

// Freeze has a part neither hear nor answer, nor say anything of its own, until SetCut:
// its process is stopped. (It still sees time pass.)
func (n *Network) Freeze(names ...string) {
	frozen := make(map[string]bool)
	for _, name := range names {
		frozen[name] = true
	}
	n.SetCut(func(from, to string) bool { return frozen[from] || frozen[to] })
}

// Deafen has nothing get from node n to the other one, until SetCut; what comes from
// there is heard.
func (n *Node) Deafen(other *Node) {
	here, there := n.names(), other.names()
	n.mesh.Network.SetCut(func(from, to string) bool { return here[from] && there[to] })
}

// names are those of all parts of the node, as it is now.
func (n *Node) names() map[string]bool {
	names := map[string]bool{"manager-" + n.Name: true}
	for _, f := range n.forwarders {
		names[f.name] = true
	}
	for _, e := range n.endpoints {
		names[e.name] = true
	}
	for _, c := range n.clients {
		names[c.name] = true
	}
	return names
}

// Hold has all calls of a method wait, and their answers, "" no more. f of SetFate and
// SetServed may call it.
func (n *Network) Hold(method string) {
	n.holding.Lock()
	defer n.holding.Unlock()
	n.held = method
	close(n.released)
	n.released = make(chan struct{})
}

// pass waits until messages get from one part to the other: those of a method, "" if
// they are of a stream.
func (n *Network) pass(ctx context.Context, from, to, method string) error {
	for {
		n.mu.Lock()
		cut, healed := n.cut != nil && n.cut(from, to), n.healed
		n.mu.Unlock()
		n.holding.Lock()
		held, released := method != "" && n.held == method, n.released
		n.holding.Unlock()
		if !cut && !held {
			return nil
		}
		select {
		case <-healed:
		case <-released:
		case <-ctx.Done():
			return silence(ctx)
		}
	}
}

// gated is a stream on a network with cuts.
type gated struct {
	grpc.ClientStream
	link *link
}

// RecvMsg implements grpc.ClientStream.
func (g gated) RecvMsg(m any) error {
	if err := g.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	network := g.link.from.mesh.Network
	return network.pass(g.Context(), network.nameAt(g.link.url), g.link.from.name, "")
}

// nameAt is the name of who listens at a URL, or did.
func (n *Network) nameAt(url string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.names[url]
}

// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
)

// tunnel is this node's end of the tunnel that all its wires to other nodes share: one
// WireGuard device, which has each of them for a peer (docs/adr/0008). What is in here
// is what the device has; it is made when the first wire wants it, with a key and an id
// made up then, and outlives this process.
type tunnel struct {
	opening sync.Mutex // held across the kernel's work

	mu    sync.Mutex
	own   plan.TunnelNode      // guarded by mu; zero: not opened by this process yet
	keys  mechanism.KeyPair    // guarded by mu; of own
	port  func()               // guarded by mu; releases own.Port in numbers
	peers map[uint32]*claimant // guarded by mu; by id
}

// claimant is another node, as those have told of it who asked for wires with it.
type claimant struct {
	peer  plan.TunnelPeer // Wire is 0
	whose string          // the node or identity that was the first to tell
	wires int
}

// openTunnel returns this node's end of the tunnel. A wire that is in it already asks no
// kernel.
func (f *Forwarder) openTunnel(ctx context.Context, known *wire) (plan.TunnelNode, error) {
	if f.config.NoTunnel {
		return plan.TunnelNode{}, nserr.Unsupported.Errorf("tunnels are switched off")
	}
	own := f.tunnel.opened()
	if own != (plan.TunnelNode{}) && known != nil && known.desired.Tunnel != nil {
		return own, nil
	}
	f.tunnel.opening.Lock()
	defer f.tunnel.opening.Unlock()
	own = f.tunnel.opened()
	got, err := f.askForTunnel(ctx, own)
	if errors.Is(err, nserr.AddressInUse) { // it was gone, and somebody else has taken its port
		own.Port = 0
		got, err = f.askForTunnel(ctx, own)
	}
	if err != nil {
		return plan.TunnelNode{}, err
	}
	return got, nil
}

// askForTunnel has the kernel make the tunnel as wanted, unless it has one, and
// remembers what there is. The caller holds opening.
func (f *Forwarder) askForTunnel(ctx context.Context, want plan.TunnelNode) (plan.TunnelNode, error) {
	release := func() {}
	if want.Port == 0 {
		port, free, err := f.numbers.choosePort()
		if err != nil {
			return plan.TunnelNode{}, err
		}
		want.Port, release = port, free
	}
	if want.ID == 0 {
		want.PrivateKey, want.ID = mechanism.NewPrivateKey(), someNumber()
	}
	got, err := f.config.Kernel.OpenTunnel(ctx, want)
	if err == nil && got != f.tunnel.opened() {
		f.tunnel.set(got, f.numbers.holdPort(got.Port))
	}
	release()
	return got, err
}

// someNumber is a number for a node or a wire. It is not only unlike others, nobody
// guesses it either: a node that leads a wire to a number of somebody else finds none.
func someNumber() uint32 { return 1 + rand.Uint32N(1<<32-1) }

func (t *tunnel) opened() plan.TunnelNode {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.own
}

func (t *tunnel) set(own plan.TunnelNode, port func()) {
	keys := mechanism.PairOf(own.PrivateKey)
	t.mu.Lock()
	old := t.port
	t.own, t.port, t.keys = own, port, keys
	t.mu.Unlock()
	if old != nil {
		old()
	}
}

// close releases the tunnel's port in numbers. The device stays.
func (t *tunnel) close() { t.set(plan.TunnelNode{}, nil) }

// maxNodes is as many nodes as one identity may claim to be at a time. A node is one, and
// two while it is replaced: its key and id are new then, and the wires of its earlier life
// are there until they expire.
const maxNodes = 4

// errClaimed says that a node's key or id is another one's, or told by somebody who may not,
// or who has told of too many: without the tunnel there can be a wire.
var errClaimed = errors.New("no place in the tunnel for who claims this")

// claim is that of the tunnel, of what the last of ids has told, by way of the others: that
// it was the last is their word.
func (f *Forwarder) claim(p plan.TunnelPeer, ids ...string) (release func(), err error) {
	for _, id := range ids {
		if f.config.MayTunnel != nil && !f.config.MayTunnel(id) {
			return nil, nserr.NotAllowed.Errorf("%q may not tell of node id %d in the tunnel: %w", id, p.ID, errClaimed)
		}
	}
	return f.tunnel.claim(p, nodeOf(ids[len(ids)-1]))
}

// claim notes that a wire is wanted to a node, of which whose has told. The first who
// tells of a node owns its key and id for as long as there are wires to it: all others
// must tell the same. So nobody can lead other nodes' wires astray. Nor can anybody have
// this node call as many others as he likes to make up.
func (t *tunnel) claim(p plan.TunnelPeer, whose string) (release func(), err error) {
	p.Wire = 0
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.ID == t.own.ID || mechanism.Key(p.Key) == t.keys.Public {
		return nil, nserr.BadMechanism.Errorf("node id %d, or the key: it is this node's: %w", p.ID, errClaimed)
	}
	c := t.peers[p.ID]
	switch {
	case c == nil && t.hasKey(p.Key), c != nil && c.peer.Key != p.Key:
		return nil, nserr.BadMechanism.Errorf("node id %d with another key: %w", p.ID, errClaimed)
	case c == nil && t.nodesOf(whose) >= maxNodes:
		return nil, nserr.BadMechanism.Errorf("node id %d: %q has told of %d others to which there are wires: %w", p.ID, whose, maxNodes, errClaimed)
	case c == nil:
		c = &claimant{peer: p, whose: whose}
		t.peers[p.ID] = c
	case c.peer.Endpoint != p.Endpoint && c.whose != whose:
		return nil, nserr.BadMechanism.Errorf("node id %d at %v, as %q says, is at %v, as %q has said: %w",
			p.ID, p.Endpoint, whose, c.peer.Endpoint, c.whose, errClaimed)
	}
	c.peer = p
	c.wires++
	return sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if c.wires--; c.wires == 0 {
			delete(t.peers, p.ID)
		}
	}), nil
}

// nodesOf is of how many nodes whose was the first to tell. It wants mu held.
func (t *tunnel) nodesOf(whose string) (n int) {
	for _, c := range t.peers {
		if c.whose == whose {
			n++
		}
	}
	return n
}

// hasKey wants mu held.
func (t *tunnel) hasKey(key [32]byte) bool {
	for _, c := range t.peers {
		if c.peer.Key == key {
			return true
		}
	}
	return false
}

// nodeOf is whom an identity speaks for: its node, if it is a part of one, as manager
// and forwarder are; else itself.
func nodeOf(id string) string {
	parsed, err := spiffeid.FromString(id)
	if err != nil {
		return id
	}
	if node, part, ok := identity.NodeOf(parsed); ok && part {
		return parsed.TrustDomain().IDString() + "/node/" + node
	}
	return id
}

// errOwnDevice is why a wire is not in the tunnel that has been made beside it.
var errOwnDevice = nserr.Unsupported.Errorf("the wire has a device of its own")

// tunnelFor returns this node's end of the tunnel if it may be offered for a wire, or why
// not. One that has a device of its own is left alone, unless it is made anew.
func (f *Forwarder) tunnelFor(ctx context.Context, t *task) (plan.TunnelNode, error) {
	if t.plain || t.known != nil && t.known.desired.Tunnel == nil && !t.anew {
		return plan.TunnelNode{}, errOwnDevice
	}
	return f.openTunnel(ctx, t.known)
}

// offerShared offers that the leg towards the endpoint is in the tunnel. why says what is
// against it.
func (f *Forwarder) offerShared(ctx context.Context, t *task, r *leg, own plan.TunnelNode, why error) error {
	r.mech = r.mech.WithShared(mechanism.Shared{}, mechanism.Shared{})
	if why == nil && r.ownDevice {
		why = errOwnDevice
	}
	if why != nil {
		return f.withoutTunnel(t.call.Conn.GetId(), r.mech.Type, why)
	}
	r.tunnel = &plan.Tunnel{Own: own, Wire: f.numberOf(ctx, t.known, t.left.space, t.call.Conn.GetId()), Calls: true}
	r.renew = t.anew && f.outlived(ctx, t.known)
	r.mech = r.mech.WithShared(f.tunnel.half(r.tunnel), mechanism.Shared{})
	return nil
}

// withoutTunnel says why a wire is not in the tunnel. It is an error if the wire must be.
func (f *Forwarder) withoutTunnel(id, mechanismType string, why error) error {
	if err := f.inClear(mechanismType, nserr.From(why).Msg); err != nil {
		return err
	}
	if !errors.Is(why, nserr.Unsupported) {
		f.log.Warn("wire is not in the tunnel", "connection", id, "error", why)
	}
	return nil
}

// inClear refuses a wire to another node outside of the tunnel if its packets would not be
// encrypted there, and must be. With payload IP they are: it has a WireGuard device.
func (f *Forwarder) inClear(mechanismType, why string) error {
	if !f.config.Encrypted || mechanismType != mechanism.TypeVXLAN {
		return nil
	}
	return nserr.NotEncrypted.Errorf("%s demands encryption, and a wire with payload ETHERNET has none outside of the tunnel of the two nodes: %s", f.config.Name, why)
}

// numberOf is the number by which this end of a wire receives: the one that it has in
// this namespace, that of an interface which an earlier life of this forwarder left, or a
// new one. So an end that moves can be in both places until nothing is under way.
func (f *Forwarder) numberOf(ctx context.Context, known *wire, space, id string) uint32 {
	if known != nil && known.desired.Tunnel != nil && slices.ContainsFunc(known.desired.Ends, func(e plan.End) bool { return e.NetNS == space }) {
		return known.desired.Tunnel.Wire
	}
	if known == nil {
		if number, ok := f.config.Kernel.TunnelWire(ctx, space, id); ok {
			return number
		}
	}
	return someNumber()
}

// half is what this node says of its end of a wire.
func (t *tunnel) half(of *plan.Tunnel) mechanism.Shared {
	return mechanism.Shared{Key: t.public(of.Own.PrivateKey), Port: of.Own.Port, Node: of.Own.ID, Wire: of.Wire}
}

func (t *tunnel) public(private mechanism.Key) mechanism.Key {
	t.mu.Lock()
	keys := t.keys
	t.mu.Unlock()
	if private == keys.Private {
		return keys.Public
	}
	return private.Public() // it was opened anew just now
}

// peerOf is what the other node has said of its end.
func peerOf(s mechanism.Shared, at netip.Addr) plan.TunnelPeer {
	return plan.TunnelPeer{Key: s.Key, ID: s.Node, Endpoint: netip.AddrPortFrom(at, s.Port), Wire: s.Wire}
}

// acceptSharedLeft accepts the tunnel for the leg towards the client if its side has
// offered it, and nothing is in the way; false means that the wire gets a device of its
// own. Which number it has is settled with its namespace, by finishSharedLeft.
func (f *Forwarder) acceptSharedLeft(ctx context.Context, l *leg, known *wire, call *hop.Call) (bool, error) {
	theirs, _, err := l.mech.Shared()
	if err != nil {
		return false, err
	}
	l.mech = l.mech.WithShared(theirs, mechanism.Shared{})
	anew := known != nil && hop.Anew(known.next.Conn, call.Conn)
	if theirs.IsZero() {
		return false, f.inClear(l.mech.Type, "the client's node has not offered it; its log may say why")
	}
	if known != nil && known.desired.Tunnel == nil && !anew {
		return false, f.inClear(l.mech.Type, errOwnDevice.Msg)
	}
	said, err := l.mech.Tunnel()
	if err != nil {
		return false, err
	}
	if !said.Src.IsValid() {
		return false, nserr.BadMechanism.Errorf("%s: src_ip is missing", l.mech.Type)
	}
	own, err := f.openTunnel(ctx, known)
	if err != nil {
		return false, f.withoutTunnel(call.Conn.GetId(), l.mech.Type, err)
	}
	peer := peerOf(theirs, said.Src.Addr())
	release, err := f.claim(peer, call.Senders()...)
	if err != nil {
		return false, f.withoutTunnel(call.Conn.GetId(), l.mech.Type, err)
	}
	l.holds.add(release)
	l.tunnel = &plan.Tunnel{Own: own, Peer: peer}
	l.renew = anew && f.outlived(ctx, known)
	uplink, err := f.uplinkMTU(known)
	if err != nil {
		return false, err
	}
	// The client's side says what would fit into a device of the wire's own.
	kind, payload := ownKind(l.mech.Type)
	uplink = plan.MinMTU(uplink, plan.UplinkMTU(said.MTU, kind, f.config.TunnelIP))
	l.mtu = plan.SharedMTU(uplink, payload, f.config.TunnelIP)
	return true, nil
}

// ownKind is what a mechanism between nodes makes for a wire of its own, and for which
// payload.
func ownKind(mechanismType string) (plan.Kind, string) {
	if mechanismType == mechanism.TypeVXLAN {
		return plan.KindVXLAN, plan.Ethernet
	}
	return plan.KindWireGuard, plan.IP
}

// finishSharedLeft is the answer.
func (f *Forwarder) finishSharedLeft(ctx context.Context, l *leg, known *wire, space, id string) error {
	said, err := l.mech.Tunnel()
	if err != nil {
		return err
	}
	theirs, _, err := l.mech.Shared()
	if err != nil {
		return err
	}
	l.tunnel.Wire = f.numberOf(ctx, known, space, id)
	said.Dst, said.MTU = netip.AddrPortFrom(f.config.TunnelIP, 0), l.mtu
	l.mech = said.With(l.mech).WithShared(theirs, f.tunnel.half(l.tunnel))
	return nil
}

// acceptSharedRight takes an answer that accepts the tunnel; id is who has given it.
func (f *Forwarder) acceptSharedRight(known *wire, r *leg, m mechanism.Mechanism, theirs mechanism.Shared, id string) error {
	if r.tunnel == nil {
		return nserr.BadMechanism.Errorf("it accepts a tunnel that was not offered")
	}
	said, err := m.Tunnel()
	if err != nil {
		return err
	}
	if !said.Dst.IsValid() {
		return nserr.BadMechanism.Errorf("dst_ip is missing")
	}
	r.tunnel.Peer = peerOf(theirs, said.Dst.Addr())
	release, err := f.claim(r.tunnel.Peer, id)
	if err != nil {
		if refused := f.inClear(m.Type, nserr.From(err).Msg); refused != nil {
			return refused // no second attempt, without the tunnel
		}
		return err
	}
	r.holds.add(release)
	uplink, err := f.uplinkMTU(known)
	if err != nil {
		return err
	}
	_, payload := ownKind(m.Type)
	r.mtu = plan.MinMTU(plan.SharedMTU(uplink, payload, f.config.TunnelIP), said.MTU)
	r.mech = m.WithShared(f.tunnel.half(r.tunnel), theirs)
	return nil
}

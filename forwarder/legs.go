// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc/peer"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// leg is one half of a wire: towards the client (left) or towards the endpoint
// (right). A local leg ends in a workload's namespace, a remote one in a tunnel
// to another forwarder.
type leg struct {
	mech   mechanism.Mechanism // as it stands on the wire; parameters of an earlier answer are kept
	stands bool                // right: the endpoint has answered for it before
	holds  holdings

	// KERNEL
	space string // namespace, a key of Config.Namespaces
	name  string // of the interface in it

	// VXLAN and WIREGUARD
	local, remote netip.AddrPort
	mtu           int // inside the tunnel
	vni           uint32
	offered       bool // left: the client's forwarder has named the VNI
	keys          mechanism.KeyPair
	peer          mechanism.Key
	ownDevice     bool // the kernel has a device of this wire alone, from an earlier life

	// In the tunnel that all wires share; while it is offered, what stands above is settled
	// too, in case that it is not accepted.
	tunnel *plan.Tunnel // nil: not in it
	renew  bool         // the session with the peer has been dead for long
}

func (l *leg) isLocal() bool { return l.mech.Type == mechanism.TypeKernel }

// openLeft settles the leg towards the client as far as that is possible before
// the endpoint has answered: with the first of the client's mechanisms that can be
// built.
func (f *Forwarder) openLeft(ctx context.Context, known *wire, call *hop.Call, prefs []*networkservice.Mechanism) (*leg, error) {
	choices, err := mechanism.Choose(hop.MechanismOf(call.Conn.GetMechanism()), hop.MechanismsOf(prefs), func(m mechanism.Mechanism) bool {
		return f.supportsLeft(m, call.Conn.GetPayload())
	})
	if err != nil {
		return nil, err
	}
	var failures []error
	for _, m := range choices {
		l, err := f.openLeftWith(ctx, known, call, m)
		if err == nil {
			return l, nil
		}
		failures = append(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	if len(failures) == 1 {
		return nil, failures[0]
	}
	// What the client likes best says what is wrong.
	first := nserr.From(failures[0])
	texts := make([]string, len(failures))
	for i, err := range failures {
		texts[i] = choices[i].Type + ": " + err.Error()
	}
	return nil, first.Reason.Errorf("no mechanism can be built: %s", strings.Join(texts, "; ")).WithFix("%s", first.HowToFix())
}

func (f *Forwarder) openLeftWith(ctx context.Context, known *wire, call *hop.Call, m mechanism.Mechanism) (l *leg, err error) {
	l = &leg{mech: m}
	defer func() {
		if err != nil {
			l.holds.release()
		}
	}()
	switch m.Type {
	case mechanism.TypeKernel:
		return l, f.openLeftKernel(ctx, l, call)
	}
	said, err := m.Tunnel()
	if err == nil {
		err = f.elsewhere(said.Src.Addr())
	}
	if err != nil {
		return l, err
	}
	if shared, err := f.acceptSharedLeft(ctx, l, known, call); shared || err != nil {
		return l, err
	}
	if m.Type == mechanism.TypeVXLAN {
		return l, f.openLeftVXLAN(l, known)
	}
	return l, f.openLeftWireGuard(l, known)
}

// elsewhere refuses this node's own address for that of another: packets to it would come
// back here. Nodes that share a loopback address are told apart by their ports.
func (f *Forwarder) elsewhere(at netip.Addr) error {
	if at.IsValid() && at == f.config.TunnelIP && !at.IsLoopback() {
		return nserr.BadMechanism.Errorf("%s is the address of this node, not of another", at)
	}
	return nil
}

func (f *Forwarder) supportsLeft(m mechanism.Mechanism, payload string) bool {
	switch m.Type {
	case mechanism.TypeKernel:
		return m.Class == mechanism.Local
	case mechanism.TypeVXLAN:
		return m.Class == mechanism.Remote && payload != mechanism.PayloadIP && f.config.TunnelIP.IsValid()
	case mechanism.TypeWireGuard:
		return m.Class == mechanism.Remote && payload != mechanism.PayloadEthernet && f.config.TunnelIP.IsValid()
	}
	return false
}

func (f *Forwarder) openLeftKernel(ctx context.Context, l *leg, call *hop.Call) error {
	k, err := l.mech.Kernel()
	if err != nil {
		return err
	}
	if k.NetNS == "" {
		return nserr.NoDescriptor.Errorf("KERNEL: inodeURL is missing, so the client's network namespace is not known")
	}
	file, err := rpc.ReceiveFile(ctx, k.NetNS)
	if err != nil {
		return err
	}
	if l.space, err = f.config.Namespaces.Add(file); err != nil {
		return err
	}
	l.holds.add(func() { f.config.Namespaces.Release(l.space) })
	if err := f.checkSpace(l.space, call.Senders()...); err != nil {
		return err
	}
	if k.Name == "" {
		k.Name = mechanism.InterfaceName(call.Conn.GetNetworkService(), "client "+call.Conn.GetId())
	}
	l.name = k.Name
	l.mech = k.With(l.mech)
	return nil
}

// checkSpace refuses the node's own namespace unless it is for all of those who
// have sent it. Who the connection's owner is does not count: that is the word of
// hops in between.
func (f *Forwarder) checkSpace(space string, senders ...string) error {
	if space != f.config.Namespaces.Self().Key() {
		return nil
	}
	for _, id := range senders {
		if !f.config.MayUseNode(id) {
			return nserr.NotAllowed.Errorf("%s may not have interfaces in the node's own network namespace", id).
				WithFix("give the workload a namespace of its own ('nsm connect ... -- COMMAND'), or name the identity with --node-users at the forwarder")
		}
	}
	return nil
}

// openLeftVXLAN answers a client's forwarder: this side chooses the VNI, and
// keeps it for as long as the wire lives, its own restart included (but see finishLeft).
func (f *Forwarder) openLeftVXLAN(l *leg, known *wire) error {
	v, err := l.mech.VXLAN()
	if err != nil {
		return err
	}
	if !v.Src.IsValid() {
		return nserr.BadMechanism.Errorf("VXLAN: src_ip is missing")
	}
	v.Dst, l.offered = netip.AddrPortFrom(f.config.TunnelIP, f.config.VXLANPort), v.VNI != 0
	if v.VNI == 0 && known != nil && known.desired.VXLAN != nil && known.desired.VXLAN.Remote == v.Src.Addr() {
		v.VNI = known.desired.VXLAN.VNI // the client's forwarder has forgotten it
	}
	mine := known != nil && known.desired.VXLAN != nil && known.desired.VXLAN.VNI == v.VNI
	var release func()
	if v.VNI != 0 {
		if release, err = f.numbers.holdVNI(v.VNI, mine); err != nil {
			v.VNI = 0 // somebody else's meanwhile: choose another
		}
	}
	if v.VNI == 0 {
		v.VNI, release = f.numbers.chooseVNI(v.Parity())
	}
	l.holds.add(release)
	l.vni, l.local, l.remote = v.VNI, v.Dst, v.Src
	if err := f.tunnelMTU(l, known, plan.KindVXLAN, v.MTU); err != nil {
		return err
	}
	v.MTU = l.mtu
	l.mech = v.With(l.mech)
	return nil
}

func (f *Forwarder) openLeftWireGuard(l *leg, known *wire) error {
	w, err := l.mech.WireGuard()
	if err != nil {
		return err
	}
	if !w.Src.IsValid() || w.SrcKey.IsZero() {
		return nserr.BadMechanism.Errorf("WIREGUARD: src_ip or src_public_key is missing")
	}
	l.remote, l.peer = withPort(w.Src, mechanism.DefaultWireGuardPort), w.SrcKey
	return f.tunnelMTU(l, known, plan.KindWireGuard, w.MTU)
}

func withPort(a netip.AddrPort, port uint16) netip.AddrPort {
	if a.Port() == 0 {
		return netip.AddrPortFrom(a.Addr(), port)
	}
	return a
}

// tunnelMTU sets what fits through the tunnel: the least of what this node's
// underlay takes and what the peer says. A wire that is known asks no kernel: what
// has changed meanwhile is seen when wires are reconciled, or the next one is made.
func (f *Forwarder) tunnelMTU(l *leg, known *wire, kind plan.Kind, peers int) error {
	uplink, err := f.uplinkMTU(known)
	l.mtu = plan.MinMTU(plan.TunnelMTU(uplink, kind, f.config.TunnelIP), peers)
	return err
}

// uplinkMTU is what the underlay takes.
func (f *Forwarder) uplinkMTU(known *wire) (int, error) {
	if uplink := int(f.uplink.Load()); known != nil && uplink != 0 {
		return uplink, nil
	}
	return f.readUplinkMTU()
}

// readUplinkMTU asks the kernel what the underlay takes, and remembers it, and says when
// that has changed.
func (f *Forwarder) readUplinkMTU() (int, error) {
	mtu, err := f.config.Kernel.UnderlayMTU(f.config.TunnelIP)
	if err == nil {
		if was := f.uplink.Swap(int64(mtu)); was != 0 && was != int64(mtu) {
			f.log.Info("the underlay's MTU has changed, wires follow with their next refresh", "address", f.config.TunnelIP, "was", was, "mtu", mtu)
		}
	}
	return mtu, err
}

// finishLeft completes the leg towards the client when the endpoint's namespace
// and context are known.
func (f *Forwarder) finishLeft(ctx context.Context, known *wire, left, right *leg, got *networkservice.Connection) error {
	if !left.isLocal() && !right.isLocal() {
		return nserr.Unsupported.Errorf("neither the client nor the endpoint is on this node")
	}
	if left.tunnel != nil {
		return f.finishSharedLeft(ctx, left, known, right.space, got.GetId())
	}
	if left.mech.Type == mechanism.TypeVXLAN {
		return f.renumber(left, known, right.space)
	}
	if left.mech.Type != mechanism.TypeWireGuard {
		return nil
	}
	if err := f.ownKey(ctx, left, known, right.space, got.GetId()); err != nil {
		return err
	}
	w, err := left.mech.WireGuard()
	if err != nil {
		return err
	}
	w.Dst, w.DstKey, w.MTU = left.local, left.keys.Public, left.mtu
	left.mech = w.With(left.mech)
	return nil
}

// renumber gives a wire that goes to another namespace of this node another VNI, unless
// it is the client's forwarder that has named the one it has: so the old device can
// carry packets until that one knows of the new.
func (f *Forwarder) renumber(l *leg, known *wire, space string) error {
	if known == nil || known.desired.VXLAN == nil || known.desired.VXLAN.VNI != l.vni || spaceOf(known) == space || l.offered {
		return nil
	}
	v, err := l.mech.VXLAN()
	if err != nil {
		return err
	}
	var release func()
	v.VNI, release = f.numbers.chooseVNI(v.Parity())
	l.holds.add(release)
	l.vni, l.mech = v.VNI, v.With(l.mech)
	return nil
}

// ownKey sets this side's WireGuard key and port: those that the wire has, those
// of a device that an earlier life of this forwarder left, or new ones.
func (f *Forwarder) ownKey(ctx context.Context, l *leg, known *wire, space, id string) error {
	var own ownKeys
	if known != nil {
		own = known.own
	} else if key, port, ok := f.config.Kernel.WireGuardKey(ctx, space, id); ok {
		own, l.ownDevice = ownKeys{mechanism.PairOf(key), port}, true
	}
	if own.port != 0 {
		l.holds.add(f.numbers.holdPort(own.port))
	} else {
		port, release, err := f.numbers.choosePort()
		if err != nil {
			return err
		}
		own = ownKeys{mechanism.NewKeyPair(), port}
		l.holds.add(release)
	}
	l.keys, l.local = own.keys, netip.AddrPortFrom(f.config.TunnelIP, own.port)
	return nil
}

// offerRight makes what this forwarder offers for the leg towards the endpoint.
func (f *Forwarder) offerRight(ctx context.Context, t *task, to *candidate) (*leg, error) {
	r, known := &leg{}, t.known
	if known != nil && known.next.Conn.GetNetworkServiceEndpointName() == to.name && known.next.Peer.URL() == to.url {
		r.mech, r.stands = known.right, true
	}
	if to.local() {
		r.mech = mechanism.Kernel{}.With(r.mech)
		return r, nil
	}
	if !t.left.isLocal() {
		return nil, nserr.Unsupported.Errorf("endpoint %s at %s is not on this node, and neither is the client", to.name, to.url)
	}
	if !f.config.TunnelIP.IsValid() {
		return nil, nserr.Unsupported.Errorf("endpoint %s is on another node, but this forwarder has no address on the underlay", to.name).
			WithFix("start the forwarder with --tunnel-ip")
	}
	err := f.offerTunnel(ctx, t, r, to)
	if err != nil {
		r.holds.release()
	}
	return r, err
}

func (f *Forwarder) offerTunnel(ctx context.Context, t *task, r *leg, to *candidate) error {
	known, c := t.known, t.call.Conn
	shared, why := f.tunnelFor(ctx, t) // first, so that it has the first port
	if to.payload == mechanism.PayloadEthernet {
		if err := f.tunnelMTU(r, known, plan.KindVXLAN, 0); err != nil {
			return err
		}
		r.local = netip.AddrPortFrom(f.config.TunnelIP, f.config.VXLANPort)
		v := mechanism.VXLAN{Tunnel: mechanism.Tunnel{Src: r.local, MTU: r.mtu}}
		if known == nil && !f.config.Encrypted {
			v.VNI = f.leftoverVNI(ctx, t.left, c, to)
			r.ownDevice = v.VNI != 0
		}
		r.mech = v.With(r.mech)
		return f.offerShared(ctx, t, r, shared, why)
	}
	if err := f.tunnelMTU(r, known, plan.KindWireGuard, 0); err != nil {
		return err
	}
	if err := f.ownKey(ctx, r, known, t.left.space, c.GetId()); err != nil {
		return err
	}
	if t.anew && known != nil && known.desired.WireGuard != nil && f.outlived(ctx, known) {
		r.keys = mechanism.NewKeyPair()
	}
	r.mech = mechanism.WireGuard{Tunnel: mechanism.Tunnel{Src: r.local, MTU: r.mtu}, SrcKey: r.keys.Public}.With(r.mech)
	return f.offerShared(ctx, t, r, shared, why)
}

// outlived reports whether a wire that has to go another way has a WireGuard session that
// should have been renewed long ago. If this node's clock was set back, it is not, with the
// peer that it had: a peer believes nobody who begins at an earlier time than the last
// (section 5.1 of the WireGuard paper). A new key is another peer; in the tunnel, where it
// would be that of all wires, both sides forget of the other what they remember.
func (f *Forwarder) outlived(ctx context.Context, known *wire) bool {
	if known == nil || known.desired.WireGuard == nil && known.desired.Tunnel == nil {
		return false
	}
	seen, err := f.config.Kernel.Observe(ctx, known.desired)
	return err == nil && len(seen.Ends) == 1 && plan.Outlived(seen.Ends[0].LastHandshake, time.Now())
}

// leftoverVNI is the VNI of the device that an earlier life of this forwarder
// made for the wire, 0 if there is none: packets flow through it.
//
// On another path it is not used again. The node that the old one leads to has it
// until its end of the wire expires, and what that sends would be taken for the new
// one's: its answers to ARP, too, with the same address and another MAC.
func (f *Forwarder) leftoverVNI(ctx context.Context, left *leg, c *networkservice.Connection, to *candidate) uint32 {
	seen, err := f.config.Kernel.Observe(ctx, plan.Wire{
		ID: c.GetId(), Owner: f.config.Name, Kind: plan.KindVXLAN, Payload: plan.Ethernet, VXLAN: &plan.VXLAN{},
		Ends: []plan.End{{NetNS: left.space, Name: left.name, Side: plan.Client}},
	})
	if err != nil || len(seen.Ends) != 1 || !seen.Ends[0].Found || seen.Ends[0].VXLAN == nil {
		return 0
	}
	device := seen.Ends[0].VXLAN
	if c.GetState() == networkservice.State_RESELECT_REQUESTED {
		if host, ok := hostOf(to.url); !ok || host != device.Remote {
			return 0
		}
	}
	return device.VNI
}

// acceptRight takes what the endpoint answered for its leg.
func (f *Forwarder) acceptRight(ctx context.Context, known *wire, r *leg, got *networkservice.Connection, at *peer.Peer) (err error) {
	m := hop.MechanismOf(got.GetMechanism())
	if m.Type != r.mech.Type {
		return nserr.BadAnswer.Errorf("the endpoint answered with mechanism %q, offered was %q", m.Type, r.mech.Type)
	}
	defer func() {
		if err != nil && !errors.Is(err, nserr.NotEncrypted) {
			err = nserr.BadAnswer.Errorf("the endpoint's mechanism: %w", err)
		}
	}()
	if m.Type != mechanism.TypeKernel {
		said, err := m.Tunnel()
		if err == nil {
			err = f.elsewhere(said.Dst.Addr())
		}
		if err != nil {
			return err
		}
	}
	_, theirs, err := m.Shared()
	if err != nil {
		return err
	}
	if !theirs.IsZero() {
		return f.acceptSharedRight(known, r, m, theirs, hop.NextID(got, rpc.PeerCert(at)))
	}
	r.tunnel, r.renew = nil, false
	switch m.Type {
	case mechanism.TypeKernel:
		k, err := m.Kernel()
		if err != nil {
			return err
		}
		if r.space, err = f.receiveSpace(ctx, known, k.NetNS, at); err != nil {
			return err
		}
		r.holds.add(func() { f.config.Namespaces.Release(r.space) })
		if err := f.checkSpace(r.space, hop.NextID(got, rpc.PeerCert(at))); err != nil {
			return err
		}
		if k.Name == "" {
			k.Name = mechanism.InterfaceName(got.GetNetworkService(), "endpoint "+got.GetId())
		}
		r.name = k.Name
		r.mech = k.With(m)
	case mechanism.TypeVXLAN:
		if err := f.inClear(m.Type, "the endpoint's node has not accepted it; its log may say why"); err != nil {
			return err
		}
		v, err := m.VXLAN()
		if err != nil {
			return err
		}
		if !v.Dst.IsValid() || v.VNI == 0 {
			return nserr.BadMechanism.Errorf("VXLAN: dst_ip or vni is missing")
		}
		mine := known != nil && known.desired.VXLAN != nil && known.desired.VXLAN.VNI == v.VNI
		release, err := f.numbers.holdVNI(v.VNI, mine)
		if err != nil {
			return err
		}
		r.holds.add(release)
		r.vni, r.remote, r.mech = v.VNI, v.Dst, m
		r.mtu = plan.MinMTU(r.mtu, v.MTU)
	case mechanism.TypeWireGuard:
		w, err := m.WireGuard()
		if err != nil {
			return err
		}
		if !w.Dst.IsValid() || w.DstKey.IsZero() {
			return nserr.BadMechanism.Errorf("WIREGUARD: dst_ip or dst_public_key is missing")
		}
		r.remote, r.peer, r.mech = withPort(w.Dst, mechanism.DefaultWireGuardPort), w.DstKey, m
		r.mtu = plan.MinMTU(r.mtu, w.MTU)
	}
	return nil
}

// receiveSpace takes the namespace that the endpoint sent with its answer. One
// that is the same as before need not be sent again.
func (f *Forwarder) receiveSpace(ctx context.Context, known *wire, url string, at *peer.Peer) (key string, err error) {
	if url == "" {
		return "", nserr.NoDescriptor.Errorf("KERNEL: inodeURL is missing, so the endpoint's network namespace is not known")
	}
	if known != nil && known.right.Params["inodeURL"] == url {
		if space := spaceOf(known); f.config.Namespaces.Hold(space) == nil {
			rpc.DiscardReplyFile(at, url)
			return space, nil
		}
	}
	file, err := rpc.ReceiveReplyFile(ctx, at, url)
	if err != nil {
		return "", err
	}
	if err := rpc.ReplySender(at).MayHandOver(file); err != nil {
		_ = file.Close()
		return "", err
	}
	return f.config.Namespaces.Add(file)
}

// withSpace sends an endpoint's own namespace along with a refresh or Close that
// names it. The reference's endpoints wait, until the call's deadline, for every
// file that the mechanism of a connection names, as their forwarders send it back
// to them each time (§2.14). "" stands for none.
func (f *Forwarder) withSpace(ctx context.Context, space string) context.Context {
	ns, err := f.config.Namespaces.Get(space)
	if err != nil {
		return ctx
	}
	return rpc.WithFiles(ctx, ns.File())
}

// spaceOf is the namespace of the endpoint of w, "" if that is not on this node.
func spaceOf(w *wire) string {
	if w != nil {
		for _, end := range w.desired.Ends {
			if end.Side == plan.Endpoint {
				return end.NetNS
			}
		}
	}
	return ""
}

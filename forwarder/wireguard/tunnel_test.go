// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/forwarder/wireguard/holder"
	"github.com/openvwire/nsm/sdk/nserr"
)

// end is one node's end of the tunnel and of the wires in it.
type end struct {
	*node
	backend *Userspace
	own     plan.TunnelNode
}

// newTunnel makes two nodes with a tunnel, and no wire in it yet.
func newTunnel(t *testing.T) (a, b *end) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces and links: needs root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("no TUN devices here: %v", err)
	}
	one, two := newRig(t, true)
	open := func(n *node, id uint32) *end {
		e := &end{node: n, backend: n.backend.(*Userspace)}
		own, err := e.backend.OpenTunnel(t.Context(), plan.TunnelNode{PrivateKey: newKey(t), Port: 51820, ID: id})
		must(t, err)
		e.own = own
		return e
	}
	return open(one, 0xa), open(two, 0xb)
}

// to is a wire of e with this number to the one with the same at far.
func (e *end) to(far *end, number uint32, calls bool) plan.Tunnel {
	return plan.Tunnel{Own: e.own, Wire: number, Calls: calls, Peer: plan.TunnelPeer{
		Key: key(far.own.PrivateKey).PublicKey(), ID: far.own.ID, Wire: number,
		Endpoint: netip.AddrPortFrom(far.underlay4, far.own.Port),
	}}
}

// workload is a namespace with one end of a wire in it.
type workload struct {
	ns   *netns.Handle
	tag  string
	addr netip.Addr
}

// add makes an end of a wire in a new namespace.
func (e *end) add(t *testing.T, want plan.Tunnel, ethernet bool, addr string) workload {
	t.Helper()
	f, err := netns.New()
	must(t, err)
	at, err := e.table.Add(f)
	must(t, err)
	ns, err := e.table.Get(at)
	must(t, err)
	w := workload{ns: ns, tag: fmt.Sprintf("nsm:fwd:wire-%d:c", want.Wire), addr: netip.MustParseAddr(addr)}
	e.make(t, w, want, ethernet)
	return w
}

// make makes the end, or what is missing of it.
func (e *end) make(t *testing.T, w workload, want plan.Tunnel, ethernet bool) {
	t.Helper()
	must(t, e.backend.AddWire(t.Context(), w.ns, ifname, w.tag, 1400, ethernet, want))
	must(t, e.backend.PointWire(t.Context(), w.ns.Key(), w.tag, want))
	err := w.ns.Do(func() error {
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err == nil && len(addrs) > 0 {
			return nil
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: w.addr.AsSlice(), Mask: net.CIDRMask(24, 32)}})
	})
	must(t, err)
	up(t, w.ns, ifname)
}

// device is the tunnel as WireGuard has it.
func (e *end) device(t *testing.T) *wgtypes.Device {
	t.Helper()
	_, dev, err := e.backend.device(t.Context())
	must(t, err)
	if dev == nil {
		t.Fatal("there is no tunnel")
	}
	return dev
}

// One device and one peer carry wires of both payloads, each to its other end and no
// other; the peer goes with the last of them.
func TestTunnelCarriesWires(t *testing.T) {
	a, b := newTunnel(t)
	far := map[uint32]workload{}
	near := map[uint32]workload{}
	for number, ethernet := range map[uint32]bool{1: false, 2: false, 3: true} {
		// The same addresses in all of them: only the number tells them apart.
		far[number] = b.add(t, b.to(a, number, false), ethernet, "172.16.1.2")
		near[number] = a.add(t, a.to(b, number, true), ethernet, "172.16.1.1")
	}
	for number, w := range near {
		c := dial(t, w.ns, echo(t, far[number].ns, far[number].addr))
		roundTrip(t, c, fmt.Sprint("through wire ", number))
	}
	for _, e := range []*end{a, b} {
		if peers := e.device(t).Peers; len(peers) != 1 || idOf(&peers[0]) == 0 {
			t.Errorf("peers %v", peers)
		}
	}
	status, found, err := a.backend.ReadWire(t.Context(), near[1].ns.Key(), near[1].tag)
	if err != nil || !found || status.Tunnel.Peer != a.to(b, 1, true).Peer || status.Own != a.own || status.LastHandshake.IsZero() || status.RxBytes == 0 || status.TxBytes == 0 {
		t.Errorf("wire 1 is %+v, %v, %v", status, found, err)
	}
	if _, found, err := a.backend.ReadWire(t.Context(), near[1].ns.Key(), "nsm:fwd:none:c"); found || err != nil {
		t.Errorf("a wire that there is not: %v, %v", found, err)
	}
	if devices, err := a.backend.Devices(t.Context()); err != nil || len(devices) != 3 || !devices[0].Tunnel {
		t.Errorf("devices %v, %v", devices, err)
	}
	for number, w := range near {
		if peers := a.device(t).Peers; len(peers) != 1 {
			t.Errorf("%d peers while there are wires", len(peers))
		}
		must(t, a.backend.Delete(t.Context(), w.ns.Key(), w.ns, ifname, w.tag))
		if linkExists(w.ns, ifname) {
			t.Errorf("the interface of wire %d is left", number)
		}
	}
	if peers := a.device(t).Peers; len(peers) != 0 {
		t.Errorf("%d peers without a wire", len(peers))
	}
}

// A wire leads elsewhere in place: to another number, and to another node.
func TestTunnelPointsElsewhere(t *testing.T) {
	a, b := newTunnel(t)
	want := a.to(b, 1, true)
	b.add(t, b.to(a, 1, false), false, "172.16.1.2")
	second := b.to(a, 2, false)
	second.Peer.Wire = 1
	two := b.add(t, second, false, "172.16.1.2")
	w := a.add(t, want, false, "172.16.1.1")
	want.Peer.Wire = 2
	must(t, a.backend.PointWire(t.Context(), w.ns.Key(), w.tag, want))
	roundTrip(t, dial(t, w.ns, echo(t, two.ns, two.addr)), "to the second")

	other := want
	other.Peer.Key, other.Peer.ID = key(newKey(t)).PublicKey(), 0xc
	must(t, a.backend.PointWire(t.Context(), w.ns.Key(), w.tag, other))
	if peers := a.device(t).Peers; len(peers) != 1 || idOf(&peers[0]) != 0xc {
		t.Errorf("peers %v, want the new one", peers)
	}
	if err := a.backend.PointWire(t.Context(), w.ns.Key(), "nsm:fwd:none:c", want); !errors.Is(err, nserr.KernelFailed) {
		t.Errorf("a wire that there is not: %v", err)
	}
	own := want
	own.Peer.Key = key(a.own.PrivateKey).PublicKey()
	if err := a.backend.PointWire(t.Context(), w.ns.Key(), w.tag, own); !errors.Is(err, nserr.BadMechanism) {
		t.Errorf("this node as its own peer: %v", err)
	}
}

// While wires lead to a node nobody else can have its id, whose packets would go to him, or
// give it another one, so that they go nowhere: not even when the forwarder has started anew
// and does not know who has told of that node.
func TestTunnelPeerOfOthers(t *testing.T) {
	a, b := newTunnel(t)
	far := b.add(t, b.to(a, 1, false), false, "172.16.1.2")
	w := a.add(t, a.to(b, 1, true), false, "172.16.1.1")
	server := echo(t, far.ns, far.addr)
	roundTrip(t, dial(t, w.ns, server), "at first")
	again, err := NewUserspace(t.Context(), holder.ClientConfig{Socket: a.socket, Underlay: a.table.Self()})
	must(t, err)
	defer again.Close()
	before := a.device(t).Peers
	for name, spoil := range map[string]func(*plan.TunnelPeer){
		"its id":  func(p *plan.TunnelPeer) { p.Key = key(newKey(t)).PublicKey() },
		"its key": func(p *plan.TunnelPeer) { p.ID = 0xc },
	} {
		want := a.to(b, 2, false)
		spoil(&want.Peer)
		must(t, again.AddWire(t.Context(), w.ns, "nsm-2", "nsm:fwd:wire-2:c", 1400, false, want))
		if err := again.PointWire(t.Context(), w.ns.Key(), "nsm:fwd:wire-2:c", want); !errors.Is(err, nserr.BadMechanism) {
			t.Errorf("%s: %v", name, err)
		}
		if after := a.device(t).Peers; len(after) != 1 || after[0].PublicKey != before[0].PublicKey || idOf(&after[0]) != b.own.ID {
			t.Errorf("%s: peers %v, they were %v", name, after, before)
		}
		roundTrip(t, dial(t, w.ns, server), "after another has told of "+name)
	}
	// The only wire to a node can learn that it has another key.
	only := a.to(b, 1, true)
	only.Peer.Key = key(newKey(t)).PublicKey()
	must(t, again.PointWire(t.Context(), w.ns.Key(), w.tag, only))
}

// An end that moves to another namespace is in both until the old one is deleted, and
// neither is taken for the other.
func TestTunnelEndMoves(t *testing.T) {
	a, b := newTunnel(t)
	old := b.add(t, b.to(a, 1, false), false, "172.16.1.2")
	moved := b.add(t, b.to(a, 2, false), false, "172.16.1.2")
	here := b.to(a, 2, false)
	here.Peer.Wire = 1
	must(t, b.backend.Delete(t.Context(), moved.ns.Key(), moved.ns, ifname, moved.tag))
	moved.tag = old.tag
	b.make(t, moved, here, false)
	there := a.to(b, 1, true)
	w := a.add(t, there, false, "172.16.1.1")
	server := echo(t, moved.ns, moved.addr)
	echo(t, old.ns, old.addr) // the same
	for number, far := range map[uint32]workload{1: old, 2: moved} {
		there.Peer.Wire = number
		must(t, a.backend.PointWire(t.Context(), w.ns.Key(), w.tag, there))
		roundTrip(t, dial(t, w.ns, server), fmt.Sprint("to number ", number))
		s, found, err := b.backend.ReadWire(t.Context(), far.ns.Key(), far.tag)
		if err != nil || !found || s.Wire != number {
			t.Errorf("wire %d is %+v, %v, %v", number, s, found, err)
		}
	}
	must(t, b.backend.Delete(t.Context(), old.ns.Key(), old.ns, ifname, old.tag))
	there.Peer.Wire = 2
	must(t, a.backend.PointWire(t.Context(), w.ns.Key(), w.tag, there))
	roundTrip(t, dial(t, w.ns, server), "when the old end is gone")
	if devices, err := b.backend.Devices(t.Context()); err != nil || len(devices) != 1 || devices[0].Tag != moved.tag || devices[0].NetNS != moved.ns.Key() {
		t.Errorf("devices %+v, %v", devices, err)
	}
}

// Another life of the forwarder finds the tunnel as it is. When the holder has been killed
// the tunnel is made again as it was, and this side begins the session, whoever did so at
// first: the other one does not know.
func TestTunnelAfterDeaths(t *testing.T) {
	a, b := newTunnel(t)
	far := b.add(t, b.to(a, 1, false), false, "172.16.1.2")
	w := a.add(t, a.to(b, 1, true), false, "172.16.1.1")
	server := echo(t, far.ns, far.addr)
	roundTrip(t, dial(t, w.ns, server), "at first")

	again, err := NewUserspace(t.Context(), holder.ClientConfig{Socket: b.socket, Underlay: b.table.Self()})
	must(t, err)
	defer again.Close()
	if own, err := again.OpenTunnel(t.Context(), plan.TunnelNode{PrivateKey: newKey(t), Port: 1, ID: 1}); err != nil || own != b.own {
		t.Errorf("the tunnel is %+v, %v; it was %+v", own, err, b.own)
	}
	if s, found, err := again.ReadWire(t.Context(), far.ns.Key(), far.tag); err != nil || !found || s.Wire != 1 {
		t.Errorf("wire is %+v, %v, %v", s, found, err)
	}

	b.backend = again
	before := a.device(t).Peers[0].LastHandshakeTime
	st, err := again.Holder().Status(t.Context())
	must(t, err)
	kill(t, st.PID)
	b.make(t, far, b.to(a, 1, false), false)
	deadline := time.Now().Add(10 * time.Second)
	for a.device(t).Peers[0].LastHandshakeTime.Equal(before) {
		if time.Now().After(deadline) {
			t.Fatal("no new session")
		}
	}
	roundTrip(t, dial(t, w.ns, server), "after the holder's death")
}

// kill ends a process with SIGKILL and waits for it.
func kill(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
	if !pollOne(fd, 10*time.Second) {
		t.Errorf("process %d does not end", pid)
	}
}

// A session that is outlived is begun anew at once, with nothing remembered of the last
// one. One that may be alive stays.
func TestTunnelRenewed(t *testing.T) {
	a, b := newTunnel(t)
	far := b.add(t, b.to(a, 1, false), false, "172.16.1.2")
	w := a.add(t, a.to(b, 1, true), false, "172.16.1.1")
	server := echo(t, far.ns, far.addr)
	roundTrip(t, dial(t, w.ns, server), "at first")
	handshake := func() time.Time { return a.device(t).Peers[0].LastHandshakeTime }
	first := handshake()
	must(t, a.backend.RenewTunnel(t.Context(), a.to(b, 1, true)))
	if now := handshake(); !now.Equal(first) {
		t.Errorf("a session that lives was begun anew: %v, it was of %v", now, first)
	}
	later := time.Now().Add(2 * plan.SessionLife)
	must(t, b.backend.renew(t.Context(), b.to(a, 1, false), later)) // who is asked comes first
	if got := b.device(t).Peers; len(got) != 1 || got[0].Endpoint != nil {
		t.Errorf("peers %v: one call is enough, and is to come from who has asked", got)
	}
	must(t, a.backend.renew(t.Context(), a.to(b, 1, true), later))
	roundTrip(t, dial(t, w.ns, server), "in the next session")
	if now := handshake(); now.Equal(first) {
		t.Error("the session is still the first one")
	}
	if got := b.device(t).Peers; len(got) != 1 || idOf(&got[0]) != a.own.ID {
		t.Errorf("peers %v", got)
	}
}

// Two nodes ask each other for their first wires at the same time: each awaits the other's
// call, and there is a session all the same, at once.
func TestTunnelFromBothSides(t *testing.T) {
	a, b := newTunnel(t)
	// What was asked for comes first at both nodes.
	one := b.add(t, b.to(a, 1, false), false, "172.16.1.2")
	two := a.add(t, a.to(b, 2, false), false, "172.16.2.2")
	// Then both have their answers.
	near, far := a.add(t, a.to(b, 1, true), false, "172.16.1.1"), b.add(t, b.to(a, 2, true), false, "172.16.2.1")
	roundTrip(t, dial(t, near.ns, echo(t, one.ns, one.addr)), "from a")
	roundTrip(t, dial(t, far.ns, echo(t, two.ns, two.addr)), "from b")
}

// What a peer must be told, by what it is.
func TestTunnelPeer(t *testing.T) {
	now := time.Now()
	own := plan.TunnelNode{PrivateKey: newKey(t), Port: 51820, ID: 1}
	want := plan.Tunnel{Own: own, Wire: 5, Peer: plan.TunnelPeer{Key: [32]byte{9}, ID: 0xc0ffee, Wire: 6, Endpoint: netip.MustParseAddrPort("10.0.0.2:51820")}}
	seen := func(spoil func(*wgtypes.Peer)) *wgtypes.Peer {
		p := &wgtypes.Peer{PublicKey: want.Peer.Key, Endpoint: udpAddr(want.Peer.Endpoint), AllowedIPs: idNets(want.Peer.ID),
			LastHandshakeTime: now.Add(-time.Minute), PersistentKeepaliveInterval: tunnelKeepalive}
		spoil(p)
		return p
	}
	moved := udpAddr(netip.MustParseAddrPort("10.0.0.9:1"))
	for name, tt := range map[string]struct {
		seen                       *wgtypes.Peer
		endpoint, keepalive, allow bool
	}{
		"new":                 {nil, true, true, true},
		"as it should be":     {seen(func(*wgtypes.Peer) {}), false, false, false},
		"moved while alive":   {seen(func(p *wgtypes.Peer) { p.Endpoint = moved }), false, false, false},
		"moved":               {seen(func(p *wgtypes.Peer) { p.Endpoint, p.LastHandshakeTime = moved, now.Add(-time.Hour) }), true, false, false},
		"quiet":               {seen(func(p *wgtypes.Peer) { p.PersistentKeepaliveInterval = 0 }), false, true, false},
		"another id":          {seen(func(p *wgtypes.Peer) { p.AllowedIPs = idNets(7) }), false, false, true},
		"all addresses":       {seen(func(p *wgtypes.Peer) { p.AllowedIPs = anywhere }), false, false, true},
		"more than its id":    {seen(func(p *wgtypes.Peer) { p.AllowedIPs = append(idNets(7), p.AllowedIPs...) }), false, false, true},
		"a prefix of its own": {seen(func(p *wgtypes.Peer) { p.AllowedIPs[0].Mask = net.CIDRMask(24, 32) }), false, false, true},
	} {
		set, needed := tunnelPeer(want, tt.seen, now)
		if needed != (tt.endpoint || tt.keepalive || tt.allow) || (set.Endpoint != nil) != tt.endpoint ||
			(set.PersistentKeepaliveInterval != nil) != tt.keepalive || set.ReplaceAllowedIPs != tt.allow {
			t.Errorf("%s: %v, %+v", name, needed, set)
		}
		if tt.allow && idOf(&wgtypes.Peer{AllowedIPs: set.AllowedIPs}) != want.Peer.ID {
			t.Errorf("%s: allowed %v", name, set.AllowedIPs)
		}
	}
}

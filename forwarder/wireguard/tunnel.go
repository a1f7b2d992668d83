// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/openvwire/nsm/forwarder/kernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/forwarder/wireguard/holder"
	"github.com/openvwire/nsm/sdk/nserr"
)

// tunnelKeepalive keeps the mappings of middle boxes open, and notices a peer that has
// forgotten the session.
const tunnelKeepalive = 10 * time.Second

// OpenTunnel implements kernel.TunnelBackend. The holder knows the node's id, WireGuard
// key and port.
func (u *Userspace) OpenTunnel(ctx context.Context, want plan.TunnelNode) (plan.TunnelNode, error) {
	t, _, err := u.holder.Wires(ctx, tunnelOnly)
	if err != nil {
		return plan.TunnelNode{}, err
	}
	if t.Node == 0 {
		if t, err = u.holder.OpenTunnel(ctx, want.ID); err != nil {
			return plan.TunnelNode{}, err
		}
	}
	dev, err := u.wg.Device(ctx, t.UAPI)
	if err != nil {
		return plan.TunnelNode{}, configError(t.UAPI, err)
	}
	is := plan.TunnelNode{PrivateKey: dev.PrivateKey, Port: uint16(dev.ListenPort), ID: t.Node}
	if is.PrivateKey == [32]byte{} || is.Port == 0 { // somebody has died before it was configured
		want.ID = t.Node
		return want, u.setOwn(dev, t, want)
	}
	return is, nil
}

// wireTag is the tag that a wire has at the holder: it can be in two namespaces at a time.
func wireTag(key, tag string) string { return tag + "@" + key }

// tagOf is the tag of a wire of which the holder has told.
func tagOf(w holder.Wire) string { return strings.TrimSuffix(w.Tag, "@"+w.NetNS) }

// tunnelOnly is the tag of no wire.
const tunnelOnly = "-"

// setOwn sets this node's key and port.
func (u *Userspace) setOwn(dev *wgtypes.Device, t holder.Tunnel, own plan.TunnelNode) error {
	if t.Node != own.ID {
		return nserr.KernelFailed.Errorf("the tunnel is one of node id %d, not %d", t.Node, own.ID)
	}
	var set wgtypes.Config
	if k := key(own.PrivateKey); dev.PrivateKey != k {
		set.PrivateKey = &k
	}
	if port := int(own.Port); dev.ListenPort != port {
		set.ListenPort = &port
	}
	if set.PrivateKey == nil && set.ListenPort == nil {
		return nil
	}
	if err := u.wg.ConfigureDevice(t.UAPI, set); err != nil {
		return configError(t.UAPI, err)
	}
	return nil
}

// AddWire implements kernel.TunnelBackend.
func (u *Userspace) AddWire(ctx context.Context, ns *netns.Handle, ifname, tag string, mtu int, ethernet bool, t plan.Tunnel) error {
	made, err := u.holder.OpenTunnel(ctx, t.Own.ID)
	if err != nil {
		return err
	}
	dev, err := u.wg.Device(ctx, made.UAPI)
	if err != nil {
		return configError(made.UAPI, err)
	}
	if err := u.setOwn(dev, made, t.Own); err != nil {
		return err
	}
	return u.holder.AddWire(ctx, ns, holder.Wire{Tag: wireTag(ns.Key(), tag), Name: ifname, MTU: mtu, Ethernet: ethernet, Local: t.Wire})
}

// device reads the tunnel; nil means that there is none.
func (u *Userspace) device(ctx context.Context) (holder.Tunnel, *wgtypes.Device, error) {
	t, _, err := u.holder.Wires(ctx, tunnelOnly)
	if err != nil || t.Node == 0 {
		return t, nil, err
	}
	dev, err := u.wg.Device(ctx, t.UAPI)
	switch {
	case gone(err):
		return t, nil, nil
	case err != nil:
		return t, nil, configError(t.UAPI, err)
	}
	return t, dev, nil
}

// PointWire implements kernel.TunnelBackend.
func (u *Userspace) PointWire(ctx context.Context, space, tag string, want plan.Tunnel) error {
	u.peers.mu.Lock()
	defer u.peers.mu.Unlock()
	t, dev, err := u.device(ctx)
	if err != nil {
		return err
	}
	if dev == nil {
		return nserr.KernelFailed.Errorf("there is no tunnel")
	}
	if err := u.setOwn(dev, t, want.Own); err != nil {
		return err
	}
	k := key(want.Peer.Key)
	if k == key(want.Own.PrivateKey).PublicKey() {
		return nserr.BadMechanism.Errorf("the peer's key is our own")
	}
	if err := u.checkPeer(ctx, dev, want.Peer, wireTag(space, tag)); err != nil {
		return err
	}
	if err := u.setPeer(t, want, findPeer(dev, k)); err != nil {
		return err
	}
	left, err := u.holder.PointWire(ctx, wireTag(space, tag), want.Peer.ID, want.Peer.Wire)
	if err != nil {
		return err
	}
	return u.forgetPeer(ctx, left)
}

// checkPeer refuses a peer that has the key or the id of another, to which wires lead
// besides the one with this tag: their packets would go to it, or nowhere. The forwarder
// believes nobody who tells of such a one, but has forgotten whom it believed when it
// has started anew, and the wires stand.
func (u *Userspace) checkPeer(ctx context.Context, dev *wgtypes.Device, want plan.TunnelPeer, tag string) error {
	for i := range dev.Peers {
		id := idOf(&dev.Peers[i])
		if sameKey := dev.Peers[i].PublicKey == key(want.Key); id == 0 || sameKey == (id == want.ID) {
			continue
		}
		_, wires, err := u.holder.Wires(ctx, "")
		if err != nil {
			return err
		}
		if slices.ContainsFunc(wires, func(w holder.Wire) bool { return w.Peer == id && w.Tag != tag }) {
			return nserr.BadMechanism.Errorf("node id %d with this key: wires lead to node id %d, which has the one or the other", want.ID, id)
		}
	}
	return nil
}

// tunnelPeer returns what must be set for the tunnel to have the peer of a wire, of which
// seen is what it has already.
//
// A peer that has moved keeps its new address while its session lives, see changes.
func tunnelPeer(want plan.Tunnel, seen *wgtypes.Peer, now time.Time) (wgtypes.PeerConfig, bool) {
	set := wgtypes.PeerConfig{PublicKey: key(want.Peer.Key)}
	keepalive := tunnelKeepalive
	if seen == nil {
		set.Endpoint = udpAddr(want.Peer.Endpoint)
		set.PersistentKeepaliveInterval = &keepalive
		set.ReplaceAllowedIPs, set.AllowedIPs = true, idNets(want.Peer.ID)
		return set, true
	}
	set.UpdateOnly = true
	if alive := now.Sub(seen.LastHandshakeTime) < plan.SessionLife; !alive && addrPort(seen.Endpoint) != want.Peer.Endpoint {
		set.Endpoint = udpAddr(want.Peer.Endpoint)
	}
	if seen.PersistentKeepaliveInterval != keepalive {
		set.PersistentKeepaliveInterval = &keepalive
	}
	if idOf(seen) != want.Peer.ID {
		set.ReplaceAllowedIPs, set.AllowedIPs = true, idNets(want.Peer.ID)
	}
	return set, set.Endpoint != nil || set.PersistentKeepaliveInterval != nil || set.ReplaceAllowedIPs
}

// idNets are the addresses that a peer may use in the tunnel: its id.
func idNets(id uint32) []net.IPNet {
	return []net.IPNet{{IP: binary.BigEndian.AppendUint32(nil, id), Mask: net.CIDRMask(32, 32)}}
}

// idOf is the id that a peer may use, 0 if it is not exactly one.
func idOf(p *wgtypes.Peer) uint32 {
	if len(p.AllowedIPs) != 1 {
		return 0
	}
	ip := p.AllowedIPs[0].IP.To4()
	if ones, _ := p.AllowedIPs[0].Mask.Size(); ip == nil || ones != 32 {
		return 0
	}
	return binary.BigEndian.Uint32(ip)
}

func findPeer(dev *wgtypes.Device, k wgtypes.Key) *wgtypes.Peer {
	for i := range dev.Peers {
		if dev.Peers[i].PublicKey == k {
			return &dev.Peers[i]
		}
	}
	return nil
}

// forgetPeer removes a peer that no wire leads to any more. The caller holds peers.mu.
func (u *Userspace) forgetPeer(ctx context.Context, left *holder.Left) error {
	if left == nil || left.Wires > 0 {
		return nil
	}
	_, wires, err := u.holder.Wires(ctx, "")
	if err != nil || slices.ContainsFunc(wires, func(w holder.Wire) bool { return w.Peer == left.Peer }) {
		return err // one has come meanwhile
	}
	t, dev, err := u.device(ctx)
	if err != nil || dev == nil {
		return err
	}
	for i := range dev.Peers {
		if p := &dev.Peers[i]; idOf(p) == left.Peer {
			u.peers.waitNoMoreLocked(p.PublicKey)
			err = errors.Join(err, u.setPeers(t, wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true}))
		}
	}
	return err
}

// setPeers sets peers one after the other, and nobody sees the device in between. The caller
// holds peers.mu.
func (u *Userspace) setPeers(t holder.Tunnel, set ...wgtypes.PeerConfig) error {
	if err := u.wg.ConfigureDevice(t.UAPI, wgtypes.Config{Peers: set}); err != nil {
		return configError(t.UAPI, err)
	}
	for _, p := range set {
		if p.Remove {
			delete(u.peers.given, p.PublicKey)
		} else {
			u.peers.given[p.PublicKey] = true
		}
	}
	return nil
}

// ReadWire implements kernel.TunnelBackend.
func (u *Userspace) ReadWire(ctx context.Context, key, tag string) (s kernel.TunnelStatus, found bool, err error) {
	read, err := u.read(ctx, wireTag(key, tag))
	if err != nil {
		return s, false, err
	}
	s, found = read(key, tag)
	return s, found, nil
}

// ReadWires implements kernel.TunnelBackend.
func (u *Userspace) ReadWires(ctx context.Context) (func(key, tag string) (kernel.TunnelStatus, bool), error) {
	return u.read(ctx, "")
}

// read reads the wire with a tag as the holder knows it, or all if it is empty.
func (u *Userspace) read(ctx context.Context, tag string) (func(key, tag string) (kernel.TunnelStatus, bool), error) {
	none := func(string, string) (s kernel.TunnelStatus, found bool) { return s, false }
	t, wires, err := u.holder.Wires(ctx, tag)
	if err != nil || len(wires) == 0 {
		return none, err
	}
	dev, err := u.wg.Device(ctx, t.UAPI)
	if gone(err) {
		return none, nil
	}
	if err != nil {
		return none, configError(t.UAPI, err)
	}
	byTag, byID := make(map[string]*holder.Wire), make(map[uint32]*wgtypes.Peer)
	for i := range wires {
		byTag[wires[i].Tag] = &wires[i]
	}
	u.peers.mu.Lock()
	for i := range dev.Peers {
		p := &dev.Peers[i]
		u.peers.given[p.PublicKey] = true // by the forwarder before this one, maybe
		if w := u.peers.pending[p.PublicKey]; w.awaited() && p.Endpoint == nil {
			p.Endpoint = udpAddr(w.want.Peer.Endpoint)
		}
		byID[idOf(p)] = p
	}
	u.peers.mu.Unlock()
	return func(key, tag string) (s kernel.TunnelStatus, found bool) {
		w := byTag[wireTag(key, tag)]
		if w == nil {
			return s, false
		}
		s.Own = plan.TunnelNode{PrivateKey: dev.PrivateKey, Port: uint16(dev.ListenPort), ID: t.Node}
		s.Wire, s.RxBytes, s.TxBytes = w.Local, int64(w.Received), int64(w.Sent)
		if p := byID[w.Peer]; w.Peer != 0 && p != nil {
			s.Peer = plan.TunnelPeer{Key: p.PublicKey, ID: w.Peer, Endpoint: addrPort(p.Endpoint), Wire: w.Remote}
			s.LastHandshake, s.Keepalive = p.LastHandshakeTime, p.PersistentKeepaliveInterval
		}
		return s, true
	}, nil
}

// RenewTunnel implements kernel.TunnelBackend. A peer that is removed is forgotten with
// the time of its last handshake, by which it is measured whether the next is an old one.
func (u *Userspace) RenewTunnel(ctx context.Context, want plan.Tunnel) error {
	return u.renew(ctx, want, time.Now())
}

func (u *Userspace) renew(ctx context.Context, want plan.Tunnel, now time.Time) error {
	u.peers.mu.Lock()
	defer u.peers.mu.Unlock()
	t, dev, err := u.device(ctx)
	if err != nil || dev == nil {
		return err
	}
	seen := findPeer(dev, key(want.Peer.Key))
	if seen == nil || !plan.Outlived(seen.LastHandshakeTime, now) { // another wire was quicker
		return nil
	}
	if err := u.setPeers(t, wgtypes.PeerConfig{PublicKey: seen.PublicKey, Remove: true}); err != nil {
		return err
	}
	u.peers.waitNoMoreLocked(seen.PublicKey)
	return u.setPeer(t, want, nil)
}

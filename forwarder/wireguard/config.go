// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"net"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/openvwire/nsm/forwarder/kernel"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/nserr"
)

// anywhere are the allowed addresses of the peer: all (protocol §2.13).
var anywhere = []net.IPNet{
	{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
	{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
}

// check refuses keys that WireGuard would take and then never connect with.
func check(wg plan.WireGuard) error {
	switch {
	case wg.PrivateKey == [32]byte{}:
		return nserr.BadMechanism.Errorf("WireGuard: no private key")
	case wg.PeerKey == [32]byte{}:
		return nserr.BadMechanism.Errorf("WireGuard: no key of the peer")
	case key(wg.PrivateKey).PublicKey() == key(wg.PeerKey):
		return nserr.BadMechanism.Errorf("WireGuard: the peer's key is our own")
	}
	return nil
}

// changes returns what to set on a device that is as seen for it to be as
// wanted; false means nothing. It never touches what is right already, because
// setting the port closes the socket and replacing a peer ends its session.
//
// A peer that has moved keeps its new address while its session lives: its
// packets prove where it is, the plan only knows where it was.
func changes(want plan.WireGuard, seen *wgtypes.Device, now time.Time) (wgtypes.Config, bool) {
	var set wgtypes.Config
	needed := false
	if k := key(want.PrivateKey); seen.PrivateKey != k {
		set.PrivateKey, needed = &k, true
	}
	if port := int(want.Port); port != 0 && port != seen.ListenPort {
		set.ListenPort, needed = &port, true
	}
	if len(seen.Peers) != 1 || seen.Peers[0].PublicKey != key(want.PeerKey) {
		set.ReplacePeers = true
		set.Peers = []wgtypes.PeerConfig{wholePeer(want)}
		return set, true
	}
	if peer, differs := changedPeer(want, &seen.Peers[0], now); differs {
		set.Peers, needed = []wgtypes.PeerConfig{peer}, true
	}
	return set, needed
}

func wholePeer(want plan.WireGuard) wgtypes.PeerConfig {
	keepalive := want.Keepalive
	return wgtypes.PeerConfig{
		PublicKey:                   key(want.PeerKey),
		Endpoint:                    udpAddr(want.Endpoint),
		PersistentKeepaliveInterval: &keepalive,
		ReplaceAllowedIPs:           true,
		AllowedIPs:                  anywhere,
	}
}

// changedPeer returns what must be set on the peer, which has the right key.
func changedPeer(want plan.WireGuard, seen *wgtypes.Peer, now time.Time) (wgtypes.PeerConfig, bool) {
	set := wgtypes.PeerConfig{PublicKey: key(want.PeerKey), UpdateOnly: true}
	differs := false
	moved := want.Endpoint.IsValid() && addrPort(seen.Endpoint) != want.Endpoint
	if alive := now.Sub(seen.LastHandshakeTime) < plan.SessionLife; moved && !alive {
		set.Endpoint, differs = udpAddr(want.Endpoint), true
	}
	if seen.PersistentKeepaliveInterval != want.Keepalive {
		keepalive := want.Keepalive
		set.PersistentKeepaliveInterval, differs = &keepalive, true
	}
	if !allowsAll(seen.AllowedIPs) {
		set.ReplaceAllowedIPs, set.AllowedIPs, differs = true, anywhere, true
	}
	return set, differs
}

func allowsAll(nets []net.IPNet) bool {
	var v4, v6 bool
	for _, n := range nets {
		if ones, bits := n.Mask.Size(); ones == 0 {
			v4 = v4 || bits == 32
			v6 = v6 || bits == 128
		}
	}
	return v4 && v6 && len(nets) == 2
}

// statusOf converts what a control has read. A device that has not exactly one
// peer counts as having none: Configure will replace them all.
func statusOf(dev *wgtypes.Device) kernel.WireGuardStatus {
	s := kernel.WireGuardStatus{WireGuard: plan.WireGuard{
		PrivateKey: dev.PrivateKey,
		Port:       uint16(dev.ListenPort),
	}}
	if len(dev.Peers) == 1 {
		p := &dev.Peers[0]
		s.PeerKey = p.PublicKey
		s.Endpoint = addrPort(p.Endpoint)
		s.Keepalive = p.PersistentKeepaliveInterval
		s.LastHandshake = p.LastHandshakeTime
		s.RxBytes, s.TxBytes = p.ReceiveBytes, p.TransmitBytes
	}
	return s
}

// udpAddr returns nil, no endpoint, for the zero value.
func udpAddr(a netip.AddrPort) *net.UDPAddr {
	if !a.IsValid() {
		return nil
	}
	return net.UDPAddrFromAddrPort(a)
}

func addrPort(a *net.UDPAddr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

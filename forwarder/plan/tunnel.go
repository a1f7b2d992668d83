// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"

	"github.com/openvwire/nsm/sdk/nserr"
)

// LinkTunnel is the LinkKind of an interface that is a wire of the tunnel: a TUN for
// payload IP, a TAP for ETHERNET. rtnetlink has no name for it; who holds the tunnel knows.
const LinkTunnel = "tunnel"

// Tunnel holds the parameters of a wire that shares one WireGuard device with all
// others of its node, and one peer with those to the same node (docs/adr/0008).
type Tunnel struct {
	Own  TunnelNode
	Wire uint32     // the number by which this end receives, unique at its node
	Peer TunnelPeer // zero: not known yet; the interface waits for it, down

	// Calls says that this side has asked the other one for the wire, which so knows of
	// this node first.
	Calls bool
}

// TunnelNode is this node's end of the tunnel, the same for all its wires.
type TunnelNode struct {
	PrivateKey [32]byte
	Port       uint16 // own UDP port
	ID         uint32 // not 0
}

// TunnelPeer is the far end.
type TunnelPeer struct {
	Key      [32]byte
	ID       uint32 // of the node, the source of all that comes from it
	Endpoint netip.AddrPort
	Wire     uint32 // the number by which the far end receives
}

// MAC derives the address of a wire's end with payload ETHERNET from the number of the
// client's end. That stays when the wire is led to another endpoint, wherever it is: so
// what the client's end knows of its neighbour stays true, and no packet is lost.
func (t Tunnel) MAC(side Side) net.HardwareAddr {
	node, wire := t.Own.ID, t.Wire
	if side == Endpoint {
		node, wire = t.Peer.ID, t.Peer.Wire
	}
	return MAC(fmt.Sprintf("tunnel %d %d", node, wire), side)
}

// WireGuard is what of t concerns the device and its peer.
func (t Tunnel) WireGuard() WireGuard {
	return WireGuard{PrivateKey: t.Own.PrivateKey, Port: t.Own.Port, PeerKey: t.Peer.Key, Endpoint: t.Peer.Endpoint}
}

// layer3 reports whether the wire's devices know no hardware addresses.
func (w Wire) layer3() bool {
	return w.Kind == KindWireGuard || w.Kind == KindTunnel && w.Payload == IP
}

// satisfiedBy reports whether a wire as seen is what t asks for.
func (t Tunnel) satisfiedBy(seen Tunnel) bool {
	return t.Own == seen.Own && t.Wire == seen.Wire && t.Peer == seen.Peer
}

// waits reports whether the wire's other end is not known yet.
func (t Tunnel) waits() bool { return t.Peer == TunnelPeer{} }

func (t Tunnel) validate() error {
	switch p := t.Peer; {
	case t.Own.PrivateKey == [32]byte{} || t.Own.Port == 0 || t.Own.ID == 0 || t.Wire == 0:
		return nserr.BadMechanism.Errorf("a wire in the tunnel needs this node's key, port, id and a number")
	case t.waits():
	case p.Key == [32]byte{} || p.ID == 0 || p.Wire == 0:
		return nserr.BadMechanism.Errorf("a wire in the tunnel needs the other node's key, id and number")
	case p.ID == t.Own.ID:
		return nserr.BadMechanism.Errorf("the other node has this node's id in the tunnel")
	case !isUnicast(p.Endpoint.Addr()) || p.Endpoint.Port() == 0:
		return nserr.BadMechanism.Errorf("tunnel endpoint %v is not a unicast address and port", p.Endpoint)
	}
	return nil
}

// tunnelPadding is what WireGuard pads packets to, in bytes (section 5.4.6 of the
// WireGuard paper).
const tunnelPadding = 16

// SharedMTU returns the MTU of a wire in the tunnel over a link with the given MTU, in
// bytes, or 0 if nothing is left. Inside of WireGuard there are 20 bytes that tell the
// wires apart and, with payload ETHERNET, the frame's header with a VLAN tag. It is
// rounded down so that padding makes no packet larger than the underlay takes: the
// device pads for all its wires alike, and does not know to where which MTU leads.
func SharedMTU(uplink int, payload string, outer netip.Addr) int {
	inside := 20
	if payload == Ethernet {
		inside += 18
	}
	return max(0, TunnelMTU(uplink, KindWireGuard, outer)/tunnelPadding*tunnelPadding-inside)
}

type (
	// AddTunnel makes the interface of a wire of the tunnel, and the node's end of the
	// tunnel itself if there is none. The wire leads nowhere yet.
	AddTunnel struct {
		NewLink
		Tag      Tag
		Ethernet bool
		Tunnel   Tunnel
	}
	// PointTunnel has a wire of the tunnel lead to its other end, without a gap.
	PointTunnel struct {
		Link
		Tag    Tag
		Tunnel Tunnel
		Old    *Tunnel // nil, or one that waits: it led nowhere
	}
)

// No command makes them, but the process that holds the tunnel.

func (s AddTunnel) command(ns namer) string {
	device := "tun"
	if s.Ethernet {
		device = "tap"
	}
	return fmt.Sprintf("# wireguard-holder: make %s device %s netns %s, wire %d of node %d (UDP port %d)",
		device, s.params(), ns(s.NetNS), s.Tunnel.Wire, s.Tunnel.Own.ID, s.Tunnel.Own.Port)
}

func (s PointTunnel) command(ns namer) string {
	p := s.Tunnel.Peer
	return fmt.Sprintf("# wireguard-holder: connect %s netns %s with wire %d of node %d, peer %s endpoint %v",
		s.Name, ns(s.NetNS), p.Wire, p.ID, base64.StdEncoding.EncodeToString(p.Key[:]), p.Endpoint)
}

func (s AddTunnel) String() string   { return s.command(byKey) }
func (s PointTunnel) String() string { return s.command(byKey) }

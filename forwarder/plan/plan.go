// SPDX-License-Identifier: Apache-2.0

// Package plan computes what must change in the kernel for a wire to be as it
// should: desired state in, steps out, no side effects.
//
// A [Wire] is the blueprint of one connection at one forwarder: the devices,
// addresses, routes, rules and neighbours it needs. An [Observed] is what the
// kernel has for it now. [Diff] is the difference as a list of [Step] values,
// each of which prints as the command a human would type:
//
//	w := plan.Wire{ID: "u2", Owner: "fwd-a", Kind: plan.KindVeth, Payload: plan.IP, Ends: …}
//	for _, step := range plan.Diff(w, seen) {
//		fmt.Println(step) // ip -n 4:4026532281 link set nsm-1 up
//	}
//
// Two properties carry the rest of the forwarder (property_test.go checks both
// against the naive kernel of package memkernel): executing the steps reaches
// the desired state, and the difference of a reached state is empty. Hence
// "apply" is idempotent, a refresh costs nothing, and a restart is an apply.
//
// Everything made for a wire carries its [Tag]: links in their ifalias, routes
// and rules by [RouteProtocol], rules also by the link their table leads to.
package plan

import (
	"net"
	"net/netip"
	"time"

	"github.com/openvwire/nsm/sdk/flow"
)

// Kind says what a wire is made of at this forwarder.
type Kind string

const (
	KindVeth      Kind = "veth"      // both workloads on this node: one pair, an end in each namespace
	KindVXLAN     Kind = "vxlan"     // to another node, payload ETHERNET
	KindWireGuard Kind = "wireguard" // to another node, payload IP, encrypted
	KindTunnel    Kind = "tunnel"    // to another node, encrypted, one of many in the two nodes' tunnel
)

// Payloads, as in NetworkService.payload (protocol §2.16).
const (
	IP       = "IP"       // layer 3 wire: no broadcast, peers are permanent neighbours
	Ethernet = "ETHERNET" // layer 2 wire
)

// Side is the workload an end belongs to. The client's namespace gets the
// src_* half of the IP context, the endpoint's the dst_* half (protocol §2.12).
type Side string

const (
	Client   Side = "c"
	Endpoint Side = "e"
)

// Wire is the desired state of one connection at one forwarder.
type Wire struct {
	ID      string // connection id at this forwarder; with Owner it names the wire for ever
	Owner   string // name of the forwarder
	Kind    Kind
	Payload string // IP or ETHERNET
	Ends    []End  // veth: two, the client's first; tunnels: one

	VXLAN     *VXLAN     // set if and only if Kind is KindVXLAN
	WireGuard *WireGuard // set if and only if Kind is KindWireGuard
	Tunnel    *Tunnel    // set if and only if Kind is KindTunnel
}

// End is one end of a wire: a device in a workload's namespace and all that
// hangs on it.
type End struct {
	NetNS string // "dev:ino", a key of the forwarder's table of namespaces
	Name  string // 1 to 15 bytes, see mechanism.CheckInterfaceName
	Side  Side
	MTU   int              // bytes; 0 leaves the kernel's default
	MAC   net.HardwareAddr // nil derives one from wire id and side, see MAC; unused for layer 3 devices
	// Addrs are the device's addresses. Link-local ones that the kernel made are left alone.
	Addrs []netip.Prefix
	// Routes go to the main table and lead to this end.
	Routes []Route
	// Policies are routes that apply to some traffic only (protocol §2.15). Of two
	// that select the same the first decides.
	Policies []Policy
	// Neighbors are permanent. On a veth with payload IP, Diff adds the other
	// end's addresses by itself. On a layer 3 device these here do not count: it has
	// its next hops. Those of IPv6 do not count where the end has nothing else of it.
	Neighbors []Neighbor
}

// Route leads to Dst through the end it stands at.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr // zero: link scope
	OnLink bool       // Via need not be inside one of the end's prefixes
}

// Policy sends the traffic it selects over its own routes.
type Policy struct {
	From    netip.Prefix // zero: whatever the source is, also none yet
	Proto   string       // decimal number or name (tcp, udp, sctp, icmp, ipv6-icmp); empty: any
	SrcPort PortRange
	DstPort PortRange
	// Routes of the policy's own table; none means a default route with link
	// scope, in From's family or each that the end has an address of. Where
	// neighbours are not permanent, give one with Via.
	Routes []Route
}

// PortRange is inclusive; the zero value selects every port.
type PortRange = flow.Ports

// Neighbor is a permanent entry of the neighbour table.
type Neighbor struct {
	IP  netip.Addr
	MAC net.HardwareAddr // nil on a layer 3 device
}

// VXLAN holds the parameters of a point-to-point VXLAN device (RFC 7348).
type VXLAN struct {
	VNI           uint32 // 24 bit
	Local, Remote netip.Addr
	Port          uint16 // UDP destination port, the same at both ends (protocol §2.13)
}

// SessionLife is how long after a handshake a WireGuard session can still carry packets
// (REJECT_AFTER_TIME of the WireGuard paper, section 6.1).
const SessionLife = 180 * time.Second

// Outlived reports whether a session that began with a handshake should have been renewed
// long ago, or begins in the future: a clock has been set. The zero time is none.
func Outlived(handshake, now time.Time) bool {
	age := now.Sub(handshake)
	return !handshake.IsZero() && (age > SessionLife || age < -time.Second)
}

// WireGuard holds the parameters of a WireGuard device with one peer,
// which may use any address inside the tunnel (protocol §2.13). The zero value is
// those of a device that is made, and no more: it waits for its parameters.
type WireGuard struct {
	PrivateKey [32]byte
	Port       uint16 // own UDP port; 0 lets the kernel choose
	PeerKey    [32]byte
	Endpoint   netip.AddrPort // peer's address; zero: the peer calls first
	Keepalive  time.Duration  // persistent keepalive, whole seconds; 0: off
}

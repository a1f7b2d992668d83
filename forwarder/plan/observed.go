// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"time"
)

// RouteProtocol marks routes and rules as ours (rtm_protocol, see
// /etc/iproute2/rt_protos; 78 is 'N' and not assigned). Routes of any other
// protocol are none of our business and stay.
const RouteProtocol = 78

// Main is the number of the main routing table (RT_TABLE_MAIN).
const Main = 254

// rulePriority is the priority of the rule of a wire's first policy: before the
// rule for the main table (32766), after anything that an operator usually puts
// first. The rules of further policies follow.
const rulePriority = 10001

// Observed is what the kernel has for a wire.
type Observed struct {
	Ends []ObservedEnd // one for each of Wire.Ends, in that order
	// WireGuardKind is the LinkKind that a WireGuard device has when it is made
	// now: one that was made in another way cannot be configured. Empty: any.
	WireGuardKind string
	// NamesFixed says that the kernel does not rename links that are up.
	NamesFixed bool
}

// ObservedEnd is one end as it is. Save for the last group, fields mean
// something only if Found.
type ObservedEnd struct {
	Found bool // a link with the end's tag is in the end's namespace
	// Tagged is false for a link that has the end's MAC address but no alias
	// yet: whoever made it was killed right afterwards.
	Tagged   bool
	Name     string
	Index    int
	Peer     int    // veth: index of the other end, in its namespace
	LinkKind string // as rtnetlink names it, or LinkTunnel
	MTU      int    // bytes
	MAC      net.HardwareAddr
	Up       bool   // administratively
	State    string // operational, as `ip link` names it: up, down, lowerlayerdown, unknown, …

	Addrs     []netip.Prefix // without link-local ones that the kernel made
	Routes    []Route        // main table, of RouteProtocol
	Neighbors []Neighbor     // permanent ones

	VXLAN         *VXLAN
	WireGuard     *WireGuard
	Tunnel        *Tunnel       // Calls is not to be seen
	LastHandshake time.Time     // WireGuard, tunnel: zero means none
	Keepalive     time.Duration // tunnel: how often this side calls the peer at least; 0: not by itself
	PeerRx        uint64        // bytes from the peer. WireGuard: its overhead included; tunnel: this wire's
	PeerTx        uint64        // bytes to the peer, likewise
	Counters      Counters

	// Aside is the link whose place another one takes, or was about to take when
	// whoever had set it aside was killed. nil: there is none.
	Aside *ObservedEnd

	// About the namespace, whether or not there is a link:

	Taken      bool // a link that is not ours bears the end's name
	IPv6Off    bool // disable_ipv6 of the link, if there is one
	NewIPv6Off bool // disable_ipv6 of links to come
	PingClosed bool // nobody may open ping sockets (ping_group_range is "1 0")
	// Tables are our policy tables over this link, and our rules that lead to
	// an empty table: what is left when somebody else deleted a link. Of two
	// ends in one namespace only the first has the latter.
	Tables []PolicyTable
	// UsedTables are numbers a new table must not take. Filled in only if the
	// end has policies.
	UsedTables []int
}

// Counters are a link's, since it was made.
type Counters struct {
	RxPackets, RxBytes, RxErrors, RxDropped uint64
	TxPackets, TxBytes, TxErrors, TxDropped uint64
}

// PolicyTable is a policy in the kernel: a table of its own and the rule that
// leads to it.
type PolicyTable struct {
	Rule    Rule // without a rule only Table and IPv6 mean something
	HasRule bool
	Routes  []Route
}

// Rule sends the traffic it selects to a table.
type Rule struct {
	IPv6     bool
	From     netip.Prefix
	Proto    uint8 // 0: any
	SrcPort  PortRange
	DstPort  PortRange
	Table    int
	Priority int
}

// selects reports whether both rules select the same traffic.
func (r Rule) selects(s Rule) bool {
	return r.IPv6 == s.IPv6 && r.From == s.From && r.Proto == s.Proto && r.SrcPort == s.SrcPort && r.DstPort == s.DstPort
}

// Found is a tagged link, see kernel.Kernel.Adopt.
type Found struct {
	Tag      Tag
	NetNS    string
	Name     string
	LinkKind string // as rtnetlink names it: veth, vxlan, wireguard, tun; or LinkTunnel
	// Hidden says that nothing but the link itself shows its namespace, as a
	// device of userspace whose client is dead. The table need not have NetNS, and
	// the caller of Adopt has no reference to it.
	Hidden bool
}

// Wires groups the ends found, in whatever order they come, into wires: enough of
// each to remove it, with the client's end first, as in every Wire. A link that was set
// aside is an end only where no other one has taken its place.
func Wires(found []Found) []Wire {
	var wires []Wire
	index := make(map[string]int) // by wire id
	found = slices.Clone(found)
	slices.SortStableFunc(found, func(a, b Found) int { // the ends that links were set aside for come first
		if a.Tag.Aside == b.Tag.Aside {
			return 0
		} else if b.Tag.Aside {
			return -1
		}
		return 1
	})
	for _, f := range found {
		i, ok := index[f.Tag.ID]
		if !ok {
			i = len(wires)
			index[f.Tag.ID] = i
			wires = append(wires, Wire{ID: f.Tag.ID, Owner: f.Tag.Owner, Kind: kindOf(f.LinkKind)})
		}
		if f.Tag.Aside && slices.ContainsFunc(wires[i].Ends, func(e End) bool { return e.NetNS == f.NetNS && e.Side == f.Tag.Side }) {
			continue
		}
		wires[i].Ends = append(wires[i].Ends, End{NetNS: f.NetNS, Name: f.Name, Side: f.Tag.Side})
	}
	for _, w := range wires {
		slices.SortStableFunc(w.Ends, func(a, b End) int { return cmp.Compare(a.Side, b.Side) })
	}
	return wires
}

// kindOf returns the kind of wire that a link of this kind belongs to: a "tun"
// is WireGuard in userspace.
func kindOf(linkKind string) Kind {
	switch linkKind {
	case "veth":
		return KindVeth
	case "vxlan":
		return KindVXLAN
	case LinkTunnel:
		return KindTunnel
	}
	return KindWireGuard
}

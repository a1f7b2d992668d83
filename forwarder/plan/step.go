// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Step is one change to the kernel. The types below are all there are;
// package kernel executes them, package memkernel pretends to.
type Step interface {
	// String is the command a human would type. Namespaces appear by key, see
	// Script for names; private keys do not appear.
	String() string
	// command is String with namespaces named by ns.
	command(ns namer) string
}

type namer func(key string) string

func byKey(key string) string { return key }

// Script prints steps as a shell script, one command a line, with the names
// that nameOf gives to namespaces (as `ip netns` knows them).
func Script(steps []Step, nameOf func(key string) string) string {
	var b strings.Builder
	for _, s := range steps {
		b.WriteString(s.command(nameOf))
		b.WriteByte('\n')
	}
	return b.String()
}

// Link names a link: its namespace and its name there.
type Link struct{ NetNS, Name string }

func (l Link) at() Link { return l }

// LinkOf returns the link that a step is about, or the zero value for steps
// about something else and for AddVeth, which is about two.
func LinkOf(s Step) Link {
	if s, ok := s.(interface{ at() Link }); ok {
		return s.at()
	}
	return Link{}
}

// NewLink is a link to be made. MTU 0 leaves the kernel's default.
type NewLink struct {
	Link
	MTU int
	MAC net.HardwareAddr
}

type (
	// AddVeth makes a pair, each end in its namespace from the start.
	AddVeth struct{ A, B NewLink }
	// AddVXLAN makes the device in the workload's namespace; its underlay is
	// the forwarder's.
	AddVXLAN struct {
		NewLink
		VXLAN VXLAN
	}
	// AddWireGuard makes the device, without a key.
	AddWireGuard struct {
		Link
		Tag Tag
		MTU int
	}
	// ConfigureWireGuard sets key, port and peer.
	ConfigureWireGuard struct {
		Link
		Tag       Tag
		WireGuard WireGuard
		Old       *WireGuard // nil or zero: it had none
	}
	// DelLink deletes a link, and with it its addresses, routes, neighbours
	// and, for a veth, the other end.
	DelLink struct {
		Link
		Tag  Tag
		Kind Kind
	}

	// Rename gives a link another name and tag in one go: it is set aside, or comes
	// back. A link that is up stays so, on Linux 6.2 or later.
	Rename struct {
		Link
		To  string
		Tag Tag // that it has then
	}

	// SetAlias tags a link.
	SetAlias struct {
		Link
		Tag Tag
	}
	// SetMTU changes the MTU from Old.
	SetMTU struct {
		Link
		MTU, Old int
	}
	// SetMAC changes the address from Old.
	SetMAC struct {
		Link
		MAC, Old net.HardwareAddr
	}
	// SetUp switches a link on.
	SetUp struct{ Link }
	// SetSysctl writes below /proc/sys, as the namespace sees it.
	SetSysctl struct{ NetNS, Path, Value string }

	// AddAddr adds an address; an IPv6 address is usable at once (NODAD).
	AddAddr struct {
		Link
		Addr netip.Prefix
	}
	// DelAddr removes one.
	DelAddr struct {
		Link
		Addr netip.Prefix
	}
	// AddRoute adds a route next to those that other links have to the same
	// destination.
	AddRoute struct {
		Link
		Route Route
		Table int
	}
	// DelRoute removes one.
	DelRoute struct {
		Link
		Route Route
		Table int
	}
	// AddRule adds a rule to a namespace.
	AddRule struct {
		NetNS string
		Rule  Rule
	}
	// DelRule removes one.
	DelRule struct {
		NetNS string
		Rule  Rule
	}
	// AddNeighbor sets a permanent neighbour, over a learned one if need be.
	AddNeighbor struct {
		Link
		Neighbor Neighbor
		Old      net.HardwareAddr // of the permanent one it replaces, or nil
	}
	// DelNeighbor removes one.
	DelNeighbor struct {
		Link
		Neighbor Neighbor
	}
)

// Inverse returns the step that takes s back, or nil if there is none: what
// was repaired (alias, up, sysctl) stays repaired, and a deleted link is gone.
func Inverse(s Step) Step {
	switch s := s.(type) {
	case AddVeth:
		return DelLink{Link: s.A.Link, Kind: KindVeth}
	case AddVXLAN:
		return DelLink{Link: s.Link, Kind: KindVXLAN}
	case AddWireGuard:
		return DelLink{Link: s.Link, Tag: s.Tag, Kind: KindWireGuard}
	case ConfigureWireGuard:
		if s.Old == nil || *s.Old == (WireGuard{}) {
			return nil // there is nothing to go back to
		}
		return ConfigureWireGuard{Link: s.Link, Tag: s.Tag, WireGuard: *s.Old, Old: &s.WireGuard}
	case Rename:
		tag := s.Tag
		tag.Aside = !tag.Aside
		return Rename{Link: Link{NetNS: s.NetNS, Name: s.To}, To: s.Name, Tag: tag}
	case AddTunnel:
		return DelLink{Link: s.Link, Tag: s.Tag, Kind: KindTunnel}
	case PointTunnel:
		if s.Old == nil || s.Old.waits() {
			return nil // there is nothing to go back to
		}
		return PointTunnel{Link: s.Link, Tag: s.Tag, Tunnel: *s.Old, Old: &s.Tunnel}
	case SetMTU:
		return SetMTU{Link: s.Link, MTU: s.Old, Old: s.MTU}
	case SetMAC:
		return SetMAC{Link: s.Link, MAC: s.Old, Old: s.MAC}
	case AddAddr:
		return DelAddr(s)
	case DelAddr:
		return AddAddr(s)
	case AddRoute:
		return DelRoute(s)
	case DelRoute:
		return AddRoute(s)
	case AddRule:
		return DelRule(s)
	case DelRule:
		return AddRule(s)
	case AddNeighbor:
		if s.Old == nil {
			return DelNeighbor{Link: s.Link, Neighbor: s.Neighbor}
		}
		old := Neighbor{IP: s.Neighbor.IP, MAC: s.Old}
		return AddNeighbor{Link: s.Link, Neighbor: old, Old: s.Neighbor.MAC}
	case DelNeighbor:
		return AddNeighbor{Link: s.Link, Neighbor: s.Neighbor}
	}
	return nil
}

func (s AddVeth) command(ns namer) string {
	return fmt.Sprintf("ip -n %s link add %s type veth peer name %s netns %s%s",
		ns(s.A.NetNS), s.A.params(), s.B.Name, ns(s.B.NetNS), strings.TrimPrefix(s.B.params(), s.B.Name))
}

func (s AddVXLAN) command(ns namer) string {
	return fmt.Sprintf("ip link add %s netns %s type vxlan id %d local %v remote %v dstport %d nolearning",
		s.params(), ns(s.NetNS), s.VXLAN.VNI, s.VXLAN.Local, s.VXLAN.Remote, s.VXLAN.Port)
}

func (s AddWireGuard) command(ns namer) string {
	return fmt.Sprintf("ip link add %s netns %s type wireguard", NewLink{Link: s.Link, MTU: s.MTU}.params(), ns(s.NetNS))
}

func (l NewLink) params() string {
	p := l.Name
	if l.MTU != 0 {
		p += fmt.Sprintf(" mtu %d", l.MTU)
	}
	if l.MAC != nil {
		p += " address " + l.MAC.String()
	}
	return p
}

func (s ConfigureWireGuard) command(ns namer) string {
	g := s.WireGuard
	p := fmt.Sprintf("ip netns exec %s wg set %s private-key (hidden)", ns(s.NetNS), s.Name)
	if g.Port != 0 {
		p += fmt.Sprintf(" listen-port %d", g.Port)
	}
	p += " peer " + base64.StdEncoding.EncodeToString(g.PeerKey[:])
	if g.Endpoint.IsValid() {
		p += " endpoint " + g.Endpoint.String()
	}
	if g.Keepalive != 0 {
		p += fmt.Sprintf(" persistent-keepalive %d", int(g.Keepalive.Seconds()))
	}
	return p + " allowed-ips 0.0.0.0/0,::/0"
}

func (l Link) set(ns namer, what string) string {
	return fmt.Sprintf("ip -n %s link set %s %s", ns(l.NetNS), l.Name, what)
}

func (s DelLink) command(ns namer) string {
	return fmt.Sprintf("ip -n %s link delete %s", ns(s.NetNS), s.Name)
}
func (s Rename) command(ns namer) string {
	return s.set(ns, fmt.Sprintf("name %s alias %s", s.To, s.Tag))
}
func (s SetAlias) command(ns namer) string { return s.set(ns, "alias "+s.Tag.String()) }
func (s SetMTU) command(ns namer) string   { return s.set(ns, fmt.Sprintf("mtu %d", s.MTU)) }
func (s SetMAC) command(ns namer) string   { return s.set(ns, "address "+s.MAC.String()) }
func (s SetUp) command(ns namer) string    { return s.set(ns, "up") }

func (s SetSysctl) command(ns namer) string {
	return fmt.Sprintf("ip netns exec %s sysctl -w %s='%s'", ns(s.NetNS), s.Path, s.Value)
}

func (s AddAddr) command(ns namer) string {
	cmd := fmt.Sprintf("ip -n %s address add %v dev %s", ns(s.NetNS), s.Addr, s.Name)
	if s.Addr.Addr().Is6() {
		cmd += " nodad"
	}
	return cmd
}

func (s DelAddr) command(ns namer) string {
	return fmt.Sprintf("ip -n %s address delete %v dev %s", ns(s.NetNS), s.Addr, s.Name)
}

func (s AddRoute) command(ns namer) string {
	return routeCommand(ns, "append", s.Link, s.Route, s.Table)
}
func (s DelRoute) command(ns namer) string {
	return routeCommand(ns, "delete", s.Link, s.Route, s.Table)
}

func routeCommand(ns namer, verb string, l Link, r Route, table int) string {
	cmd := fmt.Sprintf("ip -n %s route %s %v", ns(l.NetNS), verb, r.Dst)
	if r.Via.IsValid() {
		cmd += " via " + r.Via.String()
	}
	cmd += " dev " + l.Name
	switch {
	case r.OnLink:
		cmd += " onlink"
	case !r.Via.IsValid() && r.Dst.Addr().Is4():
		cmd += " scope link"
	}
	if table != Main {
		cmd += fmt.Sprintf(" table %d", table)
	}
	return cmd + fmt.Sprintf(" proto %d", RouteProtocol)
}

func (s AddRule) command(ns namer) string { return ruleCommand(ns, "add", s.NetNS, s.Rule) }
func (s DelRule) command(ns namer) string { return ruleCommand(ns, "delete", s.NetNS, s.Rule) }

func ruleCommand(ns namer, verb, netns string, r Rule) string {
	family := ""
	if r.IPv6 {
		family = " -6"
	}
	return fmt.Sprintf("ip%s -n %s rule %s priority %d %v protocol %d", family, ns(netns), verb, r.Priority, r, RouteProtocol)
}

// String prints what the rule selects and its table, as `ip rule` does.
func (r Rule) String() string {
	var b strings.Builder
	if r.From.IsValid() {
		b.WriteString("from " + r.From.String() + " ")
	}
	if r.Proto != 0 {
		fmt.Fprintf(&b, "ipproto %d ", r.Proto)
	}
	if r.SrcPort != (PortRange{}) {
		b.WriteString("sport " + r.SrcPort.String() + " ")
	}
	if r.DstPort != (PortRange{}) {
		b.WriteString("dport " + r.DstPort.String() + " ")
	}
	fmt.Fprintf(&b, "table %d", r.Table)
	return b.String()
}

// String prints the route as `ip route` does, without its device.
func (r Route) String() string {
	text := r.Dst.String()
	switch {
	case r.Dst.Bits() == 0:
		text = "default"
	case r.Dst.IsSingleIP():
		text = r.Dst.Addr().String()
	}
	if r.Via.IsValid() {
		text += " via " + r.Via.String()
	}
	switch {
	case r.OnLink:
		text += " onlink"
	case !r.Via.IsValid() && r.Dst.Addr().Is4():
		text += " scope link"
	}
	return text
}

func (s AddNeighbor) command(ns namer) string {
	lladdr := ""
	if s.Neighbor.MAC != nil {
		lladdr = " lladdr " + s.Neighbor.MAC.String()
	}
	return fmt.Sprintf("ip -n %s neighbor replace %v%s dev %s nud permanent", ns(s.NetNS), s.Neighbor.IP, lladdr, s.Name)
}

func (s DelNeighbor) command(ns namer) string {
	return fmt.Sprintf("ip -n %s neighbor delete %v dev %s", ns(s.NetNS), s.Neighbor.IP, s.Name)
}

func (s AddVeth) String() string            { return s.command(byKey) }
func (s AddVXLAN) String() string           { return s.command(byKey) }
func (s AddWireGuard) String() string       { return s.command(byKey) }
func (s ConfigureWireGuard) String() string { return s.command(byKey) }
func (s DelLink) String() string            { return s.command(byKey) }
func (s Rename) String() string             { return s.command(byKey) }
func (s SetAlias) String() string           { return s.command(byKey) }
func (s SetMTU) String() string             { return s.command(byKey) }
func (s SetMAC) String() string             { return s.command(byKey) }
func (s SetUp) String() string              { return s.command(byKey) }
func (s SetSysctl) String() string          { return s.command(byKey) }
func (s AddAddr) String() string            { return s.command(byKey) }
func (s DelAddr) String() string            { return s.command(byKey) }
func (s AddRoute) String() string           { return s.command(byKey) }
func (s DelRoute) String() string           { return s.command(byKey) }
func (s AddRule) String() string            { return s.command(byKey) }
func (s DelRule) String() string            { return s.command(byKey) }
func (s AddNeighbor) String() string        { return s.command(byKey) }
func (s DelNeighbor) String() string        { return s.command(byKey) }

// SPDX-License-Identifier: Apache-2.0

package memkernel

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/openvwire/nsm/forwarder/plan"
)

type addr = netip.Prefix

// do executes one step with the errors of the real kernel.
func (k *Kernel) do(s plan.Step) error {
	switch s := s.(type) {
	case plan.AddVeth:
		return k.addVeth(s)
	case plan.AddVXLAN:
		return k.addVXLAN(s)
	case plan.AddWireGuard:
		return k.addWireGuard(s)
	case plan.AddTunnel:
		return k.addTunnel(s)
	case plan.DelLink:
		return k.deleteLink(s.Link)
	case plan.AddRule:
		return k.addRule(s)
	case plan.DelRule:
		ns := k.namespace(s.NetNS)
		return remove(&ns.rules, s.Rule)
	case plan.SetSysctl:
		return k.setSysctl(s)
	}
	return k.doOnLink(s)
}

// doOnLink executes the steps that need a link to exist.
func (k *Kernel) doOnLink(s plan.Step) error {
	at := plan.LinkOf(s)
	l, ok := k.namespace(at.NetNS).links[at.Name]
	if !ok {
		return syscall.ENODEV
	}
	switch s := s.(type) {
	case plan.Rename:
		ns := k.namespace(s.NetNS)
		if k.namesFixed && l.up {
			return syscall.EBUSY
		}
		if _, exists := ns.links[s.To]; exists {
			return syscall.EEXIST
		}
		delete(ns.links, s.Name)
		ns.links[s.To], l.alias = l, s.Tag.String()
	case plan.SetAlias:
		l.alias = s.Tag.String()
	case plan.ConfigureWireGuard:
		if l.kind != k.wireguard {
			return syscall.EOPNOTSUPP
		}
		g := s.WireGuard
		if g.Port == 0 {
			g.Port = 51820
		}
		l.wireguard = &g
	case plan.PointTunnel:
		if l.tunnel == nil {
			return syscall.EOPNOTSUPP
		}
		l.tunnel = seenAs(s.Tunnel)
	case plan.SetMTU:
		l.mtu = s.MTU
	case plan.SetMAC:
		l.mac = s.MAC
	case plan.SetUp:
		l.up = true
	case plan.AddAddr:
		if s.Addr.Addr().Is6() && l.ipv6Off {
			return syscall.EACCES
		}
		if s.Addr.Addr().Is6() && slices.ContainsFunc(l.addrs, func(a addr) bool { return a.Addr() == s.Addr.Addr() }) {
			return syscall.EEXIST
		}
		return insert(&l.addrs, s.Addr)
	case plan.DelAddr:
		return remove(&l.addrs, s.Addr)
	case plan.AddRoute:
		if !l.up {
			return syscall.ENETDOWN
		}
		return insert(&l.routes, route{s.Route, s.Table})
	case plan.DelRoute:
		return remove(&l.routes, route{s.Route, s.Table})
	case plan.AddNeighbor:
		if s.Neighbor.IP.Is6() && l.ipv6Off {
			return syscall.EINVAL
		}
		l.neighbors = slices.DeleteFunc(l.neighbors, func(n plan.Neighbor) bool { return n.IP == s.Neighbor.IP })
		l.neighbors = append(l.neighbors, s.Neighbor)
	case plan.DelNeighbor:
		before := len(l.neighbors)
		l.neighbors = slices.DeleteFunc(l.neighbors, func(n plan.Neighbor) bool { return n.IP == s.Neighbor.IP })
		if len(l.neighbors) == before {
			return syscall.ENOENT
		}
	default:
		panic("memkernel: unknown step " + s.String())
	}
	return nil
}

func (k *Kernel) addLink(n plan.NewLink, l *link) error {
	ns := k.namespace(n.NetNS)
	if ns.gone {
		return syscall.EINVAL
	}
	if _, exists := ns.links[n.Name]; exists {
		return syscall.EEXIST
	}
	l.mtu, l.mac, l.ipv6Off = n.MTU, n.MAC, ns.ipv6Off
	if l.mtu == 0 {
		l.mtu = 1500
	}
	k.links++
	ns.links[n.Name], l.index = l, k.links
	return nil
}

func (k *Kernel) addVeth(s plan.AddVeth) error {
	a, b := &link{kind: "veth"}, &link{kind: "veth"}
	a.peer, b.peer = b, a
	if err := k.addLink(s.A, a); err != nil {
		return err
	}
	if err := k.addLink(s.B, b); err != nil {
		delete(k.namespace(s.A.NetNS).links, s.A.Name)
		return err
	}
	return nil
}

// addVXLAN refuses a second device with the same VNI and port: the kernel
// tells arriving packets apart by nothing else.
func (k *Kernel) addVXLAN(s plan.AddVXLAN) error {
	for _, ns := range k.namespaces {
		for _, l := range ns.links {
			if l.vxlan != nil && l.vxlan.VNI == s.VXLAN.VNI && l.vxlan.Port == s.VXLAN.Port {
				return syscall.EEXIST
			}
		}
	}
	return k.addLink(s.NewLink, &link{kind: "vxlan", vxlan: &s.VXLAN})
}

// addWireGuard refuses a second device of one end of a wire: the backend of the first
// would take it for that.
func (k *Kernel) addWireGuard(s plan.AddWireGuard) error {
	for _, ns := range k.namespaces {
		for _, l := range ns.links {
			if l.device == s.Tag && (l.kind == k.wireguard || l.kind == plan.LinkTunnel) {
				return syscall.EEXIST
			}
		}
	}
	return k.addLink(plan.NewLink{Link: s.Link, MTU: s.MTU}, &link{kind: k.wireguard, device: s.Tag})
}

// addTunnel makes the tunnel, too, if it is gone.
func (k *Kernel) addTunnel(s plan.AddTunnel) error {
	if k.tunnel == (plan.TunnelNode{}) {
		k.tunnel = s.Tunnel.Own
	}
	for key, ns := range k.namespaces {
		for _, l := range ns.links {
			if l.device == s.Tag && (key == s.NetNS || l.kind != plan.LinkTunnel) {
				return syscall.EEXIST // the holder knows it by its tag and namespace
			}
		}
	}
	s.Tunnel.Peer = plan.TunnelPeer{}
	return k.addLink(s.NewLink, &link{kind: plan.LinkTunnel, tunnel: seenAs(s.Tunnel), device: s.Tag})
}

// seenAs is a wire of the tunnel as it can be observed.
func seenAs(t plan.Tunnel) *plan.Tunnel {
	t.Calls = false
	return &t
}

func (k *Kernel) deleteLink(at plan.Link) error {
	links := k.namespace(at.NetNS).links
	l, ok := links[at.Name]
	if !ok {
		return syscall.ENODEV
	}
	delete(links, at.Name)
	for _, ns := range k.namespaces {
		maps.DeleteFunc(ns.links, func(_ string, other *link) bool { return other == l.peer })
	}
	return nil
}

// addRule drops a source that contains every address, as the kernel does.
func (k *Kernel) addRule(s plan.AddRule) error {
	ns := k.namespace(s.NetNS)
	if s.Rule.From.Bits() == 0 {
		s.Rule.From = netip.Prefix{}
	}
	return insert(&ns.rules, s.Rule)
}

func (k *Kernel) setSysctl(s plan.SetSysctl) error {
	ns := k.namespace(s.NetNS)
	if s.Path == "net/ipv4/ping_group_range" {
		ns.ping = s.Value == plan.PingOpen
		return nil
	}
	name, ok := strings.CutPrefix(s.Path, "net/ipv6/conf/")
	name, ok2 := strings.CutSuffix(name, "/disable_ipv6")
	l, exists := ns.links[name]
	if !ok || !ok2 || !exists {
		return syscall.ENOENT
	}
	l.ipv6Off = s.Value == "1"
	return nil
}

// tables returns the policy tables over l (which may be nil) and, if asked,
// rules that lead to a table without any route.
func (ns *namespace) tables(l *link, orphans bool) []plan.PolicyTable {
	var tables []plan.PolicyTable
	taken := make(map[tableKey]bool) // tables whose routes are in the result
	for _, rule := range ns.rules {
		key := tableKey{rule.Table, rule.IPv6}
		t := plan.PolicyTable{Rule: rule, HasRule: true}
		over := len(l.routesOf(key)) > 0
		if over && !taken[key] {
			t.Routes, taken[key] = l.routesOf(key), true
		}
		if over || (orphans && !ns.hasRoutes(key)) {
			tables = append(tables, t)
		}
	}
	if l == nil {
		return tables
	}
	for _, r := range l.routes {
		key := tableKey{r.table, r.Dst.Addr().Is6()}
		if r.table != plan.Main && !taken[key] {
			taken[key] = true
			tables = append(tables, plan.PolicyTable{Rule: plan.Rule{Table: key.number, IPv6: key.ipv6}, Routes: l.routesOf(key)})
		}
	}
	return tables
}

// tableKey names a routing table: the families number theirs independently.
type tableKey struct {
	number int
	ipv6   bool
}

func (l *link) routesOf(t tableKey) []plan.Route {
	if l == nil {
		return nil
	}
	var routes []plan.Route
	for _, r := range l.routes {
		if r.table == t.number && r.Dst.Addr().Is6() == t.ipv6 {
			routes = append(routes, r.Route)
		}
	}
	return routes
}

func (ns *namespace) hasRoutes(t tableKey) bool {
	for _, l := range ns.links {
		if len(l.routesOf(t)) > 0 {
			return true
		}
	}
	return false
}

func (ns *namespace) usedTables() []int {
	var used []int
	for _, rule := range ns.rules {
		used = append(used, rule.Table)
	}
	for _, l := range ns.links {
		for _, r := range l.routes {
			used = append(used, r.table)
		}
	}
	return used
}

func insert[T comparable](list *[]T, v T) error {
	if slices.Contains(*list, v) {
		return syscall.EEXIST
	}
	*list = append(*list, v)
	return nil
}

func remove[T comparable](list *[]T, v T) error {
	i := slices.Index(*list, v)
	if i < 0 {
		return syscall.ESRCH
	}
	*list = slices.Delete(*list, i, i+1)
	return nil
}

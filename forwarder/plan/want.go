// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net"
	"net/netip"
	"slices"

	"github.com/openvwire/nsm/sdk/flow"
)

// wanted is a desired end in the kernel's terms: defaults filled in,
// duplicates dropped, prefixes masked, policies as rules and tables.
type wanted struct {
	End
	policies []PolicyTable // Table still 0
	ipv6     bool
}

func (w Wire) wanted(i int) wanted {
	e := w.Ends[i]
	e.MAC = e.mac(w.ID)
	e.Addrs = unique(e.Addrs, netip.Prefix.Addr)
	e.Routes = normalRoutes(e.Routes)
	policies := e.policyTables()
	switch {
	case w.layer3():
		e.Neighbors = e.nextHops(policies) // it knows no hardware addresses
	case w.Kind == KindVeth && w.Payload == IP:
		// What is known of the other end comes first: the desired neighbours may be
		// from a time when another forwarder had made it.
		var known []Neighbor
		for _, a := range w.Ends[1-i].Addrs {
			known = append(known, Neighbor{IP: a.Addr(), MAC: w.Ends[1-i].mac(w.ID)})
		}
		e.Neighbors = append(known, e.Neighbors...)
	}
	e.Neighbors = unique(e.Neighbors, func(n Neighbor) netip.Addr { return n.IP })
	ipv6 := e.NeedsIPv6()
	if !ipv6 { // then it may be switched off, and the kernel takes no neighbours of it
		e.Neighbors = slices.DeleteFunc(e.Neighbors, func(n Neighbor) bool { return n.IP.Is6() })
	}
	return wanted{End: e, policies: policies, ipv6: ipv6}
}

// nextHops are the neighbours that the kernel needs where there are no hardware addresses:
// one for all of IPv4, since the device is point-to-point, and one for each next hop of
// IPv6. It makes them itself with the first packet, but keeps no more than gc_thresh3 that
// are not permanent (since Linux 5.0) in all namespaces together: with more wires it makes
// and forgets them all the time, and where it finds none to forget it refuses packets. A
// route of IPv6 to many hosts and without a next hop does not tell whom packets go to.
func (e End) nextHops(policies []PolicyTable) (hops []Neighbor) {
	if e.hasAddr(false) {
		hops = append(hops, Neighbor{IP: netip.IPv4Unspecified()})
	}
	routes := slices.Clone(e.Routes)
	for _, t := range policies {
		routes = append(routes, t.Routes...)
	}
	for _, r := range routes {
		switch {
		case r.Dst.Addr().Is4():
			hops = append(hops, Neighbor{IP: netip.IPv4Unspecified()})
		case r.Via.IsValid():
			hops = append(hops, Neighbor{IP: r.Via})
		case r.Dst.IsSingleIP():
			hops = append(hops, Neighbor{IP: r.Dst.Addr()})
		}
	}
	return hops
}

func normalRoutes(routes []Route) []Route {
	out := make([]Route, 0, len(routes))
	for _, r := range routes {
		r.Dst = r.Dst.Masked()
		r.OnLink = r.OnLink && r.Via.IsValid()
		out = append(out, r)
	}
	type key struct {
		dst netip.Prefix
		via netip.Addr
	}
	return unique(out, func(r Route) key { return key{r.Dst, r.Via} })
}

// policyTables turns policies into rules with tables, a rule for each family
// that the policy has routes of. The priorities are in the order of the policies,
// so that of two that select the same packet the first decides.
//
// A policy without source becomes a rule without one: a socket that is not bound
// has no address yet when its route is looked up. A prefix that contains every
// address is no source either; the kernel does not keep it.
func (e End) policyTables() []PolicyTable {
	var tables []PolicyTable
	for i, p := range e.Policies {
		proto, _ := flow.ParseProto(p.Proto) // Validate has seen to it
		all := normalRoutes(p.Routes)
		for _, v6 := range []bool{false, true} {
			if p.From.IsValid() && p.From.Addr().Is6() != v6 {
				continue
			}
			routes := slices.DeleteFunc(slices.Clone(all), func(r Route) bool { return r.Dst.Addr().Is6() != v6 })
			if len(all) == 0 && (p.From.IsValid() || e.hasAddr(v6)) {
				routes = []Route{{Dst: defaultDst(v6)}}
			}
			if len(routes) == 0 {
				continue
			}
			rule := Rule{IPv6: v6, Proto: proto, SrcPort: p.SrcPort, DstPort: p.DstPort, Priority: rulePriority + i}
			if p.From.Bits() > 0 {
				rule.From = p.From.Masked()
			}
			tables = append(tables, PolicyTable{Rule: rule, HasRule: true, Routes: routes})
		}
	}
	type selector struct {
		ipv6         bool
		from         netip.Prefix
		proto        uint8
		sport, dport PortRange
	}
	return unique(tables, func(t PolicyTable) selector {
		return selector{t.Rule.IPv6, t.Rule.From, t.Rule.Proto, t.Rule.SrcPort, t.Rule.DstPort}
	})
}

func (e End) hasAddr(v6 bool) bool {
	return slices.ContainsFunc(e.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 })
}

func defaultDst(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// unique keeps the first of the values that share a key.
func unique[T any, K comparable](values []T, key func(T) K) []T {
	seen := make(map[K]bool, len(values))
	var out []T
	for _, v := range values {
		if k := key(v); !seen[k] {
			seen[k] = true
			out = append(out, v)
		}
	}
	return out
}

// without returns the values of a that b has not.
func without[T any](a, b []T, equal func(T, T) bool) []T {
	var out []T
	for _, v := range a {
		if !slices.ContainsFunc(b, func(u T) bool { return equal(u, v) }) {
			out = append(out, v)
		}
	}
	return out
}

// mac is the address that the end has, or gets.
func (e End) mac(wireID string) net.HardwareAddr {
	if e.MAC != nil {
		return e.MAC
	}
	return MAC(wireID, e.Side)
}

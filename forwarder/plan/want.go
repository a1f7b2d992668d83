// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"slices"

	"github.com/openvwire/nsm/sdk/flow"
)

// wanted is a desired end in the kernel's terms: defaults filled in,
// duplicates dropped, prefixes masked, policies as rules and tables.
type wanted struct {
	End
	policies []PolicyTable // Table and Priority still 0
	ipv6     bool
}

func (w Wire) wanted(i int) wanted {
	e := w.Ends[i]
	e.MAC = e.mac(w.ID)
	e.Addrs = unique(e.Addrs, netip.Prefix.Addr)
	e.Routes = normalRoutes(e.Routes)
	if w.Kind == KindVeth && w.Payload == IP {
		other := w.Ends[1-i]
		e.Neighbors = slices.Clone(e.Neighbors)
		for _, a := range other.Addrs {
			e.Neighbors = append(e.Neighbors, Neighbor{IP: a.Addr(), MAC: other.mac(w.ID)})
		}
	}
	e.Neighbors = unique(e.Neighbors, func(n Neighbor) netip.Addr { return n.IP })
	return wanted{End: e, policies: e.policyTables(), ipv6: e.needsIPv6()}
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

// policyTables turns policies into rules. A policy without source applies to
// each address of the end, hence becomes one rule for each.
func (e End) policyTables() []PolicyTable {
	var tables []PolicyTable
	for _, p := range e.Policies {
		proto, _ := flow.ParseProto(p.Proto) // Validate has seen to it
		sources := []netip.Prefix{p.From.Masked()}
		if !p.From.IsValid() {
			sources = sources[:0]
			for _, a := range e.Addrs {
				sources = append(sources, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
			}
		}
		for _, from := range sources {
			v6 := from.Addr().Is6()
			routes := slices.DeleteFunc(normalRoutes(p.Routes), func(r Route) bool { return r.Dst.Addr().Is6() != v6 })
			if len(p.Routes) == 0 {
				routes = []Route{{Dst: defaultDst(v6)}}
			}
			if len(routes) == 0 {
				continue // routes of the other family only
			}
			rule := Rule{IPv6: v6, From: from, Proto: proto, SrcPort: p.SrcPort, DstPort: p.DstPort}
			tables = append(tables, PolicyTable{Rule: rule, HasRule: true, Routes: routes})
		}
	}
	type key struct {
		from         netip.Prefix
		proto        uint8
		sport, dport PortRange
	}
	return unique(tables, func(t PolicyTable) key {
		return key{t.Rule.From, t.Rule.Proto, t.Rule.SrcPort, t.Rule.DstPort}
	})
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

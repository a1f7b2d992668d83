// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/openvwire/nsm/forwarder/plan"
)

// observe returns the wire as the sites show it.
func (c *call) observe() (plan.Observed, error) {
	seen := plan.Observed{Ends: make([]plan.ObservedEnd, len(c.wire.Ends))}
	if c.k.wireguard != nil {
		seen.WireGuardKind = c.k.wireguard.Kind()
	}
	visited := make(map[string]bool)
	for i, e := range c.wire.Ends {
		if err := c.ctx.Err(); err != nil {
			return plan.Observed{}, timedOut(err)
		}
		o, err := c.observeEnd(e, !visited[e.NetNS])
		if err != nil {
			return plan.Observed{}, unprivileged(err, "observe "+e.Name)
		}
		visited[e.NetNS] = true
		seen.Ends[i] = o
	}
	return seen, nil
}

func (c *call) observeEnd(e plan.End, orphans bool) (plan.ObservedEnd, error) {
	s := c.sites[e.NetNS]
	o := plan.ObservedEnd{PingClosed: s.pingClosed, NewIPv6Off: s.newIPv6Off}
	at := s.ends[e.Side]
	o.Taken = at.taken
	r := routing{site: s}
	o.Tagged = at.tagged
	if err := c.observeLink(at.link, e, &o, &r); err != nil {
		return o, err
	}
	var err error
	if o.Tables, err = r.tables(orphans, c.brief); err != nil {
		return o, err
	}
	if at.aside != nil {
		o.Aside = &plan.ObservedEnd{Tagged: true}
		if err := c.observeLink(at.aside, e, o.Aside, &r); err != nil {
			return o, err
		}
		if o.Aside.Tables, err = r.tables(false, c.brief); err != nil {
			return o, err
		}
	}
	if len(e.Policies) > 0 && !c.brief && c.look == nil {
		o.UsedTables, err = r.used()
	}
	return o, err
}

// observeLink fills in what is known about a link, if there is one.
func (c *call) observeLink(l netlink.Link, e plan.End, o *plan.ObservedEnd, r *routing) (err error) {
	if l == nil {
		return nil
	}
	s, a := r.site, l.Attrs()
	r.link = a.Index
	o.Found = true
	o.Name, o.Index, o.Peer, o.LinkKind, o.MTU, o.MAC = a.Name, a.Index, a.ParentIndex, linkKind(l), a.MTU, a.HardwareAddr
	if c.brief {
		return nil
	}
	o.Up, o.State = a.Flags&net.FlagUp != 0, a.OperState.String()
	o.IPv6Off = s.ipv6Off[a.Name]
	if st := a.Statistics; st != nil {
		o.Counters = plan.Counters{
			RxPackets: st.RxPackets, RxBytes: st.RxBytes, RxErrors: st.RxErrors, RxDropped: st.RxDropped,
			TxPackets: st.TxPackets, TxBytes: st.TxBytes, TxErrors: st.TxErrors, TxDropped: st.TxDropped,
		}
	}
	if v, ok := l.(*netlink.Vxlan); ok {
		o.VXLAN = &plan.VXLAN{VNI: uint32(v.VxlanId), Local: addrOf(v.SrcAddr), Remote: addrOf(v.Group), Port: uint16(v.Port)}
	}
	if o.LinkKind == "tun" && c.k.tunnel != nil {
		if err := c.observeTunnel(e.NetNS, c.wire.Tag(e.Side).String(), o); err != nil {
			return err
		}
	}
	if c.wire.Kind == plan.KindWireGuard && c.k.wireguard != nil && o.Tunnel == nil {
		status, ok, err := c.k.wireguard.Read(c.ctx, s.ns, a.Name, c.wire.Tag(e.Side).String())
		if err != nil {
			return err
		}
		if ok && status.PrivateKey != [32]byte{} {
			o.WireGuard, o.LastHandshake = &status.WireGuard, status.LastHandshake
			o.PeerRx, o.PeerTx = uint64(status.RxBytes), uint64(status.TxBytes)
		}
	}
	if o.Addrs, err = s.addrs(a.Index, e.Addrs); err != nil {
		return err
	}
	neighbors, err := s.view.neighbors(a.Index)
	if err != nil {
		return err
	}
	for _, n := range neighbors {
		o.Neighbors = append(o.Neighbors, n.Neighbor)
	}
	routes, err := r.routes(a.Index)
	for _, route := range routes {
		if route.table == plan.Main && route.link == a.Index {
			o.Routes = append(o.Routes, route.Route)
		}
	}
	return err
}

// linkKind is the kind of a link as rtnetlink names it. The netlink package has a
// name of its own for one of them.
func linkKind(l netlink.Link) string {
	if _, is := l.(*netlink.Tuntap); is {
		return "tun"
	}
	return l.Type()
}

// view shows what hangs on the links of a namespace: as it is now (reader), or was when
// it was looked at (snapshot). Whose a link is 0 stands for all links.
type view interface {
	addresses(link int) ([]address, error)
	neighbors(link int) ([]neighbor, error) // permanent ones
	// routes returns this forwarder's, and maybe others. Those of all links are
	// everybody's.
	routes(link int) ([]ownedRoute, error)
	rules() ([]ownedRule, error)
}

// addrs returns the addresses of a link, without those that the kernel made
// (link-local ones, unless desired, and those learned from a router).
func (s *site) addrs(link int, desired []netip.Prefix) (addrs []netip.Prefix, err error) {
	list, err := s.view.addresses(link)
	for _, a := range list {
		kernelMade := a.Addr().IsLinkLocalUnicast() && a.Addr().Is6() && !slices.Contains(desired, a.Prefix)
		if a.permanent && !kernelMade {
			addrs = append(addrs, a.Prefix)
		}
	}
	return addrs, err
}

// routing reads the routes and rules of a site, only if needed.
type routing struct {
	site   *site
	link   int                  // index of the link that is looked at; 0: none
	cached map[int][]ownedRoute // by link; 0: of all links
}

// routes returns the routes over a link, or of all links if it is 0. There may be others
// among the former.
func (r *routing) routes(link int) ([]ownedRoute, error) {
	for _, known := range []int{link, 0} {
		if routes, ok := r.cached[known]; ok {
			return routes, nil
		}
	}
	routes, err := r.site.view.routes(link)
	if err != nil {
		return nil, err
	}
	if r.cached == nil {
		r.cached = make(map[int][]ownedRoute)
	}
	r.cached[link] = routes
	return routes, nil
}

// tables returns our policy tables over the link and, if asked, our rules that
// lead to a table without any route. With rulesOnly, tables without rule are
// left out.
func (r *routing) tables(orphans, rulesOnly bool) ([]plan.PolicyTable, error) {
	// Rules before routes: rules are made after their routes, and deleted
	// before them, so a rule that is seen now has its routes then.
	rules, err := r.rules()
	if err != nil || (len(rules) == 0 && (r.link == 0 || rulesOnly)) {
		return nil, err
	}
	link := r.link
	if len(rules) > 0 {
		link = 0 // one may lead to a table that other links use, or none
	}
	routes, err := r.routes(link)
	if err != nil {
		return nil, err
	}
	type key struct {
		number int
		ipv6   bool
	}
	mine, used := make(map[key][]plan.Route), make(map[key]bool)
	for _, route := range routes {
		at := key{route.table, route.Dst.Addr().Is6()}
		used[at] = true
		if route.table != plan.Main && r.link != 0 && route.link == r.link {
			mine[at] = append(mine[at], route.Route)
		}
	}
	var tables []plan.PolicyTable
	over := make(map[key]bool)
	for _, rule := range rules {
		at := key{rule.Table, rule.IPv6}
		if len(mine[at]) > 0 || (orphans && !used[at]) || over[at] {
			tables = append(tables, plan.PolicyTable{Rule: rule, HasRule: true, Routes: mine[at]})
			over[at] = true
			delete(mine, at) // a second rule to the same table is superfluous
		}
	}
	for at, left := range mine {
		tables = append(tables, plan.PolicyTable{Rule: plan.Rule{Table: at.number, IPv6: at.ipv6}, Routes: left})
	}
	return tables, nil
}

// rules returns the namespace's rules of our protocol.
func (r *routing) rules() ([]plan.Rule, error) {
	all, err := r.site.view.rules()
	var rules []plan.Rule
	for _, rule := range all {
		if rule.protocol == plan.RouteProtocol {
			rules = append(rules, rule.Rule)
		}
	}
	return rules, err
}

// used returns the numbers of all tables that hold a route or that a rule,
// whoever's, leads to.
func (r *routing) used() ([]int, error) {
	routes, err := r.routes(0)
	if err != nil {
		return nil, err
	}
	var used []int
	for _, route := range routes {
		used = append(used, route.table)
	}
	rules, err := r.site.view.rules()
	for _, rule := range rules {
		used = append(used, rule.Table)
	}
	return used, err
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

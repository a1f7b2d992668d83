// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"bytes"
	"net"
	"net/netip"
	"slices"

	"github.com/openvwire/nsm/sdk/nserr"
)

// PingOpen is what ping_group_range is set to: every group.
const PingOpen = "0 2147483647"

const pingGroupRange = "net/ipv4/ping_group_range"

// Conflict returns an error with [nserr.NameTaken] if a link that is not ours
// stands where the wire needs one, else nil.
func Conflict(w Wire, seen Observed) error {
	for i, e := range seen.Ends {
		if e.Taken {
			return nserr.NameTaken.Errorf("interface %q exists in namespace %s", w.Ends[i].Name, w.Ends[i].NetNS)
		}
	}
	return nil
}

// Diff returns the steps from what was seen to the wire as desired, in the
// order to execute them. The wire must be valid (see [Wire.Validate]) and free
// of conflict (see [Conflict]).
//
// New things come before the old ones go, so that a change of address or route
// leaves no gap. Links are kept if they can be. One that cannot is set aside, carries
// packets until the new one does, and goes at the very end: what may be still under
// way then is for the caller to wait for, see [Urgent].
func Diff(w Wire, seen Observed) []Step {
	d := differ{
		wire:    w,
		ends:    make([]wanted, len(w.Ends)),
		seen:    append([]ObservedEnd(nil), seen.Ends...),
		wgKind:  seen.WireGuardKind,
		fixed:   seen.NamesFixed,
		used:    make(map[string]map[int]bool),
		sysctls: make(map[SetSysctl]bool),
	}
	for i, e := range w.Ends {
		d.ends[i] = w.wanted(i)
		if len(e.Policies) == 0 {
			continue // it needs no table
		}
		if d.used[e.NetNS] == nil {
			d.used[e.NetNS] = map[int]bool{0: true, 253: true, 254: true, 255: true}
		}
		for _, table := range d.seen[i].UsedTables {
			d.used[e.NetNS][table] = true
		}
	}
	d.comeBack()
	if !d.linksFit() {
		d.makeWay()
		d.makeLinks()
	}
	for i := range d.ends {
		d.link(i)
	}
	for i := range d.ends {
		d.addresses(i)
	}
	policies := make([]changedPolicies, len(d.ends))
	for i := range slices.Backward(d.ends) { // whom the client reaches can answer
		policies[i] = d.matchPolicies(i)
		d.newRoutes(i, policies[i].add)
	}
	for i := range d.ends {
		d.oldAddressing(i, policies[i].remove)
	}
	d.retire()
	return d.steps
}

// Removal returns the steps that leave nothing of the wire.
func Removal(w Wire, seen Observed) []Step {
	d := differ{wire: w, seen: append([]ObservedEnd(nil), seen.Ends...)}
	d.deleteLinks()
	return d.steps
}

type differ struct {
	wire    Wire
	ends    []wanted
	seen    []ObservedEnd           // as the steps so far leave them
	wgKind  string                  // see Observed
	fixed   bool                    // see Observed.NamesFixed
	used    map[string]map[int]bool // by namespace: table numbers not free
	sysctls map[SetSysctl]bool      // already among the steps
	steps   []Step
}

func (d *differ) add(s Step) { d.steps = append(d.steps, s) }

func (d *differ) linkOf(i int) Link {
	return Link{NetNS: d.ends[i].NetNS, Name: d.ends[i].Name}
}

// linksFit reports whether the links are what cannot be changed in place.
func (d *differ) linksFit() bool {
	for i, s := range d.seen {
		if !s.Found || s.Name != d.ends[i].Name || kindOf(s.LinkKind) != d.wire.Kind {
			return false
		}
		if d.wire.Kind == KindWireGuard && d.wgKind != "" && s.LinkKind != d.wgKind {
			return false
		}
		if d.wire.Kind == KindTunnel && (s.Tunnel == nil || s.Tunnel.Wire != d.wire.Tunnel.Wire || d.wire.layer3() != (len(s.MAC) == 0)) {
			return false
		}
		if d.wire.Kind == KindVXLAN && (s.VXLAN == nil || *s.VXLAN != *d.wire.VXLAN) {
			return false
		}
	}
	return d.wire.Kind != KindVeth || isPair(d.seen[0], d.seen[1])
}

// isPair reports whether two ends are those of one veth.
func isPair(a, b ObservedEnd) bool { return a.Peer == b.Index && b.Peer == a.Index }

// deleteLinks deletes the rules and then the links that are there. Addresses,
// routes and neighbours go with the links.
func (d *differ) deleteLinks() {
	for i := range d.seen {
		d.delRules(i, d.seen[i].Tables)
		d.seen[i].Tables = nil
	}
	for i := range d.seen {
		d.deleteAside(i)
		if s := d.seen[i]; s.Found {
			d.deleteLink(i, s, d.wire.Tag(d.wire.Ends[i].Side))
			d.seen[i].Found = false
		}
	}
}

func (d *differ) delRules(i int, tables []PolicyTable) {
	for _, t := range tables {
		if t.HasRule {
			d.add(DelRule{NetNS: d.wire.Ends[i].NetNS, Rule: t.Rule})
		}
	}
}

// deleteLink deletes a link of an end, and notes that with one end of a pair the
// other one goes.
func (d *differ) deleteLink(i int, l ObservedEnd, tag Tag) {
	kind := kindOf(l.LinkKind)
	d.add(DelLink{Link: Link{NetNS: d.wire.Ends[i].NetNS, Name: l.Name}, Tag: tag, Kind: kind})
	if kind != KindVeth {
		return
	}
	for j := range d.seen {
		o := &d.seen[j]
		if j == i {
			continue
		}
		if o.Found && kindOf(o.LinkKind) == KindVeth && isPair(*o, l) {
			o.Found = false
		}
		if a := o.Aside; a != nil && kindOf(a.LinkKind) == KindVeth && isPair(*a, l) {
			d.delRules(j, a.Tables)
			o.Aside = nil
		}
	}
}

// makeLinks makes the links, and notes how they are then.
func (d *differ) makeLinks() {
	fresh := make([]NewLink, len(d.ends))
	for i, e := range d.ends {
		fresh[i] = NewLink{Link: d.linkOf(i), MTU: e.MTU, MAC: e.MAC}
		old := d.seen[i]
		d.seen[i] = ObservedEnd{
			Found: true, Name: e.Name, MTU: e.MTU, MAC: e.MAC,
			IPv6Off: old.NewIPv6Off, PingClosed: old.PingClosed, Tables: old.Tables, Aside: old.Aside,
		}
	}
	switch w := d.wire; w.Kind {
	case KindVeth:
		d.add(AddVeth{A: fresh[0], B: fresh[1]})
	case KindVXLAN:
		d.add(AddVXLAN{NewLink: fresh[0], VXLAN: *w.VXLAN})
	case KindWireGuard:
		d.add(AddWireGuard{Link: fresh[0].Link, Tag: w.Tag(w.Ends[0].Side), MTU: fresh[0].MTU})
	case KindTunnel:
		if w.layer3() {
			fresh[0].MAC = nil
		}
		d.add(AddTunnel{NewLink: fresh[0], Tag: w.Tag(w.Ends[0].Side), Ethernet: !w.layer3(), Tunnel: *w.Tunnel})
	}
}

// link brings the link itself in order, up included.
func (d *differ) link(i int) {
	e, s, l := d.ends[i], d.seen[i], d.linkOf(i)
	if !s.Tagged {
		d.add(SetAlias{Link: l, Tag: d.wire.Tag(e.Side)})
	}
	g := d.wire.WireGuard
	waits := g != nil && *g == WireGuard{}
	if g != nil && !waits && (s.WireGuard == nil || !g.satisfiedBy(*s.WireGuard)) {
		d.add(ConfigureWireGuard{Link: l, Tag: d.wire.Tag(e.Side), WireGuard: *g, Old: s.WireGuard})
	}
	if u := d.wire.Tunnel; u != nil {
		waits = u.waits()
		if !waits && (s.Tunnel == nil || !u.satisfiedBy(*s.Tunnel)) {
			d.add(PointTunnel{Link: l, Tag: d.wire.Tag(e.Side), Tunnel: *u, Old: s.Tunnel})
		}
	}
	if e.MTU != 0 && e.MTU != s.MTU {
		d.add(SetMTU{Link: l, MTU: e.MTU, Old: s.MTU})
	}
	if !d.wire.layer3() && !bytes.Equal(e.MAC, s.MAC) {
		d.add(SetMAC{Link: l, MAC: e.MAC, Old: s.MAC})
	}
	if e.ipv6 && s.IPv6Off {
		d.sysctl(SetSysctl{NetNS: e.NetNS, Path: "net/ipv6/conf/" + e.Name + "/disable_ipv6", Value: "0"})
	}
	if s.PingClosed {
		d.sysctl(SetSysctl{NetNS: e.NetNS, Path: pingGroupRange, Value: PingOpen})
	}
	if !s.Up && !waits {
		d.add(SetUp{Link: l})
	}
}

func (d *differ) sysctl(s SetSysctl) {
	if !d.sysctls[s] {
		d.sysctls[s] = true
		d.add(s)
	}
}

// satisfiedBy reports whether a device configured as seen does what g asks for.
func (g WireGuard) satisfiedBy(seen WireGuard) bool {
	if g.Port == 0 {
		g.Port = seen.Port
	}
	if g.Endpoint == (netip.AddrPort{}) {
		g.Endpoint = seen.Endpoint
	}
	return g == seen
}

// addresses adds the neighbours and addresses that the link has not.
func (d *differ) addresses(i int) {
	e, s, l := d.ends[i], &d.seen[i], d.linkOf(i)
	for _, n := range without(e.Neighbors, s.Neighbors, sameNeighbor) {
		d.add(AddNeighbor{Link: l, Neighbor: n, Old: macOf(s.Neighbors, n.IP)})
	}
	for _, a := range without(e.Addrs, s.Addrs, same) {
		// A link has an IPv6 address once: one with another prefix length goes first.
		for j, b := range s.Addrs {
			if b.Addr() == a.Addr() && b.Addr().Is6() {
				d.add(DelAddr{Link: l, Addr: b})
				s.Addrs = slices.Delete(slices.Clone(s.Addrs), j, j+1)
				break
			}
		}
		d.add(AddAddr{Link: l, Addr: a})
	}
}

// newRoutes adds the routes and rules that are missing.
func (d *differ) newRoutes(i int, policies []PolicyTable) {
	e, s, l := d.ends[i], d.seen[i], d.linkOf(i)
	d.addRoutes(l, Main, without(e.Routes, s.Routes, same))
	for _, t := range policies {
		d.addRoutes(l, t.Rule.Table, t.Routes)
		if t.HasRule {
			d.add(AddRule{NetNS: l.NetNS, Rule: t.Rule})
		}
	}
}

// oldAddressing removes what hangs on the link and is not wanted.
func (d *differ) oldAddressing(i int, policies []PolicyTable) {
	e, s, l := d.ends[i], d.seen[i], d.linkOf(i)
	for _, t := range policies {
		if t.HasRule {
			d.add(DelRule{NetNS: l.NetNS, Rule: t.Rule})
		}
		d.delRoutes(l, t.Rule.Table, t.Routes)
	}
	d.delRoutes(l, Main, without(s.Routes, e.Routes, same))
	for _, a := range without(s.Addrs, e.Addrs, same) {
		d.add(DelAddr{Link: l, Addr: a})
	}
	for _, n := range s.Neighbors {
		stays := func(o Neighbor) bool { return o.IP == n.IP } // with another MAC it was replaced above
		if !slices.ContainsFunc(e.Neighbors, stays) {
			d.add(DelNeighbor{Link: l, Neighbor: n})
		}
	}
}

// changedPolicies are those that are missing and those that are too many.
type changedPolicies struct{ add, remove []PolicyTable }

// matchPolicies compares policies and returns what to add and what to remove.
// A policy whose rule is there keeps its table, with routes added and removed; if
// its place among the policies has changed the rule is made anew.
func (d *differ) matchPolicies(i int) (changed changedPolicies) {
	e, seen := d.ends[i], d.seen[i].Tables
	kept := make([]bool, len(seen))
	shared := make(map[int]int) // by priority, hence policy: table of the other family's rule
	for _, want := range e.policies {
		have := slices.IndexFunc(seen, func(t PolicyTable) bool {
			return t.HasRule && len(t.Routes) > 0 && t.Rule.selects(want.Rule)
		})
		if have < 0 {
			at := want.Rule.Priority
			if shared[at] == 0 {
				shared[at] = d.freeTable(e.NetNS)
			}
			want.Rule.Table = shared[at]
			changed.add = append(changed.add, want)
			continue
		}
		kept[have] = true
		t := seen[have]
		want.Rule.Table = t.Rule.Table
		missing, superfluous := without(want.Routes, t.Routes, same), without(t.Routes, want.Routes, same)
		if t.Rule.Priority == want.Rule.Priority {
			changed.add = append(changed.add, PolicyTable{Rule: t.Rule, Routes: missing})
			changed.remove = append(changed.remove, PolicyTable{Rule: t.Rule, Routes: superfluous})
			continue
		}
		// The rule in the right place may be there too, if whoever made it was killed
		// before it took the other one away.
		other := slices.IndexFunc(seen, func(t PolicyTable) bool { return t.HasRule && t.Rule == want.Rule })
		if other >= 0 {
			kept[other] = true
		}
		changed.add = append(changed.add, PolicyTable{Rule: want.Rule, HasRule: other < 0, Routes: missing})
		changed.remove = append(changed.remove, PolicyTable{Rule: t.Rule, HasRule: true, Routes: superfluous})
	}
	for j, t := range seen {
		if !kept[j] {
			changed.remove = append(changed.remove, t)
		}
	}
	return changed
}

// freeTable takes the first free table number from 1 on (protocol §2.15).
func (d *differ) freeTable(netns string) int {
	used := d.used[netns]
	table := 1
	for used[table] {
		table++
	}
	used[table] = true
	return table
}

func (d *differ) addRoutes(l Link, table int, routes []Route) {
	for _, r := range routes {
		d.add(AddRoute{Link: l, Route: r, Table: table})
	}
}

func (d *differ) delRoutes(l Link, table int, routes []Route) {
	for _, r := range routes {
		d.add(DelRoute{Link: l, Route: r, Table: table})
	}
}

func same[T comparable](a, b T) bool { return a == b }

func sameNeighbor(a, b Neighbor) bool { return a.IP == b.IP && bytes.Equal(a.MAC, b.MAC) }

// macOf returns the neighbour's address, or nil if ip is not in the list.
func macOf(list []Neighbor, ip netip.Addr) net.HardwareAddr {
	for _, n := range list {
		if n.IP == ip {
			return n.MAC
		}
	}
	return nil
}

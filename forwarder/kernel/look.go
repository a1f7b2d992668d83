// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"

	"github.com/vishvananda/netlink"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
)

// Look looks at many wires at once. What it returns reports whether a wire is as Apply
// would make it. Each namespace is listed when a wire is there for the first time, and
// not again: a few lists in all, however many wires it has. So a look is to be used for a
// short time, and by one goroutine.
//
// What is not sure is reported as not intact, as whenever anything is the matter; Apply
// finds out. A wire that was changed, or damaged, since its namespace was listed is
// reported as it was then.
func (k *Kernel) Look() (intact func(ctx context.Context, w plan.Wire) bool) {
	l := &look{k: k, seen: make(map[*netns.Handle]*snapshot)}
	return l.intact
}

// look is what was seen so far.
type look struct {
	k    *Kernel
	seen map[*netns.Handle]*snapshot

	tunnel    func(key, tag string) (TunnelStatus, bool) // its wires; nil: not asked yet
	tunnelErr error
}

func (l *look) intact(ctx context.Context, w plan.Wire) bool {
	if w.Owner == "" {
		w.Owner = l.k.name
	}
	if ctx.Err() != nil || l.k.check(w) != nil {
		return false
	}
	c := &call{ctx: ctx, k: l.k, wire: w, sites: make(map[string]*site), look: l}
	for _, e := range w.Ends {
		ns, err := l.k.namespaces.Get(e.NetNS)
		if err != nil {
			return false
		}
		space := l.at(ns)
		if space.err != nil {
			return false
		}
		if c.sites[e.NetNS] == nil {
			c.sites[e.NetNS] = &site{
				ns: ns, view: space, ctl: -1, ends: make(map[plan.Side]located),
				ipv6Off: space.ipv6Off, pingClosed: space.pingClosed,
			}
		}
		c.sites[e.NetNS].ends[e.Side] = space.locate(soughtOf(w, e))
	}
	seen, err := c.observe()
	return err == nil && plan.Conflict(w, seen) == nil && len(plan.Diff(w, seen)) == 0
}

// at returns a namespace as it was when the first wire was looked at that is there.
func (l *look) at(ns *netns.Handle) *snapshot {
	s := l.seen[ns]
	if s == nil {
		s = &snapshot{}
		s.err = ns.Do(func() error { return s.take(l.k, l.k.known(ns)) })
		l.seen[ns] = s
	}
	return s
}

// readWire returns a wire of the tunnel as it was when the first one was looked at.
func (l *look) readWire(ctx context.Context, key, tag string) (s TunnelStatus, found bool, err error) {
	if l.tunnel == nil && l.tunnelErr == nil {
		l.tunnel, l.tunnelErr = l.k.tunnel.ReadWires(ctx)
	}
	if l.tunnelErr != nil {
		return s, false, l.tunnelErr
	}
	s, found = l.tunnel(key, tag)
	return s, found, nil
}

// snapshot is what a namespace has, ordered by what is asked for.
type snapshot struct {
	err error // why it could not be listed

	byName, byAlias map[string][]netlink.Link
	byMAC           map[string][]netlink.Link // of links without an alias
	ipv6Off         map[string]bool           // by name
	pingClosed      bool

	addrs map[int][]address // by link
	known map[int][]neighbor
	leads map[int][]ownedRoute
	all   []ownedRoute // if there are rules of ours, everybody's
	obeys []ownedRule
}

// take lists everything. It runs inside the namespace.
func (s *snapshot) take(k *Kernel, about *known) error {
	r, err := k.newReader()
	if err != nil {
		return err
	}
	defer r.close()
	r.hasty = true // what then seems to be damaged is looked at closely
	if err := s.takeLinks(r); err != nil {
		return err
	}
	addrs, err := r.addresses(0)
	if err != nil {
		return err
	}
	s.addrs = byLink(addrs, func(a address) int { return a.link })
	neighbors, err := r.neighbors(0)
	if err != nil {
		return err
	}
	s.known = byLink(neighbors, func(n neighbor) int { return n.link })
	if s.obeys, err = r.rules(); err != nil { // before routes, see tables
		return err
	}
	protocol := uint8(plan.RouteProtocol)
	for _, rule := range s.obeys {
		if rule.protocol == plan.RouteProtocol {
			protocol = 0 // it may lead to a table that others use
		}
	}
	if s.all, err = r.listRoutes(0, protocol); err != nil {
		return err
	}
	s.leads = byLink(s.all, func(route ownedRoute) int { return route.link })
	s.pingClosed = about.pingClosed()
	return nil
}

func (s *snapshot) takeLinks(r *reader) error {
	links, err := r.links()
	s.byName, s.byAlias, s.byMAC = make(map[string][]netlink.Link), make(map[string][]netlink.Link), make(map[string][]netlink.Link)
	s.ipv6Off = make(map[string]bool)
	for _, l := range links {
		a := l.Attrs()
		s.byName[a.Name] = append(s.byName[a.Name], l.Link)
		if a.Alias != "" {
			s.byAlias[a.Alias] = append(s.byAlias[a.Alias], l.Link)
		} else {
			s.byMAC[a.HardwareAddr.String()] = append(s.byMAC[a.HardwareAddr.String()], l.Link)
		}
		s.ipv6Off[a.Name] = l.ipv6Off
	}
	return err
}

// byLink orders what a list has by the link that it belongs to.
func byLink[T any](all []T, link func(T) int) map[int][]T {
	ordered := make(map[int][]T)
	for _, v := range all {
		ordered[link(v)] = append(ordered[link(v)], v)
	}
	return ordered
}

// locate finds the links of one end.
func (s *snapshot) locate(what sought) located {
	var links []netlink.Link
	for _, some := range [][]netlink.Link{s.byAlias[what.tag], s.byAlias[what.aside], s.byMAC[what.mac], s.byName[what.name]} {
		links = append(links, some...) // some of them twice
	}
	return choose(links, what)
}

func (s *snapshot) addresses(link int) ([]address, error)  { return s.addrs[link], nil }
func (s *snapshot) neighbors(link int) ([]neighbor, error) { return s.known[link], nil }
func (s *snapshot) rules() ([]ownedRule, error)            { return s.obeys, nil }

func (s *snapshot) routes(link int) ([]ownedRoute, error) {
	if link == 0 {
		return s.all, nil
	}
	return s.leads[link], nil
}

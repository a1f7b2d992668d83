// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"encoding/hex"
	"slices"
)

// A link that cannot become what is wanted is replaced in four parts:
//
//	ip link set nsm-1 name oldda66… alias nsm:fwd-a:u2:c~    set aside: it still has the routes
//	ip link add nsm-1 …                                      the new one, complete, its routes behind the old ones
//	ip route delete … dev oldda66…                           packets take the new one
//	ip link delete oldda66…                                  when nothing is under way any more
//
// The kernel has several routes to one destination in the order in which they were
// added, and uses the first: the new one takes over as the old one goes, without a
// moment in between. (IPv6 uses both while there are both, if they have next hops, so the
// new one comes when all else of its link is ready.)
// An address may be on two links.
//
// If the new link cannot be made, the old one gets its name back, and nothing has
// happened. Whoever finds a link set aside, after a crash, goes on from there.

// asideName is what a link is called that was set aside.
func (w Wire) asideName(side Side) string {
	return "old" + hex.EncodeToString(MAC(w.ID, side))
}

// Urgent returns the steps without those at the end that can wait: links go that
// packets may be under way through, and that carry no other packets.
func Urgent(steps []Step) []Step {
	for n := len(steps); n > 0; n-- {
		if s, ok := steps[n-1].(DelLink); !ok || !s.Tag.Aside {
			return steps[:n]
		}
	}
	return nil
}

// SetsAside reports whether steps set a link aside.
func SetsAside(steps []Step) bool {
	return slices.ContainsFunc(steps, func(s Step) bool {
		r, is := s.(Rename)
		return is && r.Tag.Aside
	})
}

// comeBack gives links that were set aside their names back if then all is as wanted:
// whoever has set them aside came no further, or the wire goes back to where it was.
func (d *differ) comeBack() {
	if !slices.ContainsFunc(d.seen, func(s ObservedEnd) bool { return s.Aside != nil }) {
		return // as nearly always
	}
	now := d.seen
	d.seen = slices.Clone(now)
	var steps []Step
	for i, s := range now {
		if s.Found || s.Aside == nil || s.Taken {
			continue
		}
		back := *s.Aside
		back.Name, back.Tagged = d.ends[i].Name, true
		back.PingClosed, back.NewIPv6Off, back.UsedTables = s.PingClosed, s.NewIPv6Off, s.UsedTables
		back.Tables = append(slices.Clone(back.Tables), s.Tables...)
		d.seen[i] = back
		steps = append(steps, Rename{
			Link: Link{NetNS: d.ends[i].NetNS, Name: s.Aside.Name}, To: back.Name, Tag: d.wire.Tag(d.ends[i].Side),
		})
	}
	if len(steps) == 0 || d.fixed || !d.linksFit() {
		d.seen = now
		return
	}
	d.steps = append(d.steps, steps...)
}

// makeWay sets the links aside that stand where others are wanted, or deletes them if
// the new ones cannot be made beside them. There is one place to be aside: it is for
// the one that carries packets.
func (d *differ) makeWay() {
	for i, s := range d.seen {
		if s.Found && s.Aside != nil && !s.Aside.inUse() {
			d.deleteAside(i)
		}
	}
	if !d.canWait() {
		d.deleteLinks()
		return
	}
	for i := range d.seen {
		s := &d.seen[i]
		tag := d.wire.Tag(d.wire.Ends[i].Side)
		if s.Found && (!s.Tagged || s.Aside != nil) { // it was never finished
			d.delRules(i, s.Tables)
			d.deleteLink(i, *s, tag)
			s.Found, s.Tables = false, nil
		}
	}
	for i := range d.seen {
		s := &d.seen[i]
		if !s.Found {
			continue
		}
		e := d.wire.Ends[i]
		aside := *s
		aside.Name = d.wire.asideName(e.Side)
		d.add(Rename{Link: Link{NetNS: e.NetNS, Name: s.Name}, To: aside.Name, Tag: d.wire.Tag(e.Side).SetAside()})
		s.Found, s.Tables, s.Aside = false, nil, &aside
	}
}

// inUse reports whether packets take a link that was set aside.
func (o *ObservedEnd) inUse() bool { return len(o.Addrs)+len(o.Routes)+len(o.Tables) > 0 }

// canWait reports whether what stands in the way can be there at the same time as
// what is wanted. Of two VXLAN devices with one VNI the kernel makes only the first,
// and a WireGuard device, or a wire of the tunnel, is known to its backend by the wire
// that it belongs to.
func (d *differ) canWait() bool {
	byTag := func(kind Kind) bool { return kind == KindWireGuard || kind == KindTunnel }
	inTheWay := func(s ObservedEnd) bool {
		kind := kindOf(s.LinkKind)
		return byTag(kind) && byTag(d.wire.Kind) || kind == KindVXLAN && kind == d.wire.Kind &&
			(s.VXLAN == nil || s.VXLAN.VNI == d.wire.VXLAN.VNI && s.VXLAN.Port == d.wire.VXLAN.Port)
	}
	for _, s := range d.seen {
		if s.Found && (d.fixed || inTheWay(s)) || s.Aside != nil && inTheWay(*s.Aside) {
			return false
		}
	}
	return true
}

// retire has packets take the new links and deletes those that were set aside.
func (d *differ) retire() {
	for i := range d.seen {
		if d.seen[i].Aside == nil {
			continue
		}
		aside := *d.seen[i].Aside
		l := Link{NetNS: d.ends[i].NetNS, Name: aside.Name}
		d.delRules(i, aside.Tables)
		d.delRoutes(l, Main, aside.Routes)
		for _, a := range aside.Addrs {
			d.add(DelAddr{Link: l, Addr: a})
		}
		aside.Tables = nil
		d.seen[i].Aside = &aside
	}
	for i := range d.seen {
		d.deleteAside(i)
	}
}

// deleteAside deletes the link of an end that was set aside, if there is one.
func (d *differ) deleteAside(i int) {
	s := &d.seen[i]
	if s.Aside == nil {
		return
	}
	aside := *s.Aside
	s.Aside = nil
	d.delRules(i, aside.Tables)
	d.deleteLink(i, aside, d.wire.Tag(d.wire.Ends[i].Side).SetAside())
}

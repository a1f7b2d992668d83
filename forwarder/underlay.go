// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"fmt"
	"net/netip"
	"net/url"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/nserr"
)

// underlay is what the node's own routes must go on to lead to: tunnels and managers
// are reached there.
type underlay struct {
	prefix netip.Prefix // of the tunnel address, as its link has it
	// needed are addresses of other nodes. Those outside the prefix are reached by
	// routes that are less specific, such as the default one.
	needed []netip.Addr
}

// spare refuses a wire with an end in the node's own namespace that would draw the
// underlay's packets into itself: the node is cut off, and the wire's own packets go
// round in it for ever. A workload in a namespace of its own harms nobody, whatever
// its addresses are.
func (f *Forwarder) spare(want plan.Wire) error {
	self := f.config.Namespaces.Self().Key()
	var found *underlay
	for _, e := range want.Ends {
		if e.NetNS != self || !f.config.TunnelIP.IsValid() {
			continue
		}
		if found == nil {
			u, err := f.underlay(want)
			if err != nil {
				return err
			}
			found = &u
		}
		if what, hit := found.hitBy(e); hit != "" {
			return nserr.BadContext.Errorf("%s of the wire covers %s, the node's underlay, and the interface is to be in the node's own network namespace: it would cut the node off", what, hit).
				WithFix("give the endpoint a --cidr that the nodes do not use, or the workload a namespace of its own")
		}
	}
	return nil
}

// underlay is that of this node as it is now, and as the wire needs it.
func (f *Forwarder) underlay(w plan.Wire) (u underlay, err error) {
	if u.prefix, err = f.config.Kernel.UnderlayPrefix(f.config.TunnelIP); err != nil {
		return u, err
	}
	switch {
	case w.VXLAN != nil:
		u.needed = append(u.needed, w.VXLAN.Remote)
	case w.WireGuard != nil:
		u.needed = append(u.needed, w.WireGuard.Endpoint.Addr())
	case w.Tunnel != nil:
		u.needed = append(u.needed, w.Tunnel.Peer.Endpoint.Addr())
	}
	for _, text := range append(f.config.Peers.URLs(), f.config.Needed...) {
		if a, ok := hostOf(text); ok {
			u.needed = append(u.needed, a)
		}
	}
	return u, nil
}

// hostOf returns the address in a URL that has one.
func hostOf(text string) (netip.Addr, bool) {
	u, err := url.Parse(text)
	if err != nil {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(u.Hostname())
	return a.Unmap(), err == nil && !a.IsLoopback()
}

// hitBy says what of an end takes packets away from the underlay, and which; "" if
// nothing does.
func (u underlay) hitBy(e plan.End) (what, hit string) {
	for _, p := range e.Addrs {
		if hit := u.taken(p.Masked(), true); hit != "" {
			return "address " + p.String(), hit
		}
	}
	for _, r := range e.Routes {
		if hit := u.taken(r.Dst, true); hit != "" {
			return "route " + r.Dst.String(), hit
		}
	}
	for _, p := range e.Policies {
		if !u.selects(p) {
			continue
		}
		if len(p.Routes) == 0 {
			return "the policy route", u.prefix.String()
		}
		for _, r := range p.Routes {
			if hit := u.taken(r.Dst, false); hit != "" {
				return "policy route " + r.Dst.String(), hit
			}
		}
	}
	return "", ""
}

// taken returns what of the underlay a route to dst would lead away. In the main
// table one that is less specific than the underlay's own does no harm to that.
func (u underlay) taken(dst netip.Prefix, main bool) string {
	if u.prefix.Overlaps(dst) && !(main && dst.Bits() < u.prefix.Bits()) {
		return u.prefix.String()
	}
	for _, a := range u.needed {
		if dst.Contains(a) && !(main && u.prefix.Contains(a)) {
			return fmt.Sprintf("%s, which is reached by way of %s", a, u.prefix)
		}
	}
	return ""
}

// selects reports whether a policy has to do with what nodes send each other. One
// for a port or another protocol is about something else.
func (u underlay) selects(p plan.Policy) bool {
	switch p.Proto {
	case "", "udp", "tcp", "17", "6":
	default:
		return false
	}
	if p.SrcPort != (plan.PortRange{}) || p.DstPort != (plan.PortRange{}) {
		return false
	}
	return !p.From.IsValid() || p.From.Contains(u.prefix.Addr())
}

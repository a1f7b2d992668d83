// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/openvwire/nsm/sdk/flow"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Validate refuses a wire that no kernel could have: every value in it that
// comes from a peer is checked here, before anything is touched. The error
// carries a reason of package nserr.
func (w Wire) Validate() error {
	if w.ID == "" || w.Owner == "" || strings.Contains(w.Owner, ":") {
		return nserr.BadRequest.Errorf("wire %q of owner %q needs an id, and an owner without colon", w.ID, w.Owner)
	}
	if tag := w.Tag(Client).SetAside().String(); len(tag) > maxTag || strings.ContainsFunc(tag, isControl) {
		return nserr.BadRequest.Errorf("wire id %.40q… does not fit the ifalias of a link", w.ID)
	}
	if err := w.checkShape(); err != nil {
		return err
	}
	for _, e := range w.Ends {
		if err := e.validate(); err != nil {
			return err
		}
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// checkShape checks that kind, payload, parameters and ends fit together.
func (w Wire) checkShape() error {
	if w.Payload != IP && w.Payload != Ethernet {
		return nserr.PayloadMismatch.Errorf("payload %q is neither %s nor %s", w.Payload, IP, Ethernet)
	}
	ends := 1
	switch w.Kind {
	case KindVeth:
		ends = 2
	case KindVXLAN:
		if w.Payload != Ethernet {
			return nserr.PayloadMismatch.Errorf("VXLAN carries payload %s only", Ethernet)
		}
		if w.VXLAN == nil {
			return nserr.BadMechanism.Errorf("a VXLAN wire needs its parameters")
		}
		if err := w.VXLAN.validate(); err != nil {
			return err
		}
	case KindWireGuard:
		if w.Payload != IP {
			return nserr.PayloadMismatch.Errorf("WireGuard carries payload %s only", IP)
		}
		if w.WireGuard == nil {
			return nserr.BadMechanism.Errorf("a WireGuard wire needs its parameters")
		}
		if err := w.WireGuard.validate(); err != nil {
			return err
		}
	case KindTunnel:
		if w.Tunnel == nil {
			return nserr.BadMechanism.Errorf("a wire in the tunnel needs its parameters")
		}
		if err := w.Tunnel.validate(); err != nil {
			return err
		}
	default:
		return nserr.Unsupported.Errorf("no wire is made of %q", w.Kind)
	}
	if len(w.Ends) != ends {
		return nserr.BadRequest.Errorf("a %s wire has %d ends here, not %d", w.Kind, ends, len(w.Ends))
	}
	if ends == 2 {
		a, b := w.Ends[0], w.Ends[1]
		if a.Side != Client || b.Side != Endpoint {
			return nserr.BadRequest.Errorf("a veth wire has the client's end first, then the endpoint's")
		}
		if a.NetNS == b.NetNS && a.Name == b.Name {
			return nserr.NameTaken.Errorf("both ends are to be named %q in one namespace", a.Name)
		}
	}
	return nil
}

func (v VXLAN) validate() error {
	switch {
	case v.VNI >= 1<<24:
		return nserr.BadMechanism.Errorf("VNI %d has more than 24 bits", v.VNI)
	case v.Port == 0:
		return nserr.BadMechanism.Errorf("VXLAN needs a UDP port")
	case !isUnicast(v.Local) || !isUnicast(v.Remote):
		return nserr.BadMechanism.Errorf("VXLAN from %v to %v: both must be unicast addresses", v.Local, v.Remote)
	case v.Local.Is4() != v.Remote.Is4():
		return nserr.BadMechanism.Errorf("VXLAN from %v to %v: different address families", v.Local, v.Remote)
	case v.Local == v.Remote:
		return nserr.BadMechanism.Errorf("VXLAN from %v to itself", v.Local)
	}
	return nil
}

func (g WireGuard) validate() error {
	switch {
	case g == WireGuard{}:
	case g.PrivateKey == [32]byte{}:
		return nserr.BadMechanism.Errorf("WireGuard needs a private key")
	case g.PeerKey == [32]byte{}:
		return nserr.BadMechanism.Errorf("WireGuard needs the peer's public key")
	case g.Endpoint != netip.AddrPort{} && (!isUnicast(g.Endpoint.Addr()) || g.Endpoint.Port() == 0):
		return nserr.BadMechanism.Errorf("WireGuard endpoint %v is not a unicast address and port", g.Endpoint)
	case g.Keepalive < 0 || g.Keepalive.Seconds() > 65535:
		return nserr.BadMechanism.Errorf("WireGuard keepalive %v is out of range", g.Keepalive)
	}
	return nil
}

func isUnicast(a netip.Addr) bool {
	return a.IsValid() && !a.Is4In6() && !a.IsUnspecified() && !a.IsMulticast() && a.Zone() == ""
}

func (e End) validate() error {
	if e.Side != Client && e.Side != Endpoint {
		return nserr.BadRequest.Errorf("side %q is neither client nor endpoint", e.Side)
	}
	if e.NetNS == "" {
		return nserr.NoNetNS.Errorf("the end %q has no network namespace", e.Name)
	}
	if err := mechanism.CheckInterfaceName(e.Name); err != nil {
		return err
	}
	if e.MAC != nil && (len(e.MAC) != 6 || e.MAC[0]&1 != 0) {
		return nserr.BadContext.Errorf("MAC address %v is not a unicast Ethernet address", e.MAC)
	}
	if err := CheckMTU(e.MTU, e.NeedsIPv6()); err != nil {
		return err
	}
	for _, p := range e.Addrs {
		if !p.IsValid() || !isUnicast(p.Addr()) {
			return nserr.BadContext.Errorf("address %v is not a unicast address with prefix length", p)
		}
	}
	for _, n := range e.Neighbors {
		if !isUnicast(n.IP) || len(n.MAC) != 6 {
			return nserr.BadContext.Errorf("neighbour %v at %v is not a unicast address at an Ethernet address", n.IP, n.MAC)
		}
	}
	if err := checkRoutes(e.Routes); err != nil {
		return err
	}
	for _, p := range e.Policies {
		if err := p.validate(); err != nil {
			return err
		}
	}
	return nil
}

// NeedsIPv6 reports whether anything on the end is of IPv6.
func (e End) NeedsIPv6() bool {
	isIPv6 := func(r Route) bool { return r.Dst.Addr().Is6() }
	return e.hasAddr(true) || slices.ContainsFunc(e.Routes, isIPv6) ||
		slices.ContainsFunc(e.Policies, func(p Policy) bool { return p.From.Addr().Is6() || slices.ContainsFunc(p.Routes, isIPv6) })
}

func checkRoutes(routes []Route) error {
	for _, r := range routes {
		switch {
		case !r.Dst.IsValid() || r.Dst.Addr().Is4In6() || r.Dst.Addr().IsMulticast():
			return nserr.BadContext.Errorf("route destination %v is not a unicast prefix", r.Dst)
		case r.Via.IsValid() && !isUnicast(r.Via):
			return nserr.BadContext.Errorf("route to %v: next hop %v is not a unicast address", r.Dst, r.Via)
		case r.Via.IsValid() && r.Via.Is4() != r.Dst.Addr().Is4():
			return nserr.BadContext.Errorf("route to %v via %v: different address families", r.Dst, r.Via)
		}
	}
	return nil
}

func (p Policy) validate() error {
	if p.From.IsValid() && p.From.Addr().Is4In6() {
		return nserr.BadContext.Errorf("policy from %v: write the IPv4 prefix as such", p.From)
	}
	if _, err := flow.ParseProto(p.Proto); err != nil {
		return err
	}
	for _, r := range []PortRange{p.SrcPort, p.DstPort} {
		if r.From > r.To || (r.From == 0 && r.To != 0) {
			return nserr.BadContext.Errorf("policy with ports %d to %d: not a range", r.From, r.To)
		}
	}
	if err := checkRoutes(p.Routes); err != nil {
		return err
	}
	for _, r := range p.Routes {
		if p.From.IsValid() && r.Dst.Addr().Is4() != p.From.Addr().Is4() {
			return nserr.BadContext.Errorf("policy from %v with a route to %v: different address families", p.From, r.Dst)
		}
	}
	return nil
}

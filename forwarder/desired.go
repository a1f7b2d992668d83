// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/flow"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
)

// defaultMTU is that of a wire between two workloads of one node when nobody
// asks for another: what every network stack expects of an Ethernet.
const defaultMTU = 1500

// keepalive keeps the mappings of middle boxes open, as the reference does (§2.13).
const keepalive = 10 * time.Second

// desired translates two legs and the endpoint's answer into what the kernel is
// to have. It sets the MTU of the answer's context to what the wire really takes
// (§2.16). It is pure but for that.
func desired(owner, id string, left, right *leg, got *networkservice.Connection) (plan.Wire, error) {
	mtu := plan.MinMTU(plan.MinMTU(left.mtu, right.mtu), int(got.GetContext().GetMTU()))
	if mtu == 0 {
		mtu = defaultMTU
	}
	got.Context = hop.WithMTU(got.GetContext(), uint32(mtu))

	w := plan.Wire{ID: id, Owner: owner, Payload: payloadOf(got)}
	if left.isLocal() {
		end, err := clientEnd(left, got.Context, mtu)
		if err != nil {
			return plan.Wire{}, err
		}
		w.Ends = append(w.Ends, end)
	}
	if right.isLocal() {
		end, err := endpointEnd(right, got.Context, mtu)
		if err != nil {
			return plan.Wire{}, err
		}
		w.Ends = append(w.Ends, end)
	}
	tunnel := left
	if left.isLocal() {
		tunnel = right
	}
	switch {
	case tunnel.tunnel != nil:
		w.Kind, w.Tunnel = plan.KindTunnel, tunnel.tunnel
		if w.Payload == plan.Ethernet {
			w.Ends[0].MAC = w.Tunnel.MAC(w.Ends[0].Side)
		}
	case tunnel.mech.Type == mechanism.TypeVXLAN:
		w.Kind = plan.KindVXLAN
		w.VXLAN = &plan.VXLAN{VNI: tunnel.vni, Local: tunnel.local.Addr(), Remote: tunnel.remote.Addr(), Port: tunnel.local.Port()}
	case tunnel.mech.Type == mechanism.TypeWireGuard:
		w.Kind = plan.KindWireGuard
		w.WireGuard = &plan.WireGuard{
			PrivateKey: tunnel.keys.Private, Port: tunnel.local.Port(),
			PeerKey: tunnel.peer, Endpoint: tunnel.remote, Keepalive: keepalive,
		}
	default:
		w.Kind = plan.KindVeth
	}
	return w, nil
}

func payloadOf(c *networkservice.Connection) string {
	if c.GetPayload() == mechanism.PayloadEthernet {
		return plan.Ethernet
	}
	return plan.IP
}

// clientEnd takes the src half of the context, and the policies, which are the
// client's alone (§2.15).
func clientEnd(l *leg, c *networkservice.ConnectionContext, mtu int) (plan.End, error) {
	ip := c.GetIpContext()
	end := plan.End{NetNS: l.space, Name: l.name, Side: plan.Client, MTU: mtu}
	peers, err := addresses(&end, ip, ip.GetSrcIpAddrs(), ip.GetDstIpAddrs(), ip.GetSrcRoutes())
	if err != nil {
		return plan.End{}, err
	}
	for _, p := range ip.GetPolicies() {
		policy, err := policyOf(p, end.Addrs, peers)
		if err != nil {
			return plan.End{}, err
		}
		end.Policies = append(end.Policies, policy)
	}
	return end, nil
}

// endpointEnd takes the dst half of the context.
func endpointEnd(l *leg, c *networkservice.ConnectionContext, mtu int) (plan.End, error) {
	ip := c.GetIpContext()
	end := plan.End{NetNS: l.space, Name: l.name, Side: plan.Endpoint, MTU: mtu}
	_, err := addresses(&end, ip, ip.GetDstIpAddrs(), ip.GetSrcIpAddrs(), ip.GetDstRoutes())
	return end, err
}

// addresses sets what both ends have, each from its half: addresses, routes and
// the neighbours of the context. It returns the addresses of the other end.
func addresses(end *plan.End, ip *networkservice.IPContext, own, peers []string, rs []*networkservice.Route) (opposite []netip.Prefix, err error) {
	if end.Addrs, err = hop.ParsePrefixes(own); err != nil {
		return nil, err
	}
	if opposite, err = hop.ParsePrefixes(peers); err != nil {
		return nil, err
	}
	if end.Routes, err = routes(rs, opposite); err != nil {
		return nil, err
	}
	for _, n := range ip.GetIpNeighbors() {
		neighbor, err := neighborOf(n)
		if err != nil {
			return nil, err
		}
		if !isOf(neighbor.IP, end.Addrs) { // else it is the end itself
			end.Neighbors = append(end.Neighbors, neighbor)
		}
	}
	return opposite, nil
}

// routes translates routes as §2.15 has it: a host route to the other end has
// link scope; any other goes via its next hop or, without one, via the first
// address of the other end in the same family.
func routes(rs []*networkservice.Route, opposite []netip.Prefix) (out []plan.Route, err error) {
	for _, r := range rs {
		dst, err := hop.ParsePrefix(r.GetPrefix())
		if err != nil {
			return nil, err
		}
		dst = dst.Masked()
		route := plan.Route{Dst: dst}
		switch {
		case r.GetNextHop() != "":
			via, err := netip.ParseAddr(r.GetNextHop())
			if err != nil || via.Is4() != dst.Addr().Is4() {
				return nil, nserr.BadContext.Errorf("route %s: next hop %q is not an address of the same family", dst, r.GetNextHop())
			}
			if !dst.IsSingleIP() || via != dst.Addr() {
				route.Via, route.OnLink = via, true
			}
		case dst.IsSingleIP() && isOf(dst.Addr(), opposite):
		default:
			if via, ok := firstOf(dst.Addr().Is4(), opposite); ok {
				route.Via, route.OnLink = via, true
			}
		}
		out = append(out, route)
	}
	return out, nil
}

func isOf(a netip.Addr, ps []netip.Prefix) bool {
	for _, p := range ps {
		if p.Addr() == a {
			return true
		}
	}
	return false
}

func firstOf(v4 bool, ps []netip.Prefix) (netip.Addr, bool) {
	for _, p := range ps {
		if p.Addr().Is4() == v4 {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

func policyOf(p *networkservice.PolicyRoute, own, peers []netip.Prefix) (out plan.Policy, err error) {
	if p.GetFrom() != "" {
		if out.From, err = hop.ParsePrefix(p.GetFrom()); err != nil {
			return plan.Policy{}, err
		}
	}
	out.Proto = p.GetProto()
	if out.SrcPort, err = flow.ParsePorts(p.GetSrcPort()); err != nil {
		return plan.Policy{}, err
	}
	if out.DstPort, err = flow.ParsePorts(p.GetDstPort()); err != nil {
		return plan.Policy{}, err
	}
	if out.Routes, err = routes(p.GetRoutes(), peers); err != nil || len(out.Routes) > 0 {
		return out, err
	}
	// Without routes the policy is a default route to the other end, in the family
	// of its source or in each that both ends have addresses of.
	for _, everywhere := range []netip.Prefix{
		netip.PrefixFrom(netip.IPv4Unspecified(), 0),
		netip.PrefixFrom(netip.IPv6Unspecified(), 0),
	} {
		v4 := everywhere.Addr().Is4()
		via, ok := firstOf(v4, peers)
		if out.From.IsValid() {
			ok = ok && out.From.Addr().Is4() == v4
		} else if _, has := firstOf(v4, own); !has {
			ok = false
		}
		if ok {
			out.Routes = append(out.Routes, plan.Route{Dst: everywhere, Via: via, OnLink: true})
		}
	}
	return out, nil
}

func neighborOf(n *networkservice.IpNeighbor) (plan.Neighbor, error) {
	ip, err := netip.ParseAddr(n.GetIp())
	if err != nil {
		return plan.Neighbor{}, nserr.BadContext.Errorf("neighbor: %q is not an IP address", n.GetIp())
	}
	mac, err := parseMAC(n.GetHardwareAddress())
	if err != nil {
		return plan.Neighbor{}, err
	}
	return plan.Neighbor{IP: ip, MAC: mac}, nil
}

// leaving is a wire of those ends of a that stand where b has none.
func leaving(a, b plan.Wire) plan.Wire {
	a.Ends = slices.DeleteFunc(slices.Clone(a.Ends), func(end plan.End) bool {
		return slices.ContainsFunc(b.Ends, func(e plan.End) bool { return e.NetNS == end.NetNS && e.Side == end.Side })
	})
	return a
}

// besides reports whether the ends that a wire leaves can stand beside the wanted ones
// for a while: those of two VXLAN devices with one VNI cannot, nor two in the tunnel with
// one number, nor two WireGuard devices of one wire, which have one key and port, nor
// what is known by the wire that it belongs to, in the tunnel and beside it.
func besides(leaving, want plan.Wire) bool {
	byWire := func(k plan.Kind) bool { return k == plan.KindWireGuard || k == plan.KindTunnel }
	switch {
	case len(leaving.Ends) == 0:
		return true
	case leaving.Kind == plan.KindTunnel && want.Kind == plan.KindTunnel:
		return leaving.Tunnel != nil && leaving.Tunnel.Wire != want.Tunnel.Wire
	case byWire(leaving.Kind) && byWire(want.Kind):
		return false
	case leaving.Kind != want.Kind:
		return true
	case want.Kind == plan.KindVXLAN:
		return leaving.VXLAN != nil && leaving.VXLAN.VNI != want.VXLAN.VNI
	}
	return want.Kind == plan.KindVeth
}

func parseMAC(text string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 {
		return nil, nserr.BadContext.Errorf("neighbor: %q is not a MAC address", text)
	}
	return mac, nil
}

// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/hop"
)

// DescribeWire tells what the path says of a wire, and what the hops behind this
// one know: this node's forwarder, which asks the other node's manager if the
// wire leads there, which asks its forwarder. A manager on the far side thus
// tells of its own part only.
func (s *Server) DescribeWire(ctx context.Context, req *adminv1.DescribeWireRequest) (*adminv1.WireDescription, error) {
	who, err := identify(ctx)
	if err != nil {
		return nil, err
	}
	v, err := s.config.Wires.Find(who, req.GetId())
	if err != nil {
		return nil, err
	}
	t := s.trail(v)
	t.hops[t.own].Version = hop.BuildVersion()
	d := &adminv1.WireDescription{Hops: t.hops, Context: contextOf(v.Conn().GetContext())}
	if t.own+1 < len(t.hops) {
		t.learn(d, s.behind(ctx, t.hops[t.own+1]))
	}
	if len(d.GetLegs()) == 0 {
		d.Legs = []*adminv1.WireLeg{t.leg()}
	}
	d.Summary = t.summary() // with what was learnt
	return d, nil
}

// behind asks a forwarder of this node about its part of a wire.
func (s *Server) behind(ctx context.Context, forwarder *adminv1.Hop) *adminv1.WireDescription {
	if registered, ok := s.config.Endpoints.Get(forwarder.GetName()); ok {
		if nse, ok := s.config.Here(registered, time.Now()); ok {
			p := s.config.Peers.Get(nse.GetUrl())
			defer p.Release()
			return hop.Describe(ctx, p, forwarder.GetId(), forwarder.GetName())
		}
	}
	return &adminv1.WireDescription{Kernel: []*adminv1.KernelObjects{{
		Forwarder: forwarder.GetName(), Error: "the forwarder is not registered at this node",
	}}}
}

// learn adds what the hops behind this one have told. Each is believed about the
// hops from itself on, where nothing better is known.
func (t trail) learn(d, told *adminv1.WireDescription) {
	byID, byName := make(map[string]*adminv1.Hop), make(map[string]*adminv1.Hop)
	for _, h := range t.hops[t.own+1:] {
		byID[h.GetId()], byName[h.GetName()] = h, h
	}
	for _, x := range told.GetHops() {
		h, ok := byID[x.GetId()]
		if !ok {
			continue
		}
		if h.Node == "" {
			h.Node = x.GetNode()
		}
		if h.Version == nil {
			h.Version = x.GetVersion()
		}
	}
	for _, k := range told.GetKernel() {
		if k.Node == "" {
			k.Node = byName[k.GetForwarder()].GetNode()
		}
	}
	d.Legs, d.Kernel = told.GetLegs(), told.GetKernel()
}

// leg is the only one a manager knows by itself: towards the client.
func (t trail) leg() *adminv1.WireLeg {
	from, to := t.hops[t.client], t.hops[min(t.own+1, len(t.hops)-1)]
	if t.client < t.own-1 {
		from = t.hops[t.own-1]
	}
	m := hop.MechanismOf(t.Conn().GetMechanism())
	return &adminv1.WireLeg{From: from.GetName(), To: to.GetName(), Class: m.Class, Type: m.Shown(), Parameters: m.Params}
}

func contextOf(c *networkservice.ConnectionContext) *adminv1.ConnectionContext {
	ip := c.GetIpContext()
	out := &adminv1.ConnectionContext{
		SrcAddresses: ip.GetSrcIpAddrs(), DstAddresses: ip.GetDstIpAddrs(),
		SrcRoutes: routesOf(ip.GetSrcRoutes()), DstRoutes: routesOf(ip.GetDstRoutes()),
		ExcludedPrefixes: ip.GetExcludedPrefixes(), Mtu: c.GetMTU(),
		SrcMac: c.GetEthernetContext().GetSrcMac(), DstMac: c.GetEthernetContext().GetDstMac(),
	}
	for _, p := range ip.GetPolicies() {
		out.Policies = append(out.Policies, &adminv1.Policy{
			From: p.GetFrom(), Proto: p.GetProto(), SrcPort: p.GetSrcPort(), DstPort: p.GetDstPort(), Routes: routesOf(p.GetRoutes()),
		})
	}
	for _, d := range c.GetDnsContext().GetConfigs() {
		out.Dns = append(out.Dns, &adminv1.Dns{Servers: d.GetDnsServerIps(), SearchDomains: d.GetSearchDomains()})
	}
	return out
}

func routesOf(routes []*networkservice.Route) (out []*adminv1.Route) {
	for _, r := range routes {
		out = append(out, &adminv1.Route{Prefix: r.GetPrefix(), NextHop: r.GetNextHop()})
	}
	return out
}

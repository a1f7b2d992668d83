// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"cmp"
	"context"
	"strings"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/profile"
	"github.com/openvwire/nsm/sdk/rpc"
)

// admin serves what a forwarder alone can tell about a wire: its legs and what
// the kernel has for it, beside what it should have. For the far end of a tunnel
// it asks on along the path. Everything else is the manager's to tell.
//
// The caller of DescribeWire must be on the wire's path, which the node's manager is, or an
// observer. The manager sees to it that its own caller may know.
type admin struct {
	profile.Server
	f *Forwarder
}

// DescribeWire answers with the forwarder's own hop, legs and kernel objects,
// followed by those of the hops behind it.
func (a *admin) DescribeWire(ctx context.Context, req *adminv1.DescribeWireRequest) (*adminv1.WireDescription, error) {
	view, err := a.f.monitor.Find(hop.Identity(rpc.CallerFrom(ctx)), req.GetId())
	if err != nil {
		return nil, err
	}
	w, err := a.f.sketch(ctx, view.Conn().GetId())
	if err != nil {
		return nil, err
	}
	d := &adminv1.WireDescription{
		Hops: []*adminv1.Hop{{
			Name: a.f.config.Name, Id: view.Conn().GetId(), Role: adminv1.Role_ROLE_FORWARDER, Version: hop.BuildVersion(),
		}},
		Legs:   []*adminv1.WireLeg{w.leftLeg(view.Conn())},
		Kernel: []*adminv1.KernelObjects{a.f.kernelObjects(ctx, w.desired)},
	}
	var behind *adminv1.WireDescription
	if w.far != nil {
		behind = hop.Describe(ctx, w.far, view.Conn().GetNextPathSegment().GetId(), neighbour(view.Conn(), +2))
		w.far.Release()
	}
	d.Hops = append(d.Hops, behind.GetHops()...)
	d.Kernel = append(d.Kernel, behind.GetKernel()...)
	if d.Legs = append(d.Legs, behind.GetLegs()...); len(behind.GetLegs()) == 0 {
		d.Legs = append(d.Legs, w.rightLeg(view.Conn())) // else the far side has told of it as its left one
	}
	return d, nil
}

// sketch is what is told of a wire.
type sketch struct {
	left, right mechanism.Mechanism
	desired     plan.Wire
	far         *peer.Peer // the other node's manager, to be released; nil for an endpoint of this node
}

// sketch waits until nobody works on the wire.
func (f *Forwarder) sketch(ctx context.Context, id string) (s sketch, err error) {
	err = f.wires.Do(ctx, id, func(t *conn.Turn[wire]) error {
		if t.Record == nil {
			return nserr.UnknownWire.Errorf("wire %s is closed", id)
		}
		s = sketch{left: t.Record.left, right: t.Record.right, desired: t.Record.desired}
		if next := t.Record.next.Peer; next != nil && s.right.Class == mechanism.Remote {
			s.far = f.config.Peers.Get(next.URL())
		}
		return nil
	})
	return s, err
}

// leftLeg leads from the client or from the forwarder of the other node, either
// of which stands in front of this node's manager.
func (s sketch) leftLeg(c *networkservice.Connection) *adminv1.WireLeg {
	return legOf(s.left, neighbour(c, -2), neighbour(c, 0))
}

// rightLeg leads to the endpoint, or to the forwarder behind the other node's
// manager.
func (s sketch) rightLeg(c *networkservice.Connection) *adminv1.WireLeg {
	if s.right.Class == mechanism.Remote {
		return legOf(s.right, neighbour(c, 0), neighbour(c, +2))
	}
	return legOf(s.right, neighbour(c, 0), neighbour(c, +1))
}

func legOf(m mechanism.Mechanism, from, to string) *adminv1.WireLeg {
	return &adminv1.WireLeg{From: from, To: to, Class: m.Class, Type: m.Shown(), Parameters: m.Params}
}

// neighbour is the name of the hop so many places from the own one, or of the
// path's end if it is shorter.
func neighbour(c *networkservice.Connection, distance int) string {
	segments := c.GetPath().GetPathSegments()
	at := int(c.GetPath().GetIndex()) + distance
	return segments[min(max(at, 0), len(segments)-1)].GetName()
}

// kernelObjects is what the kernel has and should have for a wire.
func (f *Forwarder) kernelObjects(ctx context.Context, w plan.Wire) *adminv1.KernelObjects {
	names, processes := netns.Names(), netns.Processes()
	script := func(steps []plan.Step) []string {
		text := plan.Script(steps, func(key string) string { return cmp.Or(names[key], key) })
		return strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
	}
	k := &adminv1.KernelObjects{
		Forwarder: f.config.Name,
		Plan:      script(plan.Diff(w, plan.Observed{Ends: make([]plan.ObservedEnd, len(w.Ends))})),
	}
	seen, err := f.config.Kernel.Observe(ctx, w)
	if err != nil {
		k.Error = err.Error()
		return k
	}
	k.Drift = script(plan.Diff(w, seen))
	for i, e := range seen.Ends {
		if e.Found {
			l := linkOf(w, w.Ends[i], e)
			l.NamespaceName, l.NamespacePid = names[l.Namespace], uint32(processes[l.Namespace])
			k.Links = append(k.Links, l)
		}
		switch {
		case e.WireGuard != nil:
			k.Wireguard = wireGuardOf(e, *e.WireGuard)
		case e.Tunnel != nil:
			wg := e.Tunnel.WireGuard()
			wg.Keepalive = e.Keepalive
			k.Wireguard = wireGuardOf(e, wg)
		}
	}
	return k
}

func linkOf(w plan.Wire, want plan.End, e plan.ObservedEnd) *adminv1.Link {
	l := &adminv1.Link{
		Namespace: want.NetNS, Name: e.Name, Index: uint32(e.Index), Kind: e.LinkKind,
		Mtu: uint32(e.MTU), Mac: e.MAC.String(), State: e.State,
		Counters: &adminv1.Counters{
			RxPackets: e.Counters.RxPackets, RxBytes: e.Counters.RxBytes, RxErrors: e.Counters.RxErrors, RxDropped: e.Counters.RxDropped,
			TxPackets: e.Counters.TxPackets, TxBytes: e.Counters.TxBytes, TxErrors: e.Counters.TxErrors, TxDropped: e.Counters.TxDropped,
		},
	}
	if e.Tagged {
		l.Alias = w.Tag(want.Side).String()
	}
	for _, a := range e.Addrs {
		l.Addresses = append(l.Addresses, a.String())
	}
	for _, r := range e.Routes {
		l.Routes = append(l.Routes, r.String())
	}
	for _, t := range e.Tables {
		for _, r := range t.Routes {
			l.Routes = append(l.Routes, r.String()+" "+t.Rule.String())
		}
	}
	return l
}

// wireGuardOf is the public part of a device, or of the tunnel and its peer.
func wireGuardOf(e plan.ObservedEnd, wg plan.WireGuard) *adminv1.WireGuard {
	g := &adminv1.WireGuard{
		PublicKey:     mechanism.Key(wg.PrivateKey).Public().String(),
		PeerPublicKey: mechanism.Key(wg.PeerKey).String(),
		ListenPort:    uint32(wg.Port),
		Keepalive:     durationpb.New(wg.Keepalive),
		RxBytes:       e.PeerRx,
		TxBytes:       e.PeerTx,
		Userspace:     e.LinkKind != "wireguard",
	}
	if wg.Endpoint.IsValid() {
		g.Endpoint = wg.Endpoint.String()
	}
	if !e.LastHandshake.IsZero() {
		g.LastHandshake = timestamppb.New(e.LastHandshake)
	}
	return g
}

// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/nserr"
)

// doUnlessCancelled executes one step unless the call's context has ended. From
// the first failure on the context counts no more, so that undo runs through.
func (c *call) doUnlessCancelled(step plan.Step) error {
	err := c.ctx.Err()
	if err == nil {
		if removes(step) || joins(step) {
			c.settle()
		}
		err = c.do(step)
	}
	if err != nil {
		c.ctx = context.WithoutCancel(c.ctx)
		return err
	}
	c.unsettled = append(c.unsettled, step)
	return nil
}

// removes reports whether a step takes something away that may carry packets until
// then.
func removes(step plan.Step) bool {
	switch step.(type) {
	case plan.DelLink, plan.DelAddr, plan.DelRoute, plan.DelRule:
		return true
	}
	return false
}

// joins reports whether packets may take a new route while there is an old one: of IPv6
// routes to one destination through next hops the kernel uses all. Other routes wait
// behind the old one until that goes.
func joins(step plan.Step) bool {
	r, is := step.(plan.AddRoute)
	return is && r.Route.Via.Is6()
}

// do executes one step. What is to be removed and is not there is no error.
func (c *call) do(step plan.Step) error {
	switch s := step.(type) {
	case plan.AddVeth:
		return c.addVeth(s)
	case plan.AddVXLAN:
		return c.addVXLAN(s)
	case plan.AddWireGuard:
		delete(c.sites[s.NetNS].index, s.Name)
		return c.k.wireguard.Create(c.ctx, c.sites[s.NetNS].ns, s.Name, s.Tag.String(), s.MTU)
	case plan.ConfigureWireGuard:
		return c.k.wireguard.Configure(c.ctx, c.sites[s.NetNS].ns, s.Name, s.Tag.String(), s.WireGuard)
	case plan.AddTunnel:
		return c.addTunnel(s)
	case plan.PointTunnel:
		return c.k.tunnel.PointWire(c.ctx, s.NetNS, s.Tag.String(), s.Tunnel)
	case plan.DelLink:
		return c.delLink(s)
	case plan.SetSysctl:
		return c.sites[s.NetNS].setSysctl(s)
	case plan.AddRule:
		return c.sites[s.NetNS].nl.RuleAdd(netlinkRule(s.Rule))
	case plan.DelRule:
		return gone(c.sites[s.NetNS].nl.RuleDel(netlinkRule(s.Rule)))
	}
	return c.doOnLink(step)
}

// doOnLink executes the steps that change an existing link.
func (c *call) doOnLink(step plan.Step) error {
	at := plan.LinkOf(step)
	s := c.sites[at.NetNS]
	index, err := s.linkIndex(at.Name)
	if err != nil {
		return err
	}
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index, Name: at.Name}}
	switch step := step.(type) {
	case plan.Rename:
		return s.rename(index, step)
	case plan.SetAlias:
		s.known.remember(step.Tag.String(), step.Name)
		return s.nl.LinkSetAlias(link, step.Tag.String())
	case plan.SetMTU:
		return s.nl.LinkSetMTU(link, step.MTU)
	case plan.SetMAC:
		return s.nl.LinkSetHardwareAddr(link, step.MAC)
	case plan.SetUp:
		return s.nl.LinkSetUp(link)
	case plan.AddAddr:
		a := &netlink.Addr{IPNet: ipNet(step.Addr)}
		if step.Addr.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		return s.nl.AddrAdd(link, a)
	case plan.DelAddr:
		return s.delAddr(link, step.Addr)
	case plan.AddRoute:
		return s.nl.RouteAppend(netlinkRoute(index, step.Route, step.Table))
	case plan.DelRoute:
		return gone(s.nl.RouteDel(netlinkRoute(index, step.Route, step.Table)))
	case plan.AddNeighbor:
		return s.nl.NeighSet(netlinkNeigh(index, step.Neighbor))
	case plan.DelNeighbor:
		return gone(s.nl.NeighDel(netlinkNeigh(index, step.Neighbor)))
	}
	panic("kernel: unknown step " + step.String())
}

// delAddr deletes an address. One that has a peer, as somebody else may have given it, is
// known to the kernel by that as well.
func (s *site) delAddr(link netlink.Link, a netip.Prefix) error {
	err := s.nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(a)})
	if !errors.Is(err, unix.EADDRNOTAVAIL) {
		return gone(err)
	}
	has, err := s.view.addresses(link.Attrs().Index)
	for _, other := range has {
		if other.Prefix == a && other.peer.IsValid() {
			return gone(s.nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(a), Peer: ipNet(other.peer)}))
		}
	}
	return err
}

// rename gives a link name and alias by one message, so that nobody who is killed
// leaves it with one of them.
func (s *site) rename(index int, r plan.Rename) error {
	err := s.ns.Do(func() error {
		request := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
		header := nl.NewIfInfomsg(unix.AF_UNSPEC)
		header.Index = int32(index)
		request.AddData(header)
		request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(r.To)))
		request.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(r.Tag.String())))
		_, err := request.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
	if err != nil {
		return err
	}
	delete(s.index, r.Name)
	s.index[r.To] = index
	s.known.remember(r.Tag.String(), r.To)
	was := r.Tag
	was.Aside = !was.Aside
	s.known.forget(was.String())
	return nil
}

// addVeth makes both ends where they belong with one RTM_NEWLINK.
func (c *call) addVeth(v plan.AddVeth) error {
	a := c.sites[v.A.NetNS]
	delete(a.index, v.A.Name) // of a pair deleted by this call
	delete(c.sites[v.B.NetNS].index, v.B.Name)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = v.A.Name, v.A.MTU, v.A.MAC
	return c.sites[v.B.NetNS].ns.Control(func(fd int) error {
		return a.nl.LinkAdd(&netlink.Veth{
			LinkAttrs:        attrs,
			PeerName:         v.B.Name,
			PeerMTU:          uint32(v.B.MTU),
			PeerHardwareAddr: v.B.MAC,
			PeerNamespace:    netlink.NsFd(fd),
			PeerTxQLen:       -1,
		})
	})
}

// addVXLAN makes the device in the workload's namespace by a socket in the
// underlay's, to which its UDP socket then belongs (rtnetlink(7), IFLA_NET_NS_FD).
func (c *call) addVXLAN(v plan.AddVXLAN) error {
	under, err := c.underlay()
	if err != nil {
		return err
	}
	s := c.sites[v.NetNS]
	delete(s.index, v.Name)
	err = under.addVXLANIn(s.ns, v)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	// It is the VNI or a name. Kernels before 6.15 also refuse a name that is
	// taken in the namespace the request comes from: go round it.
	if _, lookErr := s.nl.LinkByName(v.Name); lookErr == nil {
		return nserr.NameTaken.Errorf("interface %q exists in namespace %s", v.Name, v.NetNS)
	}
	if _, lookErr := under.nl.LinkByName(v.Name); lookErr != nil {
		return plan.ErrVNITaken
	}
	renamed := v
	renamed.Name = "nsm" + strings.ReplaceAll(v.MAC.String(), ":", "")
	if err := under.addVXLANIn(s.ns, renamed); errors.Is(err, unix.EEXIST) {
		return plan.ErrVNITaken
	} else if err != nil {
		return err
	}
	l, err := s.nl.LinkByName(renamed.Name)
	if err != nil {
		return err
	}
	if err := s.nl.LinkSetName(l, v.Name); err != nil {
		return errors.Join(err, s.nl.LinkDel(l))
	}
	return nil
}

// addVXLANIn makes the device in ns by the socket of s, which is the underlay.
func (s *site) addVXLANIn(ns *netns.Handle, v plan.AddVXLAN) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = v.Name, v.MTU, v.MAC
	return ns.Control(func(fd int) error {
		attrs.Namespace = netlink.NsFd(fd)
		return s.nl.LinkAdd(&netlink.Vxlan{
			LinkAttrs: attrs,
			VxlanId:   int(v.VXLAN.VNI),
			SrcAddr:   net.IP(v.VXLAN.Local.AsSlice()),
			Group:     net.IP(v.VXLAN.Remote.AsSlice()),
			Port:      int(v.VXLAN.Port),
		})
	})
}

func (c *call) delLink(d plan.DelLink) error {
	s := c.sites[d.NetNS]
	defer delete(s.index, d.Name)
	if d.Tag.Aside {
		defer s.known.forget(d.Tag.String())
	}
	if (d.Kind == plan.KindWireGuard || d.Kind == plan.KindTunnel) && c.k.wireguard != nil {
		if err := c.k.wireguard.Delete(c.ctx, d.NetNS, s.ns, d.Name, d.Tag.Device().String()); err != nil {
			return err
		}
		// One that another backend has made may be left.
		if l, err := s.nl.LinkByName(d.Name); err != nil || l.Attrs().Alias != d.Tag.String() {
			return gone(err)
		}
		delete(s.index, d.Name)
	}
	index, err := s.linkIndex(d.Name)
	if err != nil {
		return gone(err)
	}
	return gone(s.nl.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}))
}

// setSysctl writes below /proc/sys inside the namespace.
func (s *site) setSysctl(step plan.SetSysctl) error {
	return s.ns.Do(func() error {
		path := "/proc/sys/" + step.Path
		err := os.WriteFile(path, []byte(step.Value), 0)
		if errors.Is(err, unix.EINVAL) && step.Value == plan.PingOpen {
			// Inside a user namespace only its own groups exist.
			err = os.WriteFile(path, []byte("0 0"), 0)
		}
		return err
	})
}

func netlinkRoute(link int, r plan.Route, table int) *netlink.Route {
	route := &netlink.Route{
		LinkIndex: link,
		Dst:       ipNet(r.Dst),
		Table:     table,
		Protocol:  plan.RouteProtocol,
		Scope:     netlink.SCOPE_LINK,
	}
	if r.Via.IsValid() {
		route.Gw, route.Scope = r.Via.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	if r.Dst.Addr().Is6() {
		route.Scope = netlink.SCOPE_UNIVERSE // IPv6 has no scopes
	}
	if r.OnLink {
		route.Flags = int(netlink.FLAG_ONLINK)
	}
	return route
}

func netlinkRule(r plan.Rule) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family = unix.AF_INET
	if r.IPv6 {
		rule.Family = unix.AF_INET6
	}
	rule.Table, rule.Priority, rule.IPProto, rule.Protocol = r.Table, r.Priority, int(r.Proto), plan.RouteProtocol
	if r.From.IsValid() {
		rule.Src = ipNet(r.From)
	}
	if r.SrcPort != (plan.PortRange{}) {
		rule.Sport = netlink.NewRulePortRange(r.SrcPort.From, r.SrcPort.To)
	}
	if r.DstPort != (plan.PortRange{}) {
		rule.Dport = netlink.NewRulePortRange(r.DstPort.From, r.DstPort.To)
	}
	return rule
}

func netlinkNeigh(link int, n plan.Neighbor) *netlink.Neigh {
	family := unix.AF_INET
	if n.IP.Is6() {
		family = unix.AF_INET6
	}
	return &netlink.Neigh{
		LinkIndex: link, Family: family, State: netlink.NUD_PERMANENT,
		IP: n.IP.AsSlice(), HardwareAddr: n.MAC,
	}
}

// gone drops the errors that say there was nothing to remove.
func gone(err error) error {
	for _, none := range []error{unix.ENODEV, unix.ENOENT, unix.ESRCH, unix.EADDRNOTAVAIL} {
		if errors.Is(err, none) {
			return nil
		}
	}
	if notFound := (netlink.LinkNotFoundError{}); errors.As(err, &notFound) {
		return nil
	}
	return err
}

// reasonOf gives a failed step its reason.
func reasonOf(failed *plan.StepError) error {
	if coded := (*nserr.Error)(nil); errors.As(failed.Err, &coded) {
		return coded
	}
	if errors.Is(failed.Err, context.Canceled) || errors.Is(failed.Err, context.DeadlineExceeded) {
		return timedOut(failed)
	}
	_, veth := failed.Step.(plan.AddVeth)
	_, up := failed.Step.(plan.SetUp)
	switch {
	case errors.Is(failed.Err, unix.EPERM), errors.Is(failed.Err, unix.EACCES):
		return nserr.NotPrivileged.Errorf("%w", failed)
	case veth && errors.Is(failed.Err, unix.EEXIST): // made since we looked
		return nserr.NameTaken.Errorf("%w", failed)
	case up && errors.Is(failed.Err, unix.EADDRINUSE): // a tunnel takes its UDP port when it is set up
		return nserr.AddressInUse.Errorf("another program has the UDP port of the tunnel: %w", failed).
			WithFix("stop that program (see 'ss -ulpn'), or choose another --vxlan-port, the same on all nodes")
	}
	return nserr.KernelFailed.Errorf("%w", failed)
}

func timedOut(err error) error { return nserr.TimedOut.Errorf("%w", err) }

// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The kernel lists addresses, neighbours and routes of a whole namespace unless it is
// asked for those of one link, and it heeds that only on sockets with
// NETLINK_GET_STRICT_CHK (since Linux 4.20). In a namespace with a thousand wires this
// decides whether a look at one of them costs as much as a look at all. An older kernel
// lists everything; so does not rely on it who calls these.

// ofLink is what a site asks for one link's addresses and neighbours with: a socket of
// its own, since the netlink package fills in neither filter.
type ofLink struct{ socket *nl.NetlinkSocket }

// newOfLink opens the socket in the namespace that the thread is in.
func newOfLink() (ofLink, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return ofLink{}, err
	}
	_ = unix.SetsockoptInt(socket.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return ofLink{socket}, nil
}

func (o ofLink) close() {
	if o.socket != nil {
		o.socket.Close()
	}
}

// dump asks for messages of some kind. A link that is gone has nothing.
func (o ofLink) dump(kind int, data ...nl.NetlinkRequestData) ([][]byte, error) {
	return dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(kind, unix.NLM_F_DUMP)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: o.socket}}
		for _, d := range data {
			req.AddData(d)
		}
		messages, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return messages, unlessGone(err)
	})
}

func unlessGone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// address is an address of a link.
type address struct {
	netip.Prefix
	permanent bool // not learned from a router
}

// addresses returns the addresses of the link with an index.
func (o ofLink) addresses(link int) (list []address, err error) {
	of := nl.NewIfAddrmsg(unix.AF_UNSPEC)
	of.Index = uint32(link)
	messages, err := o.dump(unix.RTM_GETADDR, of)
	for _, m := range messages {
		head := nl.DeserializeIfAddrmsg(m)
		if int(head.Index) != link {
			continue
		}
		attributes, err := nl.ParseRouteAttrAsMap(m[head.Len():])
		if err != nil {
			return nil, err
		}
		list = append(list, addressOf(head, attributes))
	}
	return list, err
}

// addressOf takes an address apart. That of a point-to-point link of IPv4 has its
// peer's prefix, and is a single address itself (libnl, addr.c).
func addressOf(head *nl.IfAddrmsg, attributes map[uint16]syscall.NetlinkRouteAttr) address {
	of := func(kind uint16) netip.Addr {
		a, _ := netip.AddrFromSlice(attributes[kind].Value)
		return a
	}
	prefix := netip.PrefixFrom(of(unix.IFA_ADDRESS), int(head.Prefixlen))
	if local := of(unix.IFA_LOCAL); local.IsValid() && local != prefix.Addr() {
		prefix = netip.PrefixFrom(local, local.BitLen())
	}
	flags := uint32(head.Flags)
	if more := attributes[unix.IFA_FLAGS].Value; len(more) == 4 {
		flags = binary.NativeEndian.Uint32(more)
	}
	return address{prefix, flags&unix.IFA_F_PERMANENT != 0}
}

// neighbors returns the neighbours of the link with an index.
func (o ofLink) neighbors(link int) (list []netlink.Neigh, err error) {
	messages, err := o.dump(unix.RTM_GETNEIGH, &netlink.Ndmsg{}, nl.NewRtAttr(unix.NDA_IFINDEX, nl.Uint32Attr(uint32(link))))
	for _, m := range messages {
		if n, err := netlink.NeighDeserialize(m); err == nil && n.LinkIndex == link {
			list = append(list, *n)
		}
	}
	return list, err
}

// routesOf returns the routes over the link with an index, or of all links if it is 0.
func routesOf(h *netlink.Handle, link, family int) ([]netlink.Route, error) {
	if link != 0 {
		_ = h.SetStrictCheck(true)
		defer func() { _ = h.SetStrictCheck(false) }() // what else is asked does not stand it
	}
	list, err := dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC, LinkIndex: link}, netlink.RT_FILTER_TABLE)
	})
	return list, unlessGone(err)
}

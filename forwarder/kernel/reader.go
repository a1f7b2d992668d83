// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/plan"
)

// reader lists what a namespace has: all of it, or what one link has. It is a socket of
// its own, since the netlink package asks for more than is needed, copies 64 KiB for
// each answer and fills in few of the filters.
//
// The kernel heeds filters only on sockets with NETLINK_GET_STRICT_CHK (since Linux
// 4.20). In a namespace with a thousand wires this decides whether a look at one of them
// costs as much as a look at all. An older kernel lists everything; so what comes is
// looked through here, too.
type reader struct {
	lists *lists
	fd    int
	seq   uint32
	buf   *buffer
	hasty bool // a list during which somebody made a change will do
}

// lists is what the readers of a Kernel share.
type lists struct {
	asked   atomic.Int64 // how many the kernel was asked for
	buffers sync.Pool    // of *buffer
}

// buffer is for messages of the kernel, which have 32 KiB at most.
type buffer [1 << 16]byte

// newReader opens the socket in the namespace that the thread is in.
func (k *Kernel) newReader() (*reader, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	buf, ok := k.lists.buffers.Get().(*buffer)
	if !ok {
		buf = new(buffer)
	}
	return &reader{lists: &k.lists, fd: fd, buf: buf}, nil
}

func (r *reader) close() {
	unix.Close(r.fd)
	r.lists.buffers.Put(r.buf)
}

// list asks for messages of a kind and returns what parse makes of those that it takes.
// A link that is gone has nothing.
func list[T any](r *reader, kind uint16, request []byte, parse func(m []byte) (T, bool)) ([]T, error) {
	all, err := dump(func() (all []T, err error) {
		err = r.ask(kind, request, func(m []byte) {
			if v, ok := parse(m); ok {
				all = append(all, v)
			}
		})
		return all, err
	})
	if errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	return all, err
}

// ask sends a request for a list and calls each for what comes, which it must not keep.
func (r *reader) ask(kind uint16, request []byte, each func(m []byte)) error {
	r.lists.asked.Add(1)
	r.seq++
	message := binary.NativeEndian.AppendUint32(make([]byte, 0, 64), uint32(unix.SizeofNlMsghdr+len(request)))
	message = binary.NativeEndian.AppendUint16(message, kind)
	message = binary.NativeEndian.AppendUint16(message, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	message = binary.NativeEndian.AppendUint32(message, r.seq)
	message = append(binary.NativeEndian.AppendUint32(message, 0), request...)
	if err := unix.Sendto(r.fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	changed := false
	for {
		n, from, err := unix.Recvfrom(r.fd, r.buf[:], unix.MSG_TRUNC)
		if err != nil {
			return err
		}
		if n > len(r.buf) {
			return unix.EMSGSIZE
		}
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // not the kernel
		}
		for b := r.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return unix.EBADMSG
			}
			is, flags, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:])
			m := b[unix.SizeofNlMsghdr:size]
			b = b[min(aligned(size), len(b)):]
			if seq != r.seq {
				continue
			}
			changed = changed || flags&unix.NLM_F_DUMP_INTR != 0
			switch is {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if len(m) >= 4 && int32(binary.NativeEndian.Uint32(m)) < 0 {
					return unix.Errno(-int32(binary.NativeEndian.Uint32(m)))
				}
				if changed && !r.hasty {
					return netlink.ErrDumpInterrupted
				}
				return nil
			case kind - 2: // RTM_NEWLINK to RTM_GETLINK, and so on
				each(m)
			}
		}
	}
}

func aligned(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// attributes are those that stand one after the other in b (rtnetlink(7)).
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofRtAttr || size > len(b) || !yield(binary.NativeEndian.Uint16(b[2:])&nlaTypeMask, b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min(aligned(size), len(b)):]
		}
	}
}

// nlaTypeMask is without the flags for nested attributes and byte order (NLA_TYPE_MASK).
const nlaTypeMask = 1<<14 - 1

// attribute returns the value of the first one of a kind, nil if there is none.
func attribute(b []byte, kind uint16) []byte {
	for is, value := range attributes(b) {
		if is == kind {
			return value
		}
	}
	return nil
}

// number is a value of 32 bits, 0 if it is not one.
func number(value []byte) int {
	if len(value) < 4 {
		return 0
	}
	return int(binary.NativeEndian.Uint32(value))
}

// with32 appends an attribute of 32 bits to a request.
func with32(request []byte, kind uint16, value uint32) []byte {
	return withAttribute(request, kind, binary.NativeEndian.AppendUint32(nil, value))
}

// withAttribute appends an attribute, and what aligns the next one.
func withAttribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, aligned(len(b))-len(b))...)
}

func ip(value []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(value)
	return a
}

// listedLink is a link without its counters.
type listedLink struct {
	netlink.Link
	ipv6Off bool // disable_ipv6
}

// shownOfLinks are the attributes of a link that anybody here looks at. A link has five
// times as many, and the netlink package would take them all apart and keep them.
var shownOfLinks = []uint16{
	unix.IFLA_ADDRESS, unix.IFLA_IFNAME, unix.IFLA_IFALIAS, unix.IFLA_MTU, unix.IFLA_LINK, unix.IFLA_OPERSTATE, unix.IFLA_LINKINFO,
}

// shownOf is a copy of what is shown of a link, for whoever keeps parts of it.
func shownOf(m []byte) []byte {
	c := append(make([]byte, 0, 256), m[:unix.SizeofIfInfomsg]...)
	for kind, value := range attributes(m[unix.SizeofIfInfomsg:]) {
		if slices.Contains(shownOfLinks, kind) {
			c = withAttribute(c, kind, value)
		}
	}
	return c
}

const (
	skipStats   = 1 << 3 // RTEXT_FILTER_SKIP_STATS: counting is most of what a link costs
	disableIPv6 = 26     // DEVCONF_DISABLE_IPV6, of what /proc/sys/net/ipv6/conf/LINK has
)

// links returns all links.
func (r *reader) links() ([]listedLink, error) {
	request := with32(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_EXT_MASK, skipStats)
	return list(r, unix.RTM_GETLINK, request, func(m []byte) (l listedLink, ok bool) {
		if len(m) < unix.SizeofIfInfomsg {
			return l, false
		}
		link, err := netlink.LinkDeserialize(nil, shownOf(m))
		if err != nil {
			return l, false
		}
		ofIPv6 := attribute(attribute(m[unix.SizeofIfInfomsg:], unix.IFLA_AF_SPEC), unix.AF_INET6)
		if settings := attribute(ofIPv6, unix.IFLA_INET6_CONF); len(settings) >= 4*(disableIPv6+1) {
			l.ipv6Off = number(settings[4*disableIPv6:]) == 1
		}
		l.Link = link
		return l, true
	})
}

// address is an address of a link.
type address struct {
	netip.Prefix
	link      int
	peer      netip.Prefix // of one that has a peer: to where the link leads
	permanent bool         // not learned from a router
}

// addresses returns the addresses of the link with an index, or of all links if it is 0.
func (r *reader) addresses(link int) ([]address, error) {
	request := make([]byte, unix.SizeofIfAddrmsg)
	binary.NativeEndian.PutUint32(request[4:], uint32(link))
	return list(r, unix.RTM_GETADDR, request, func(m []byte) (a address, ok bool) {
		if len(m) < unix.SizeofIfAddrmsg {
			return a, false
		}
		a = addressOf(m)
		return a, link == 0 || a.link == link
	})
}

// addressOf takes an address apart. That of a point-to-point link has its peer's
// prefix, and is a single address itself (libnl, addr.c).
func addressOf(m []byte) address {
	var at, local netip.Addr
	flags := int(m[2])
	for kind, value := range attributes(m[unix.SizeofIfAddrmsg:]) {
		switch kind {
		case unix.IFA_ADDRESS:
			at = ip(value)
		case unix.IFA_LOCAL:
			local = ip(value)
		case unix.IFA_FLAGS:
			flags = number(value)
		}
	}
	a := address{Prefix: netip.PrefixFrom(at, int(m[1])), link: number(m[4:]), permanent: flags&unix.IFA_F_PERMANENT != 0}
	if local.IsValid() && local != at {
		a.peer, a.Prefix = a.Prefix, netip.PrefixFrom(local, local.BitLen())
	}
	return a
}

// neighbor is a permanent neighbour on a link.
type neighbor struct {
	plan.Neighbor
	link int
}

// neighbors returns the permanent neighbours of the link with an index, or of all links if
// it is 0.
func (r *reader) neighbors(link int) ([]neighbor, error) {
	request := make([]byte, unix.SizeofNdMsg)
	if link != 0 {
		request = with32(request, unix.NDA_IFINDEX, uint32(link))
	}
	return list(r, unix.RTM_GETNEIGH, request, func(m []byte) (n neighbor, ok bool) {
		if len(m) < unix.SizeofNdMsg {
			return n, false
		}
		n.link = number(m[4:])
		permanent := binary.NativeEndian.Uint16(m[8:])&unix.NUD_PERMANENT != 0
		if !permanent || (link != 0 && n.link != link) || (m[0] != unix.AF_INET && m[0] != unix.AF_INET6) {
			return n, false
		}
		for kind, value := range attributes(m[unix.SizeofNdMsg:]) {
			switch kind {
			case unix.NDA_DST:
				n.IP = ip(value).Unmap()
			case unix.NDA_LLADDR:
				n.MAC = append(n.MAC, value...) // none on a layer 3 device
			}
		}
		return n, true
	})
}

var families = []uint8{unix.AF_INET, unix.AF_INET6}

// ownedRoute is a route with its place in the kernel.
type ownedRoute struct {
	plan.Route
	table, link, protocol int
}

// routes returns this forwarder's routes over the link with an index. There may be others
// among them. If link is 0 they are those of all links, whoever's.
func (r *reader) routes(link int) ([]ownedRoute, error) {
	if link == 0 {
		return r.listRoutes(0, unix.RTPROT_UNSPEC)
	}
	return r.listRoutes(link, plan.RouteProtocol)
}

// listRoutes returns the routes over a link, 0 means any, and of a protocol, likewise.
func (r *reader) listRoutes(link int, protocol uint8) (routes []ownedRoute, err error) {
	for _, family := range families {
		request := make([]byte, unix.SizeofRtMsg)
		request[0], request[5] = family, protocol
		if link != 0 {
			request = with32(request, unix.RTA_OIF, uint32(link))
		}
		some, err := list(r, unix.RTM_GETROUTE, request, func(m []byte) ([]ownedRoute, bool) {
			if len(m) < unix.SizeofRtMsg || m[0] != family || (protocol != unix.RTPROT_UNSPEC && m[5] != protocol) ||
				number(m[8:])&unix.RTM_F_CLONED != 0 {
				return nil, false
			}
			return routesOf(m), true
		})
		if err != nil {
			return nil, err
		}
		routes = append(routes, slices.Concat(some...)...)
	}
	return routes, nil
}

// routesOf takes a route apart: IPv6 routes of different links to the same destination
// come as one route with several next hops.
func routesOf(m []byte) (routes []ownedRoute) {
	to := ownedRoute{table: int(m[4]), protocol: int(m[5])}
	dst := netip.IPv4Unspecified()
	if m[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	to.OnLink = number(m[8:])&unix.RTNH_F_ONLINK != 0
	var hops []byte
	for kind, value := range attributes(m[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			dst = ip(value)
		case unix.RTA_TABLE:
			to.table = number(value)
		case unix.RTA_OIF:
			to.link = number(value)
		case unix.RTA_GATEWAY:
			to.Via = ip(value).Unmap()
		case unix.RTA_MULTIPATH:
			hops = value
		}
	}
	to.Dst = netip.PrefixFrom(dst, int(m[1]))
	if hops == nil {
		routes = append(routes, to)
	}
	for len(hops) >= unix.SizeofRtNexthop { // rtnexthop: length, flags, hops, link
		size := int(binary.NativeEndian.Uint16(hops))
		if size < unix.SizeofRtNexthop || size > len(hops) {
			break
		}
		hop := to
		hop.OnLink, hop.link = hops[2]&unix.RTNH_F_ONLINK != 0, number(hops[4:])
		hop.Via = ip(attribute(hops[unix.SizeofRtNexthop:size], unix.RTA_GATEWAY)).Unmap()
		routes = append(routes, hop)
		hops = hops[min(aligned(size), len(hops)):]
	}
	if to.protocol != plan.RouteProtocol {
		for i := range routes {
			routes[i].link = 0 // not ours, but its table is in use
		}
	}
	return routes
}

// ownedRule is a rule with whose it is.
type ownedRule struct {
	plan.Rule
	protocol int
}

// rules returns all rules.
func (r *reader) rules() (rules []ownedRule, err error) {
	for _, family := range families {
		request := make([]byte, unix.SizeofRtMsg)
		request[0] = family
		some, err := list(r, unix.RTM_GETRULE, request, func(m []byte) (ownedRule, bool) {
			if len(m) < unix.SizeofRtMsg || m[0] != family {
				return ownedRule{}, false
			}
			return ruleOf(m), true
		})
		if err != nil {
			return nil, err
		}
		rules = append(rules, some...)
	}
	return rules, nil
}

func ruleOf(m []byte) ownedRule {
	rule := ownedRule{Rule: plan.Rule{IPv6: m[0] == unix.AF_INET6}}
	for kind, value := range attributes(m[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.FRA_SRC:
			rule.From = netip.PrefixFrom(ip(value), int(m[2]))
		case unix.FRA_TABLE:
			rule.Table = number(value)
		case unix.FRA_PRIORITY:
			rule.Priority = number(value)
		case unix.FRA_IP_PROTO:
			rule.Proto = first(value)
		case unix.FRA_SPORT_RANGE:
			rule.SrcPort = portsOf(value)
		case unix.FRA_DPORT_RANGE:
			rule.DstPort = portsOf(value)
		case unix.FRA_PROTOCOL:
			rule.protocol = int(first(value))
		}
	}
	return rule
}

// first is a value of 8 bits.
func first(value []byte) uint8 {
	if len(value) == 0 {
		return 0
	}
	return value[0]
}

func portsOf(value []byte) (ports plan.PortRange) {
	if len(value) >= 4 {
		ports.From, ports.To = binary.NativeEndian.Uint16(value), binary.NativeEndian.Uint16(value[2:])
	}
	return ports
}

// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/plan"
)

// settleTimeout bounds the wait for what the kernel does later by itself. It
// takes well under a millisecond; when it does not, the wire is as good as it
// would have been without waiting.
const settleTimeout = time.Second

// settle waits until the wire carries packets over what was made since the last time:
// before packets are led there while there is still something else, before anything goes
// that it takes the place of, and at the end. The kernel finishes
// two things in the background after it has said yes:
//
//   - the end that was switched on first gets its carrier, and with it its
//     queue, from a work item; asking for the link state by ethtool runs it now;
//   - an IPv6 address answers only when the work item of duplicate address
//     detection, which NODAD makes short, has put a route to it in the table "local".
//     That route is announced when it is there, the address itself a little before.
func (c *call) settle() {
	done := c.unsettled
	c.unsettled = nil
	pending := make(map[*site]map[usable]bool)
	for _, step := range done {
		switch step := step.(type) {
		case plan.SetUp:
			c.sites[step.NetNS].syncCarrier(step.Name)
		case plan.AddAddr:
			s := c.sites[step.NetNS]
			if !step.Addr.Addr().Is6() || s.localRoutes == nil {
				continue
			}
			if pending[s] == nil {
				pending[s] = make(map[usable]bool)
			}
			pending[s][usable{s.index[step.Name], step.Addr.Addr()}] = true
		case plan.DelAddr:
			s := c.sites[step.NetNS]
			delete(pending[s], usable{s.index[step.Name], step.Addr.Addr()})
		}
	}
	deadline := time.Now().Add(settleTimeout)
	for s, addrs := range pending {
		s.awaitAddrs(addrs, deadline)
	}
}

// usable is an address of a link that is announced when it may be used.
type usable struct {
	link int
	addr netip.Addr
}

// syncCarrier runs the link's pending carrier work by asking for its state
// (ETHTOOL_GLINK). Devices that do not know the question have no carrier either.
func (s *site) syncCarrier(name string) {
	value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_GLINK}
	request := struct { // ifreq, netdevice(7)
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(s.ctl), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
}

// awaitAddrs reads announcements until all addrs came or the deadline passed.
func (s *site) awaitAddrs(addrs map[usable]bool, deadline time.Time) {
	for len(addrs) > 0 {
		left := time.Until(deadline)
		if left < time.Millisecond { // a timeout of zero would wait for ever
			return
		}
		timeout := unix.NsecToTimeval(left.Nanoseconds())
		if s.localRoutes.SetReceiveTimeout(&timeout) != nil {
			return
		}
		messages, _, err := s.localRoutes.Receive()
		if err != nil {
			return
		}
		for _, m := range messages {
			if u, ok := becameUsable(m); ok {
				delete(addrs, u)
			}
		}
	}
}

// becameUsable returns the address that a message of rtnetlink(7) says there is a local
// route to.
func becameUsable(m syscall.NetlinkMessage) (u usable, ok bool) {
	if m.Header.Type != unix.RTM_NEWROUTE || len(m.Data) < unix.SizeofRtMsg {
		return u, false
	}
	route := nl.DeserializeRtMsg(m.Data)
	if route.Type != unix.RTN_LOCAL || route.Dst_len != 128 {
		return u, false
	}
	attrs, err := nl.ParseRouteAttr(m.Data[route.Len():])
	if err != nil {
		return u, false
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			u.addr = addrOf(a.Value)
		case unix.RTA_OIF:
			if len(a.Value) == 4 {
				u.link = int(nl.NativeEndian().Uint32(a.Value))
			}
		}
	}
	return u, u.link != 0 && u.addr.IsValid()
}

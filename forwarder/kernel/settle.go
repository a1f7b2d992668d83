// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"
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
// before anything goes that it takes the place of, and at the end. The kernel finishes
// two things in the background after it has said yes:
//
//   - the end that was switched on first gets its carrier, and with it its
//     queue, from a work item; asking for the link state by ethtool runs it now;
//   - an IPv6 address answers only when the work item of duplicate address
//     detection, which NODAD makes short, has run; then it is announced.
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
			if !step.Addr.Addr().Is6() || s.addrEvents == nil {
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
		if s.addrEvents.SetReceiveTimeout(&timeout) != nil {
			return
		}
		messages, _, err := s.addrEvents.Receive()
		if err != nil {
			return
		}
		for _, m := range messages {
			if m.Header.Type != unix.RTM_NEWADDR || len(m.Data) < unix.SizeofIfAddrmsg {
				continue
			}
			header := nl.DeserializeIfAddrmsg(m.Data)
			attrs, err := nl.ParseRouteAttr(m.Data[header.Len():])
			if err != nil {
				continue
			}
			for _, a := range attrs {
				if a.Attr.Type == unix.IFA_ADDRESS || a.Attr.Type == unix.IFA_LOCAL {
					delete(addrs, usable{int(header.Index), addrOf(a.Value)})
				}
			}
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/openvwire/nsm/forwarder/netns"
)

// A wire whose packets are to go another way than they have come goes on at once, and does
// not wait until WireGuard has given its session up, which takes 15 s.
func TestRouteChanges(t *testing.T) {
	kinds(t, func(t *testing.T, userspace bool) {
		a, b := newRig(t, userspace)
		link(t, a.table.Self(), b.table.Self(), "second", "198.51.100.1/24", "198.51.100.2/24")
		b.wire(t)
		a.wire(t)
		c := dial(t, a.work, echo(t, b.work, b.inner4))
		roundTrip(t, c, "the first way")

		must(t, a.table.Self().Do(func() error {
			dst := &net.IPNet{IP: b.underlay4.AsSlice(), Mask: net.CIDRMask(32, 32)}
			return netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP("198.51.100.2")})
		}))
		must(t, b.table.Self().Do(func() error {
			link, err := netlink.LinkByName(ifname)
			return errors.Join(err, netlink.LinkSetDown(link))
		}))
		buf := make([]byte, 100)
		for deadline := time.Now().Add(10 * time.Second); ; {
			must(t, c.SetDeadline(time.Now().Add(100*time.Millisecond)))
			_, err := c.Write([]byte("the other way"))
			must(t, err)
			if _, err = c.Read(buf); err == nil {
				return
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	})
}

// link joins two namespaces by a veth pair whose ends have this name and these addresses.
func link(t *testing.T, a, b *netns.Handle, name, addrA, addrB string) {
	t.Helper()
	must(t, a.Do(func() error {
		return b.Control(func(fd int) error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(fd)})
		})
	}))
	for ns, text := range map[*netns.Handle]string{a: addrA, b: addrB} {
		addr, err := netlink.ParseAddr(text)
		must(t, err)
		must(t, ns.Do(func() error {
			end, err := netlink.LinkByName(name)
			return errors.Join(err, netlink.AddrAdd(end, addr), netlink.LinkSetUp(end))
		}))
	}
}

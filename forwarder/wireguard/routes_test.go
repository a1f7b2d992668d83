// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// A wire whose packets are to go another way than they have come goes on at once, and does
// not wait until WireGuard has given its session up, which takes 15 s.
func TestRouteChanges(t *testing.T) {
	kinds(t, func(t *testing.T, userspace bool) {
		a, b := newRig(t, userspace)
		const second = "second"
		veth(t, a.table.Self(), b.table.Self(), second)
		up(t, a.table.Self(), second, netip.MustParsePrefix("198.51.100.1/24"))
		up(t, b.table.Self(), second, netip.MustParsePrefix("198.51.100.2/24"))
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

// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/openvwire/nsm/sdk/nserr"
)

// UnderlayMTU returns the MTU of the underlay's link that has the address, in
// bytes. It fails with nserr.BadFlag if no link has it.
func (k *Kernel) UnderlayMTU(addr netip.Addr) (mtu int, err error) {
	err = k.underlay.Do(func() error {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nserr.KernelFailed.Errorf("list addresses: %w", err)
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == addr {
				link, err := netlink.LinkByIndex(a.LinkIndex)
				if err != nil {
					return nserr.KernelFailed.Errorf("link %d: %w", a.LinkIndex, err)
				}
				mtu = link.Attrs().MTU
				return nil
			}
		}
		return nserr.BadFlag.Errorf("no link of this node has the tunnel address %s", addr).
			WithFix("give --tunnel-ip an address of this node that other nodes reach")
	})
	return mtu, err
}

// PortFree reports whether a UDP port is free on all addresses of the underlay.
func (k *Kernel) PortFree(port uint16) bool {
	return k.underlay.Do(func() error {
		c, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		return c.Close()
	}) == nil
}

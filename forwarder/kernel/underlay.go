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
		a, err := find(addr)
		if err != nil {
			return err
		}
		link, err := netlink.LinkByIndex(a.LinkIndex)
		if err != nil {
			return nserr.KernelFailed.Errorf("link %d: %w", a.LinkIndex, err)
		}
		mtu = link.Attrs().MTU
		return nil
	})
	return mtu, err
}

// UnderlayPrefix returns the address with the length of its prefix on the underlay's
// link that has it. It fails with nserr.BadFlag if no link has it.
func (k *Kernel) UnderlayPrefix(addr netip.Addr) (p netip.Prefix, err error) {
	err = k.underlay.Do(func() error {
		a, err := find(addr)
		if err != nil {
			return err
		}
		bits, _ := a.Mask.Size()
		p = netip.PrefixFrom(addr, bits)
		return nil
	})
	return p, err
}

// find returns an address of this node as its link has it.
func find(addr netip.Addr) (netlink.Addr, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return netlink.Addr{}, nserr.KernelFailed.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == addr {
			return a, nil
		}
	}
	return netlink.Addr{}, nserr.BadFlag.Errorf("no link of this node has the tunnel address %s", addr).
		WithFix("give --tunnel-ip an address of this node that other nodes reach")
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

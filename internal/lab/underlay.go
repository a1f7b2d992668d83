// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// joinNodes gives every node the link Underlay, its addresses on it, up.
func (l *Lab) joinNodes() error {
	if len(l.nodes) == 2 {
		a, b := l.nodes[0], l.nodes[1]
		return l.cable(a.NetNS, Underlay, b.NetNS, Underlay, func() error { return nil }, a, b)
	}
	hub, err := l.newNetNS("net", nil)
	if err != nil {
		return err
	}
	l.hub = hub
	const bridge = "br0"
	err = hub.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = bridge, l.mtu
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("add bridge: %w", err)
		}
		return up(bridge)
	})
	if err != nil {
		return err
	}
	for _, n := range l.nodes {
		plug := func() error {
			port, err := netlink.LinkByName(n.Name)
			if err != nil {
				return err
			}
			br, err := netlink.LinkByName(bridge)
			if err != nil {
				return err
			}
			return netlink.LinkSetMaster(port, br)
		}
		if err := l.cable(n.NetNS, Underlay, hub, n.Name, plug, n); err != nil {
			return err
		}
	}
	return nil
}

// cable puts a veth pair between two namespaces, calls plug in the second, and
// gives nodes their addresses.
func (l *Lab) cable(left *NetNS, leftName string, right *NetNS, rightName string, plug func() error, nodes ...*Node) error {
	far, err := l.namespaces.Get(right.key)
	if err != nil {
		return err
	}
	err = left.Do(func() error {
		return far.Control(func(fd int) error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.MTU = leftName, l.mtu
			veth := netlink.NewVeth(attrs)
			veth.PeerName, veth.PeerNamespace, veth.PeerMTU = rightName, netlink.NsFd(fd), uint32(l.mtu)
			if err := netlink.LinkAdd(veth); err != nil {
				return fmt.Errorf("add veth: %w", err)
			}
			return up(leftName)
		})
	})
	if err != nil {
		return err
	}
	if err := right.Do(func() error {
		if err := plug(); err != nil {
			return err
		}
		return up(rightName)
	}); err != nil {
		return err
	}
	for _, n := range nodes {
		if err := n.NetNS.AddAddress(Underlay, netip.PrefixFrom(n.Addr, 24)); err != nil {
			return err
		}
		if err := n.NetNS.AddAddress(Underlay, netip.PrefixFrom(n.Addr6, 64)); err != nil {
			return err
		}
	}
	return nil
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// AddAddress gives a link of the namespace an address that is usable when it
// returns, if the link is up.
func (ns *NetNS) AddAddress(link string, prefix netip.Prefix) error {
	if prefix.Addr().Is4() {
		return ns.addAddress(link, prefix)
	}
	// The kernel finishes an IPv6 address in the background, after the link has
	// its carrier, and announces it then.
	announced, stop := make(chan netlink.AddrUpdate), make(chan struct{})
	if err := ns.Do(func() error { return netlink.AddrSubscribe(announced, stop) }); err != nil {
		return err
	}
	defer func() {
		close(stop)
		for range announced { // until the subscription has ended
		}
	}()
	if err := ns.addAddress(link, prefix); err != nil {
		return err
	}
	limit := time.After(addressLimit)
	for {
		select {
		case u, ok := <-announced:
			if !ok {
				return fmt.Errorf("address %s: the kernel tells no more", prefix)
			}
			if addr, _ := netip.AddrFromSlice(u.LinkAddress.IP); u.NewAddr && addr == prefix.Addr() {
				return nil
			}
		case <-limit:
			return fmt.Errorf("address %s is not usable after %v", prefix, addressLimit)
		}
	}
}

// addressLimit bounds the wait for an address, which takes milliseconds.
const addressLimit = 10 * time.Second

func (ns *NetNS) addAddress(link string, prefix netip.Prefix) error {
	return ns.Do(func() error {
		dev, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{
			IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
		}}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(dev, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", prefix, link, err)
		}
		return nil
	})
}

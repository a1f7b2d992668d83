// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/openvwire/nsm/internal/lab"
)

// byHand is a link as somebody would make it with `ip`, beside a wire of the
// mesh and between the same two namespaces: whatever else there is in them is
// the same for both.
type byHand struct {
	name     string     // of both interfaces
	number   byte       // tells apart the addresses, VNIs and ports of several
	network  netip.Addr // of a /30, IPv4
	mtu      int
	from, to *lab.NetNS // workloads
	nodeFrom *lab.Node  // from's node
	nodeTo   *lab.Node
}

// address of the end at from (1) or at to (2).
func (h byHand) address(end byte) netip.Addr {
	a := h.network.As4()
	a[3] += end
	return netip.AddrFrom4(a)
}

// veth makes
//
//	ip -n FROM link add NAME mtu MTU type veth peer name NAME mtu MTU netns TO
func (h byHand) veth(context.Context) (pids []int, err error) {
	err = within(h.from, h.to, func(fd int) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = h.name, h.mtu
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerMTU, veth.PeerNamespace = h.name, uint32(h.mtu), netlink.NsFd(fd)
		return netlink.LinkAdd(veth)
	})
	return nil, errors.Join(err, h.up())
}

// vxlan makes at both nodes
//
//	ip -n NODE link add NAME mtu MTU netns WORKLOAD type vxlan id VNI local IP remote IP dstport 4789 nolearning
func (h byHand) vxlan(context.Context) (pids []int, err error) {
	add := func(n, remote *lab.Node, w *lab.NetNS) error {
		return within(n.NetNS, w, func(fd int) error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.MTU, attrs.Namespace = h.name, h.mtu, netlink.NsFd(fd)
			return netlink.LinkAdd(&netlink.Vxlan{
				LinkAttrs: attrs, VxlanId: 1<<24 - 1 - int(h.number),
				SrcAddr: n.Addr.AsSlice(), Group: remote.Addr.AsSlice(), Port: 4789,
			})
		})
	}
	err = errors.Join(add(h.nodeFrom, h.nodeTo, h.from), add(h.nodeTo, h.nodeFrom, h.to))
	return nil, errors.Join(err, h.up())
}

// wireguard runs wireguard-go at both nodes and makes
//
//	wireguard-go -f NAME-NODE; ip link set NAME-NODE mtu MTU name NAME netns WORKLOAD
//	wg set NAME-NODE private-key … listen-port … peer … endpoint … persistent-keepalive 10 allowed-ips 0.0.0.0/0,::/0
//
// It returns the processes.
func (h byHand) wireguard(ctx context.Context, program string) (pids []int, err error) {
	type end struct {
		node     *lab.Node
		workload *lab.NetNS
		device   string // unique on the machine: wireguard-go names its socket after it
		key      wgtypes.Key
		port     int
	}
	ends := [2]end{{node: h.nodeFrom, workload: h.from}, {node: h.nodeTo, workload: h.to}}
	for i := range ends {
		e := &ends[i]
		e.device = fmt.Sprintf("hand%s%d", strings.TrimPrefix(e.node.NetNS.Name, "nsm-"), h.number)
		e.device = e.device[max(0, len(e.device)-15):]
		e.port = h.port()
		if e.key, err = wgtypes.GeneratePrivateKey(); err != nil {
			return nil, err
		}
		p, err := e.node.NetNS.Start(ctx, "UAPI listener started", "env", "LOG_LEVEL=verbose", program, "-f", e.device)
		if err != nil {
			return nil, err
		}
		pids = append(pids, p.PID)
		if err := setTunnelMTU(ctx, e.node.NetNS, e.device, h.mtu, p); err != nil {
			return nil, err
		}
		if err := h.move(e.device, e.node.NetNS, e.workload); err != nil {
			return nil, err
		}
	}
	for i, e := range ends {
		peer := ends[1-i]
		public := peer.key.PublicKey()
		err := setWireGuard(e.device,
			"private_key="+hex.EncodeToString(e.key[:]),
			fmt.Sprint("listen_port=", e.port),
			"public_key="+hex.EncodeToString(public[:]),
			fmt.Sprint("endpoint=", netip.AddrPortFrom(peer.node.Addr, uint16(peer.port))),
			"persistent_keepalive_interval=10",
			"allowed_ip=0.0.0.0/0",
			"allowed_ip=::/0",
		)
		if err != nil {
			return nil, err
		}
	}
	return pids, h.up()
}

// setWireGuard speaks wireguard-go's configuration protocol
// (wireguard.com/xplatform).
func setWireGuard(device string, settings ...string) error {
	c, err := net.Dial("unix", "/var/run/wireguard/"+device+".sock")
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "set=1\n"+strings.Join(settings, "\n")+"\n\n"); err != nil {
		return err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if said := string(buf[:n]); err != nil || said != "errno=0\n\n" {
		return fmt.Errorf("configure %s: %q %w", device, said, err)
	}
	return nil
}

// port is that of both ends, where they are processes.
func (h byHand) port() int { return 41820 + int(h.number) }

// move makes a node's device the link of a workload: `ip link set DEVICE name NAME netns WORKLOAD`.
// It loses its addresses and goes down; a process that has it open keeps it.
func (h byHand) move(device string, node, workload *lab.NetNS) error {
	return within(node, workload, func(fd int) error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		if device != h.name {
			err = netlink.LinkSetName(link, h.name)
		}
		return errors.Join(err, netlink.LinkSetNsFd(link, fd))
	})
}

// up gives both ends their addresses and switches them on.
func (h byHand) up() error {
	for end, ns := range []*lab.NetNS{h.from, h.to} {
		err := onLink(ns, h.name, netlink.LinkSetUp)
		err = errors.Join(err, ns.AddAddress(h.name, netip.PrefixFrom(h.address(byte(end+1)), 30)))
		if err != nil {
			return fmt.Errorf("%s in %s: %w", h.name, ns.Name, err)
		}
	}
	return nil
}

// within runs f in a namespace with the descriptor of another.
func within(ns, other *lab.NetNS, f func(fd int) error) error {
	file, err := os.Open(other.Path())
	if err != nil {
		return err
	}
	defer file.Close()
	return ns.Do(func() error { return f(int(file.Fd())) })
}

// setTunnelMTU sets the MTU of a device of wireguard-go and waits until p, which has it,
// knows. It learns of one only as long as the device is in its own namespace. One that it
// does not know makes it pad full packets until they no longer fit the underlay, and TCP
// stops.
func setTunnelMTU(ctx context.Context, ns *lab.NetNS, device string, mtu int, p *lab.Process) error {
	known := false
	err := onLink(ns, device, func(l netlink.Link) error {
		known = l.Attrs().MTU == mtu // as it was made: there will be no news
		return netlink.LinkSetMTU(l, mtu)
	})
	if err != nil || known {
		return err
	}
	_, err = p.WaitLine(ctx, func(line string) bool { return strings.Contains(line, fmt.Sprint("MTU updated: ", mtu)) })
	return err
}

// onLink runs f with a link of a namespace, inside.
func onLink(ns *lab.NetNS, name string, f func(netlink.Link) error) error {
	return ns.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return f(link)
	})
}

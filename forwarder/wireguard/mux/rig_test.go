// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	wg "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/internal/nstest"
)

// TestMain lets the test binary play the processes that benchmarks start in namespaces.
func TestMain(m *testing.M) {
	playRole()
	nstest.Main(m)
}

const (
	tunnelMTU = 1420 // of WireGuard over IPv4 or IPv6 with 1500
	ifname    = "nsm-1"
)

// end is one end of a wire: an interface in a namespace of its own.
type end struct {
	ns           *netns.Handle
	addr4, addr6 netip.Addr
}

// newEnd makes a TUN or TAP device with addresses that end in i, and returns its
// descriptor, which belongs to the caller.
func newEnd(t testing.TB, ethernet bool, i byte, mtu int) (e end, fd int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes TUN devices: needs root")
	}
	e = end{newNamespace(t), netip.AddrFrom4([4]byte{10, 0, 0, i}), netip.MustParseAddr(fmt.Sprintf("fd00::%d", i))}
	fd = openTUN(t, e.ns, ethernet, ifname)
	e.up(t, mtu)
	return e, fd
}

func newNamespace(t testing.TB) *netns.Handle {
	t.Helper()
	f, err := netns.New()
	must(t, err)
	table, err := netns.NewTableAt(f)
	must(t, err)
	t.Cleanup(table.Close)
	return table.Self()
}

// openTUN makes a TUN or TAP device, down.
func openTUN(t testing.TB, ns *netns.Handle, ethernet bool, name string) (fd int) {
	t.Helper()
	flags := uint16(unix.IFF_TUN)
	if ethernet {
		flags = unix.IFF_TAP
	}
	must(t, ns.Do(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(flags | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}))
	return fd
}

// up gives the interface its addresses and switches it on.
func (e end) up(t testing.TB, mtu int) {
	t.Helper()
	must(t, e.ns.Do(func() error {
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return err
		}
		for addr, bits := range map[netip.Addr]int{e.addr4: 24, e.addr6: 64} {
			if !addr.IsValid() {
				continue
			}
			a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}}
			if addr.Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(link)
	}))
}

// side is one WireGuard device.
type side struct {
	wg    *wg.Device
	key   wgtypes.Key
	ip    string // AllowedIPs of it, as a peer
	port  int
	heard chan struct{} // closed when it has got a keepalive
}

// join makes two WireGuard devices peers over loopback and waits for their session.
// The first one begins it, and the second knows it by that alone: when both do so at once,
// because of what the kernel sends by itself, WireGuard may lose packets until it tries again
// after 15 s.
func join(t testing.TB, a, b tun.Device, ipA, ipB string) {
	t.Helper()
	first, second := newSide(t, a, ipA), newSide(t, b, ipB)
	second.peer(t, first, "")
	first.peer(t, second, fmt.Sprintf("endpoint=127.0.0.1:%d\npersistent_keepalive_interval=25\n", second.port))
	<-second.heard
}

func newSide(t testing.TB, device tun.Device, ip string) *side {
	t.Helper()
	key, err := wgtypes.GeneratePrivateKey()
	must(t, err)
	s := &side{key: key, ip: ip, heard: make(chan struct{})}
	var once sync.Once
	log := wg.NewLogger(wg.LogLevelError, "")
	log.Verbosef = func(format string, _ ...any) {
		if strings.Contains(format, "Receiving keepalive packet") {
			once.Do(func() { close(s.heard) })
		}
	}
	s.wg = wg.NewDevice(device, conn.NewDefaultBind(), log)
	if l, ok := device.(*lentTUN); ok {
		l.lend(t, s.wg)
	}
	t.Cleanup(s.wg.Close)
	must(t, s.wg.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=0\n", hexKey(key))))
	must(t, s.wg.Up())
	s.port = listenPort(t, s.wg)
	return s
}

func (s *side) peer(t testing.TB, other *side, more string) {
	t.Helper()
	must(t, s.wg.IpcSet(fmt.Sprintf("public_key=%s\nallowed_ip=%s\n%s", hexKey(other.key.PublicKey()), other.ip, more)))
}

func hexKey(k wgtypes.Key) string { return hex.EncodeToString(k[:]) }

func listenPort(t testing.TB, d *wg.Device) (port int) {
	t.Helper()
	conf, err := d.IpcGet()
	must(t, err)
	for line := range lines(conf) {
		if _, err := fmt.Sscanf(line, "listen_port=%d", &port); err == nil {
			return port
		}
	}
	t.Fatal("no port")
	return 0
}

// pair is two nodes with a Device each, joined by WireGuard.
type pair struct {
	a, b  *Device
	wires uint32
}

const nodeA, nodeB = 0xc0a80101, 0xe0000001 // any number will do, multicast too

func newPair(t testing.TB) *pair {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes TUN devices: needs root")
	}
	p := &pair{a: newDevice(t, Config{NodeID: nodeA, MTU: tunnelMTU}), b: newDevice(t, Config{NodeID: nodeB, MTU: tunnelMTU})}
	join(t, p.a, p.b, cidr(nodeA), cidr(nodeB))
	return p
}

func cidr(id uint32) string {
	return netip.AddrFrom4([4]byte{byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}).String() + "/32"
}

func newDevice(t testing.TB, cfg Config) *Device {
	t.Helper()
	d, err := New(cfg)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// wire makes a wire between the nodes.
func (p *pair) wire(t testing.TB, ethernet bool) (a, b end) {
	t.Helper()
	p.wires++
	mtu := tunnelMTU - Overhead
	if ethernet {
		mtu -= ethernetLen
	}
	a, fdA := newEnd(t, ethernet, 1, mtu)
	b, fdB := newEnd(t, ethernet, 2, mtu)
	must(t, p.a.Add(Wire{FD: fdA, Ethernet: ethernet, Local: p.wires, Remote: 1000 + p.wires, Peer: nodeB}))
	must(t, p.b.Add(Wire{FD: fdB, Ethernet: ethernet, Local: 1000 + p.wires, Remote: p.wires, Peer: nodeA}))
	return a, b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const patience = 10 * time.Second

// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/forwarder/wireguard/holder"
)

// TestMain lets the test binary play the processes that some tests start.
func TestMain(m *testing.M) {
	var play func() error
	switch {
	case len(os.Args) == 4 && os.Args[1] == "wireguard-holder":
		play = func() error { return holder.Main(context.Background(), holder.Config{Socket: os.Args[3]}) }
	case len(os.Args) == 3 && os.Args[1] == "forwarder":
		play = func() error { return playForwarder(os.Args[2]) }
	default:
		goleak.VerifyTestMain(m)
	}
	if err := play(); err != nil {
		slog.Error(os.Args[1], "error", err)
		os.Exit(1)
	}
	os.Exit(0)
}

const ifname = "nsm-1"

// node is one node of a rig: an underlay namespace and a workload's.
type node struct {
	table   *netns.Table
	work    *netns.Handle
	backend Backend
	socket  string // of the holder
	tag     string

	underlay4, underlay6 netip.Addr
	inner4, inner6       netip.Addr
	wg                   plan.WireGuard
}

// kinds runs f for each kind of backend that works on this machine.
func kinds(t *testing.T, f func(t *testing.T, userspace bool)) {
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces and links: needs root")
	}
	t.Run("module", func(t *testing.T) {
		if err := Probe(); err != nil {
			t.Skipf("%v; run test/vm/run.sh", err)
		}
		f(t, false)
	})
	t.Run("userspace", func(t *testing.T) {
		if _, err := os.Stat("/dev/net/tun"); err != nil {
			t.Skipf("no TUN devices here: %v", err)
		}
		f(t, true)
	})
}

// newRig makes two nodes whose underlays are joined by a veth pair. Its ends
// bear, on purpose, the name that the WireGuard devices will have.
func newRig(t *testing.T, userspace bool) (a, b *node) {
	t.Helper()
	a, b = newNode(t, userspace, 1), newNode(t, userspace, 2)
	a.wg, b.wg = plan.WireGuard{PrivateKey: newKey(t)}, plan.WireGuard{PrivateKey: newKey(t)}
	for _, pair := range [][2]*node{{a, b}, {b, a}} {
		n, peer := pair[0], pair[1]
		n.wg.PeerKey = key(peer.wg.PrivateKey).PublicKey()
		n.wg.Port = 51820
		n.wg.Endpoint = netip.AddrPortFrom(peer.underlay4, 51820)
		n.wg.Keepalive = 10 * time.Second
	}
	veth(t, a.table.Self(), b.table.Self(), ifname)
	for _, n := range []*node{a, b} {
		up(t, n.table.Self(), ifname, netip.PrefixFrom(n.underlay4, 24), netip.PrefixFrom(n.underlay6, 64))
	}
	return a, b
}

// veth joins two namespaces by a pair whose ends have the same name.
func veth(t *testing.T, a, b *netns.Handle, name string) {
	t.Helper()
	must(t, a.Do(func() error {
		return b.Control(func(fd int) error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.MTU = name, 1500
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(fd)})
		})
	}))
}

func newNode(t *testing.T, userspace bool, i byte) *node {
	t.Helper()
	own, err := netns.New()
	must(t, err)
	table, err := netns.NewTableAt(own)
	must(t, err)
	t.Cleanup(table.Close)
	f, err := netns.New()
	must(t, err)
	workKey, err := table.Add(f)
	must(t, err)
	work, err := table.Get(workKey)
	must(t, err)
	n := &node{
		table: table, work: work,
		socket:    filepath.Join(t.TempDir(), "wg.sock"),
		tag:       "nsm:fwd:wire:c", // the same on both nodes: names must still differ
		underlay4: netip.AddrFrom4([4]byte{192, 0, 2, i}),
		underlay6: netip.MustParseAddr("2001:db8::" + string('0'+rune(i))),
		inner4:    netip.AddrFrom4([4]byte{172, 16, 0, i}),
		inner6:    netip.MustParseAddr("fd00::" + string('0'+rune(i))),
	}
	n.backend = n.newBackend(t, userspace)
	return n
}

// newBackend returns a backend as a (re)started forwarder has it.
func (n *node) newBackend(t *testing.T, userspace bool) Backend {
	t.Helper()
	if !userspace {
		return NewModule(n.table.Self(), n.socket)
	}
	u, err := NewUserspace(t.Context(), holder.ClientConfig{Socket: n.socket, Underlay: n.table.Self()})
	must(t, err)
	t.Cleanup(func() {
		st, err := u.Holder().Status(context.Background())
		u.Close() // first: it would start another holder
		if err == nil {
			terminate(t, st.PID)
		}
	})
	return u
}

// terminate ends a holder and waits for it.
func terminate(t *testing.T, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_ = unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)
	if !pollOne(fd, 10*time.Second) {
		t.Errorf("holder %d does not end", pid)
	}
}

// pollOne waits until fd is readable.
func pollOne(fd int, timeout time.Duration) bool {
	for deadline := time.Now().Add(timeout); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds()))
		if err != unix.EINTR {
			return n == 1
		}
	}
}

// wire makes the node's end of the wire.
func (n *node) wire(t *testing.T) {
	t.Helper()
	must(t, n.backend.Create(t.Context(), n.work, ifname, n.tag, 1420))
	must(t, n.backend.Configure(t.Context(), n.work, ifname, n.tag, n.wg))
	up(t, n.work, ifname, netip.PrefixFrom(n.inner4, 24), netip.PrefixFrom(n.inner6, 64))
}

// up switches on an interface and gives it addresses.
func up(t *testing.T, ns *netns.Handle, name string, addrs ...netip.Prefix) {
	t.Helper()
	must(t, ns.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, p := range addrs {
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
			if p.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(link)
	}))
}

// echo starts a UDP echo server at addr inside ns.
func echo(t *testing.T, ns *netns.Handle, addr netip.Addr) netip.AddrPort {
	t.Helper()
	var server *net.UDPConn
	must(t, ns.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 7)))
		return err
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	t.Cleanup(func() { _ = server.Close(); <-done })
	return netip.AddrPortFrom(addr, 7)
}

// dial opens a UDP socket to addr inside ns.
func dial(t *testing.T, ns *netns.Handle, addr netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	must(t, ns.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
		return err
	}))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// roundTrip sends payload and expects it back.
func roundTrip(t *testing.T, c *net.UDPConn, payload string) {
	t.Helper()
	must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err := c.Write([]byte(payload))
	must(t, err)
	buf := make([]byte, 2048)
	n, err := c.Read(buf)
	must(t, err)
	if string(buf[:n]) != payload {
		t.Fatalf("%q came back as %q", payload, buf[:n])
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func linkExists(ns *netns.Handle, name string) bool {
	return ns.Do(func() error {
		_, err := net.InterfaceByName(name)
		return err
	}) == nil
}

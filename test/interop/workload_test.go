// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/wireguard"
	"github.com/openvwire/nsm/forwarder/wireguard/holder"
	"github.com/openvwire/nsm/internal/nstest"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

// workload is a network namespace of its own for one client, endpoint or node.
type workload struct {
	*netns.Handle
	table *netns.Table
	empty nstest.Census
}

func newWorkload(t *testing.T) *workload {
	t.Helper()
	f, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	table, err := netns.NewTableAt(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.Close)
	w := &workload{Handle: table.Self(), table: table}
	w.empty = w.census(t)
	return w
}

// path is where the reference's parts, which know files by name, find it.
func (w *workload) path() string { return fmt.Sprintf("/proc/self/fd/%d", w.File().Fd()) }

func (w *workload) census(t *testing.T) (c nstest.Census) {
	t.Helper()
	w.inside(t, func() (err error) {
		c, err = nstest.Count()
		return err
	})
	return c
}

// mustBeEmpty checks that nothing has been left in the namespace.
func (w *workload) mustBeEmpty(t *testing.T) {
	t.Helper()
	if got := w.census(t); got != w.empty {
		t.Errorf("left in the namespace: %+v, before: %+v", got, w.empty)
	}
}

// mustBecomeEmpty is mustBeEmpty of a workload that a wire has just left: what may still
// deliver packets that were under way goes a moment later (docs/adr/0006).
func (w *workload) mustBecomeEmpty(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := soon(t); w.census(t) != w.empty; {
		select {
		case <-tick.C:
		case <-end.Done():
			w.mustBeEmpty(t)
			return
		}
	}
}

func (w *workload) inside(t *testing.T, f func() error) {
	t.Helper()
	if err := w.Do(f); err != nil {
		t.Fatal(err)
	}
}

// link returns the link with the given name.
func (w *workload) link(t *testing.T, name string) (link netlink.Link) {
	t.Helper()
	w.inside(t, func() (err error) {
		link, err = netlink.LinkByName(name)
		return err
	})
	return link
}

// hasAddr reports whether the link has the address.
func (w *workload) hasAddr(t *testing.T, link netlink.Link, prefix string) bool {
	t.Helper()
	var addrs []netlink.Addr
	w.inside(t, func() (err error) {
		addrs, err = netlink.AddrList(link, netlink.FAMILY_ALL)
		return err
	})
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == prefix })
}

// addLink makes a link with an address, for tunnels to run over.
func (w *workload) addLink(t *testing.T, name string, addr netip.Prefix, mtu int) {
	t.Helper()
	w.inside(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, mtu
		link := &netlink.Veth{LinkAttrs: attrs, PeerName: name + "-peer"}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		ip := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
}

// mustReach sends a datagram from one address to another and wants it back.
func mustReach(t *testing.T, from *workload, fromAddr string, to *workload, toAddr string) {
	t.Helper()
	if err := reach(from, fromAddr, to, toAddr); err != nil {
		t.Errorf("from %s to %s: %v", fromAddr, toAddr, err)
	}
}

func reach(from *workload, fromAddr string, to *workload, toAddr string) error {
	source, err := netip.ParsePrefix(fromAddr)
	if err != nil {
		return err
	}
	target, err := netip.ParsePrefix(toAddr)
	if err != nil {
		return err
	}
	const port = 7777
	var server, client *net.UDPConn
	err = to.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(target.Addr(), port)))
		return err
	})
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, peer, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(buf[:n], peer)
		}
	})
	defer serving.Wait()
	defer server.Close()
	err = from.Do(func() (err error) {
		client, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source.Addr(), 0)),
			net.UDPAddrFromAddrPort(netip.AddrPortFrom(target.Addr(), port)))
		return err
	})
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	defer client.Close()
	if err := client.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := client.Write([]byte("hello")); err != nil {
		return err
	}
	buf := make([]byte, 16)
	n, err := client.Read(buf)
	if err == nil && string(buf[:n]) != "hello" {
		err = fmt.Errorf("got %q", buf[:n])
	}
	return err
}

// holderOf is where the WireGuard devices of a node are kept.
func holderOf(t *testing.T, node *workload) holder.ClientConfig {
	return holder.ClientConfig{Socket: strings.TrimPrefix(ref.Socket(t), "unix://"), Underlay: node.Handle, Logger: ours.Quiet}
}

// endHolder ends the process that keeps userspace devices, which would outlive
// the test, and waits for it.
func endHolder(t *testing.T, u *wireguard.Userspace) {
	status, err := u.Holder().Status(context.Background())
	u.Close() // first: it would start another
	if err != nil {
		return // there is none: no device was wanted
	}
	fd, err := unix.PidfdOpen(status.PID, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_ = unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)
	for deadline := time.Now().Add(10 * time.Second); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			t.Errorf("holder %d does not end", status.PID)
		}
		_, _ = unix.Wait4(status.PID, nil, unix.WNOHANG, nil)
		return
	}
}

// inodeURL is how the workload's namespace is named between processes.
func inodeURL(t *testing.T, w *workload) string {
	t.Helper()
	url, err := rpc.InodeURL(w.File())
	if err != nil {
		t.Fatal(err)
	}
	return url
}

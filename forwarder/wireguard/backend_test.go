// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/nserr"
)

const marker = "plaintext that must never be seen on the underlay"

// Both families pass, encrypted, over underlays of both families.
func TestTraffic(t *testing.T) {
	kinds(t, func(t *testing.T, userspace bool) {
		for _, underlay := range []string{"IPv4", "IPv6"} {
			t.Run("underlay "+underlay, func(t *testing.T) {
				a, b := newRig(t, userspace)
				if underlay == "IPv6" {
					a.wg.Endpoint = netip.AddrPortFrom(b.underlay6, 51820)
					b.wg.Endpoint = netip.AddrPortFrom(a.underlay6, 51820)
					// A fresh veth pair needs two seconds until IPv6 passes; a
					// handshake lost meanwhile would be repeated after five.
					c := dial(t, a.table.Self(), echo(t, b.table.Self(), b.underlay6))
					roundTrip(t, c, "is the underlay up?")
				}
				a.wire(t)
				b.wire(t)
				outside := capture(t, a.table.Self())
				inside := capture(t, a.work)
				for _, addr := range []netip.Addr{b.inner4, b.inner6} {
					c := dial(t, a.work, echo(t, b.work, addr))
					for range 10 {
						roundTrip(t, c, marker)
					}
				}
				tunnel, leaked := outside.count(51820, marker)
				if tunnel < 40 || leaked != 0 {
					t.Errorf("on the underlay: %d tunnel packets, %d with plaintext", tunnel, leaked)
				}
				if _, seen := inside.count(7, marker); seen != 40 {
					t.Errorf("the capture saw %d of 40 plaintext packets inside", seen)
				}
				must(t, checkNoUnderlaySocket(a.work))
			})
		}
	})
}

// checkNoUnderlaySocket fails if ns has a socket at the tunnel's port.
func checkNoUnderlaySocket(ns *netns.Handle) error {
	return ns.Do(func() error {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: 51820})
		if err != nil {
			v4, _ := os.ReadFile("/proc/thread-self/net/udp")
			v6, _ := os.ReadFile("/proc/thread-self/net/udp6")
			return fmt.Errorf("%w\n%s%s", err, v4, v6)
		}
		return c.Close()
	})
}

func TestReconfigureKeepsSession(t *testing.T) {
	kinds(t, func(t *testing.T, userspace bool) {
		a, b := newRig(t, userspace)
		a.wire(t)
		b.wire(t)
		c := dial(t, a.work, echo(t, b.work, b.inner4))
		roundTrip(t, c, "one")
		before, found, err := a.backend.Read(t.Context(), a.work, ifname, a.tag)
		if err != nil || !found || before.LastHandshake.IsZero() {
			t.Fatalf("Read = %+v, %t, %v", before, found, err)
		}
		if before.WireGuard != a.wg {
			t.Errorf("Read = %+v, want %+v", before.WireGuard, a.wg)
		}
		for range 3 {
			must(t, a.backend.Configure(t.Context(), a.work, ifname, a.tag, a.wg))
			roundTrip(t, c, "two")
		}
		after, _, err := a.backend.Read(t.Context(), a.work, ifname, a.tag)
		must(t, err)
		if !after.LastHandshake.Equal(before.LastHandshake) || after.RxBytes <= before.RxBytes || after.TxBytes <= before.TxBytes {
			t.Errorf("session was reset: %+v, before %+v", after, before)
		}

		// A new peer takes the old one's place, and back again.
		stranger := a.wg
		stranger.PeerKey = newKey(t).PublicKey()
		must(t, a.backend.Configure(t.Context(), a.work, ifname, a.tag, stranger))
		if s, _, err := a.backend.Read(t.Context(), a.work, ifname, a.tag); err != nil || s.WireGuard != stranger || !s.LastHandshake.IsZero() {
			t.Errorf("with another peer: %+v, %v", s, err)
		}
		must(t, a.backend.Configure(t.Context(), a.work, ifname, a.tag, a.wg))
		roundTrip(t, c, "three")
	})
}

// A restarted forwarder reads back what it needs to go on: the private key.
func TestReadAfterRestart(t *testing.T) {
	kinds(t, func(t *testing.T, userspace bool) {
		a, b := newRig(t, userspace)
		a.wire(t)
		b.wire(t)
		c := dial(t, a.work, echo(t, b.work, b.inner4))
		roundTrip(t, c, "before")
		first, _, err := a.backend.Read(t.Context(), a.work, ifname, a.tag)
		must(t, err)
		a.backend.Close()

		a.backend = a.newBackend(t, userspace)
		s, found, err := a.backend.Read(t.Context(), a.work, ifname, a.tag)
		if err != nil || !found || s.WireGuard != a.wg || !s.LastHandshake.Equal(first.LastHandshake) {
			t.Errorf("Read after a restart = %+v, %t, %v", s, found, err)
		}
		roundTrip(t, c, "after")
	})
}

func TestDeleteLeavesNothing(t *testing.T) {
	kinds(t, func(t *testing.T, userspace bool) {
		a, b := newRig(t, userspace)
		if _, found, err := a.backend.Read(t.Context(), a.work, ifname, a.tag); found || err != nil {
			t.Errorf("Read before Create: %t, %v", found, err)
		}
		must(t, a.backend.Delete(t.Context(), a.work.Key(), a.work, ifname, a.tag))
		fds := descriptors(t)
		for range 3 {
			a.wire(t)
			b.wire(t)
			for _, n := range []*node{a, b} {
				must(t, n.backend.Delete(t.Context(), n.work.Key(), n.work, ifname, n.tag))
				must(t, n.backend.Delete(t.Context(), n.work.Key(), n.work, ifname, n.tag))
				if linkExists(n.work, ifname) {
					t.Error("the interface is left")
				}
				if _, found, err := n.backend.Read(t.Context(), n.work, ifname, n.tag); found || err != nil {
					t.Errorf("Read after Delete: %t, %v", found, err)
				}
				must(t, checkNoUnderlaySocket(n.table.Self()))
			}
		}
		if sockets, _ := filepath.Glob("/var/run/wireguard/nsm*"); userspace && len(sockets) > 0 {
			for _, path := range sockets {
				for _, n := range []*node{a, b} {
					if filepath.Base(path) == n.backend.(*Userspace).name(n.tag)+".sock" {
						t.Errorf("%s is left", path)
					}
				}
			}
		}
		// The first round may open what a backend keeps: two attachments.
		if now := descriptors(t); now > fds+2 {
			t.Errorf("%d descriptors, %d before", now, fds)
		}
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestErrors(t *testing.T) {
	kinds(t, func(t *testing.T, userspace bool) {
		a, _ := newRig(t, userspace)
		must(t, a.backend.Create(t.Context(), a.work, ifname, a.tag, 1420))

		if err := a.backend.Create(t.Context(), a.work, ifname, a.tag+"2", 1420); !errors.Is(err, nserr.NameTaken) {
			t.Errorf("taken name: %v", err)
		}
		if err := a.backend.Create(t.Context(), a.work, "lo", a.tag+"2", 1420); !errors.Is(err, nserr.NameTaken) {
			t.Errorf("name of another kind: %v", err)
		}
		if err := a.backend.Configure(t.Context(), a.work, "nsm-9", a.tag+"2", a.wg); !errors.Is(err, nserr.KernelFailed) {
			t.Errorf("no such device: %v", err)
		}
		if err := a.backend.Configure(t.Context(), a.work, ifname, a.tag, plan.WireGuard{}); !errors.Is(err, nserr.BadMechanism) {
			t.Errorf("no keys: %v", err)
		}

		// Up first: then the socket is opened by Configure with both kinds.
		up(t, a.work, ifname)
		var other *net.UDPConn
		must(t, a.table.Self().Do(func() (err error) {
			other, err = net.ListenUDP("udp4", &net.UDPAddr{Port: int(a.wg.Port)})
			return err
		}))
		if err := a.backend.Configure(t.Context(), a.work, ifname, a.tag, a.wg); !errors.Is(err, nserr.AddressInUse) {
			t.Errorf("port in use: %v", err)
		}
		must(t, other.Close())
		must(t, a.backend.Configure(t.Context(), a.work, ifname, a.tag, a.wg))

		// A namespace that is gone has no device, and that is fine.
		f, err := netns.New()
		must(t, err)
		k, err := a.table.Add(f)
		must(t, err)
		dead, err := a.table.Get(k)
		must(t, err)
		a.table.Release(k)
		if err := a.backend.Create(t.Context(), dead, ifname, a.tag+"3", 1420); !errors.Is(err, nserr.NoNetNS) {
			t.Errorf("Create in a dead namespace: %v", err)
		}
		must(t, a.backend.Delete(t.Context(), dead.Key(), dead, ifname, a.tag+"3"))
	})
}

// sniffer is an AF_PACKET socket that has seen everything at one interface.
type sniffer struct{ fd int }

func capture(t *testing.T, ns *netns.Handle) sniffer {
	t.Helper()
	s := sniffer{-1}
	must(t, ns.Do(func() error {
		ifi, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		if err != nil {
			return err
		}
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index})
	}))
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

// count returns how many packets from or to UDP port have arrived so far, and
// how many of all packets contain text.
func (s sniffer) count(port uint16, text string) (atPort, withText int) {
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(s.fd, buf, 0)
		if err != nil {
			return atPort, withText
		}
		p := buf[:n]
		header := 20
		if len(p) > 0 && p[0]>>4 == 6 {
			header = 40
		}
		if len(p) >= header+8 {
			udp := p[header:]
			if src, dst := uint16(udp[0])<<8|uint16(udp[1]), uint16(udp[2])<<8|uint16(udp[3]); src == port || dst == port {
				atPort++
			}
		}
		if bytes.Contains(p, []byte(text)) {
			withText++
		}
	}
}

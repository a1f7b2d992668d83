// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/openvwire/nsm/sdk/nserr"
)

// fixedTUN is a Single with what WireGuard wants of a TUN device besides: it has an MTU that
// does not change.
type fixedTUN struct {
	*Single
	events chan tun.Event
}

func singleTUN(t testing.TB, fd int) tun.Device {
	t.Helper()
	s, err := NewSingle(fd, new(Scratch))
	must(t, err)
	return fixedTUN{s, make(chan tun.Event)}
}

func (f fixedTUN) MTU() (int, error)        { return tunnelMTU, nil }
func (f fixedTUN) Name() (string, error)    { return ifname, nil }
func (f fixedTUN) Events() <-chan tun.Event { return f.events }

func (f fixedTUN) Close() error {
	close(f.events)
	return f.Single.Close()
}

func newSingle(t testing.TB, i byte) (*Single, end) {
	t.Helper()
	e, fd := quietEnd(t, i)
	s, err := NewSingle(fd, new(Scratch))
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s, e
}

// What is there is read at once, as far as there is room, and the rest of it next.
func TestSingleReads(t *testing.T) {
	s, e := newSingle(t, 1)
	c := e.sender(t)
	send(t, c, 3)
	sendSegments(t, c, 2500)
	send(t, c, 1)
	box := newInbox(4)
	var got []int
	for _, want := range []int{4, 3} {
		n, err := s.Read(box.bufs, box.sizes, room)
		if n != want || err != nil {
			t.Fatalf("Read = %d, %v, want %d", n, err, want)
		}
		for i, size := range box.sizes[:n] {
			got = append(got, size-28)
			packet := box.bufs[i][room : room+size]
			if f, ok := parseFlow(packet, false); !ok || !(&train{flow: f}).right(packet) {
				t.Errorf("packet %d is not right: % x", len(got), packet[:28])
			}
		}
	}
	if want := []int{5, 5, 5, 1000, 1000, 500, 5}; !slices.Equal(got, want) {
		t.Errorf("packets of %v bytes, want %v", got, want)
	}
}

// What makes no sense, and what is too long for the reader, is passed over.
func TestSingleReadPassesOver(t *testing.T) {
	s, e := newSingle(t, 1)
	e.sendRaw(t, shape{ports: 1, flags: tcpACK, payload: make([]byte, 60000), uncomputed: true}.unit(1))
	c := e.sender(t)
	_, err := c.Write(make([]byte, 1000))
	must(t, err)
	send(t, c, 1)
	bufs, sizes := [][]byte{make([]byte, 500)}, make([]int, 1)
	if n, err := s.Read(bufs, sizes, room); n != 1 || sizes[0] != 33 || err != nil {
		t.Errorf("Read = %d, %v of %d bytes", n, err, sizes[0])
	}
}

// The workload gets each packet that is whole, whether it was joined with others or not.
func TestSingleWrites(t *testing.T) {
	s, e := newSingle(t, 2)
	var c *net.UDPConn
	must(t, e.ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(e.addr4, 9)))
		return err
	}))
	defer c.Close()
	var bufs [][]byte
	for i := range byte(6) {
		p := shape{udp: true, ttl: 64, ports: 7<<16 | 9, id: uint16(i), payload: bytes.Repeat([]byte{i}, 100)}.build()
		if i == 3 {
			p[len(p)-1] ^= 1
		}
		bufs = append(bufs, append(make([]byte, room), p...))
	}
	if n, err := s.Write(bufs, room); n != len(bufs) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	got := make([]byte, 1500)
	for _, i := range []byte{0, 1, 2, 4, 5} {
		n, err := c.Read(got)
		must(t, err)
		if !bytes.Equal(got[:n], bytes.Repeat([]byte{i}, 100)) {
			t.Errorf("packet %d is %d bytes of %d", i, n, got[0])
		}
	}
}

// Who deletes the interface ends the device, and so does Close.
func TestSingleEnds(t *testing.T) {
	for name, end := range map[string]func(*Single, end) error{
		"closed": func(s *Single, _ end) error { return s.Close() },
		"deleted": func(_ *Single, e end) error {
			return e.ns.Do(func() error {
				link, err := netlink.LinkByName(ifname)
				if err != nil {
					return err
				}
				return netlink.LinkDel(link)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, e := newSingle(t, 1)
			reader := make(chan error)
			go func() {
				box := newInbox(1)
				_, err := s.Read(box.bufs, box.sizes, room)
				reader <- err
			}()
			must(t, end(s, e))
			select {
			case err := <-reader:
				if !errors.Is(err, os.ErrClosed) {
					t.Errorf("Read: %v", err)
				}
			case <-time.After(patience):
				t.Fatal("Read goes on")
			}
			packet := append(make([]byte, room), shape{udp: true}.build()...)
			if _, err := s.Write([][]byte{packet}, room); !errors.Is(err, os.ErrClosed) {
				t.Errorf("Write: %v", err)
			}
		})
	}
}

// What cannot be used is closed.
func TestNewSingleRefuses(t *testing.T) {
	e, fd := quietEnd(t, 1)
	must(t, unix.Close(fd))
	for name, fd := range map[string]int{"TAP": openTUN(t, e.ns, true, "a"), "no TUN device": openNull(t)} {
		if _, err := NewSingle(fd, new(Scratch)); !errors.Is(err, nserr.BadMechanism) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("%s: the descriptor is open still", name)
		}
	}
}

// Packets cost no garbage, and between them a Single holds no memory that others could use.
func TestSingleNoAllocations(t *testing.T) {
	s, e := newSingle(t, 2)
	readsWithoutGarbage(t, e, s.Read)
	if s.buf != nil || s.unit.frame != nil {
		t.Error("a buffer is kept")
	}
	packets, _ := split(t, shape{ttl: 64, ports: 1, flags: tcpACK, payload: make([]byte, 20000), uncomputed: true}.unit(1000), false)
	for i, p := range packets {
		packets[i] = append(make([]byte, room), p...)
	}
	write := func() {
		if n, err := s.Write(packets, room); n != len(packets) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if got := testing.AllocsPerRun(200, write); got > 0 {
		t.Errorf("a Write makes %v allocations", got)
	}
}

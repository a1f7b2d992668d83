// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Without IPv6 a TUN device that comes up says nothing by itself.
func quiet(t testing.TB, ns *netns.Handle) {
	t.Helper()
	must(t, ns.Do(func() error {
		// /proc/sys/net is that of the thread's namespace.
		return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	}))
}

// quietEnd is an end whose interface sends only what the test sends.
func quietEnd(t testing.TB, i byte) (e end, fd int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes TUN devices: needs root")
	}
	e = end{ns: newNamespace(t), addr4: netip.AddrFrom4([4]byte{10, 0, 0, i})}
	quiet(t, e.ns)
	fd = openTUN(t, e.ns, false, ifname)
	e.up(t, 1400)
	return e, fd
}

// sender is a UDP socket in the namespace of e, connected to the other end.
func (e end) sender(t testing.TB) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	must(t, e.ns.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 99}), 9)))
		return err
	}))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func send(t testing.TB, c *net.UDPConn, n int) {
	t.Helper()
	for range n {
		_, err := c.Write([]byte("hello"))
		must(t, err)
	}
}

// inbox reads packets from a Device as WireGuard does.
type inbox struct {
	bufs  [][]byte
	sizes []int
}

const room = 16 // before each packet, as WireGuard wants it

func newInbox(n int) *inbox {
	b := &inbox{sizes: make([]int, n)}
	for range n {
		b.bufs = append(b.bufs, make([]byte, 1<<16-1))
	}
	return b
}

// read returns the headers of what one Read gives.
func (b *inbox) read(t testing.TB, d *Device) (headers []header) {
	t.Helper()
	n, err := d.Read(b.bufs, b.sizes, room)
	must(t, err)
	for i := range n {
		h, ok := parseHeader(b.bufs[i][room : room+b.sizes[i]])
		if !ok {
			t.Fatalf("Read gives % x", b.bufs[i][room:room+b.sizes[i]])
		}
		headers = append(headers, h)
	}
	return headers
}

// Wires that have something have turns, whoever sends more.
func TestReadIsFair(t *testing.T) {
	d := newDevice(t, Config{NodeID: nodeA, MTU: tunnelMTU})
	for i, n := range []int{5, 1, 3} {
		e, fd := quietEnd(t, byte(i+1))
		must(t, d.Add(Wire{FD: fd, Local: uint32(i), Remote: uint32(10 + i), Peer: nodeB}))
		send(t, e.sender(t), n)
	}
	box := newInbox(2) // a Read ends in the middle of a round
	var turns []uint32
	for len(turns) < 9 {
		for _, h := range box.read(t, d) {
			turns = append(turns, h.wire-10)
		}
	}
	count := map[uint32]int{}
	for i, w := range turns {
		count[w]++
		if i == 2 && len(count) != 3 {
			t.Errorf("turns %v: somebody waits", turns)
		}
	}
	if count[0] != 5 || count[1] != 1 || count[2] != 3 {
		t.Errorf("turns %v", turns)
	}
}

// A wire that has packets later is served although another one always has some.
func TestReadSeesNewcomers(t *testing.T) {
	d := newDevice(t, Config{NodeID: nodeA, MTU: tunnelMTU})
	loud, fdLoud := quietEnd(t, 1)
	soft, fdSoft := quietEnd(t, 2)
	must(t, d.Add(Wire{FD: fdLoud, Local: 1, Remote: 11, Peer: nodeB}))
	must(t, d.Add(Wire{FD: fdSoft, Local: 2, Remote: 12, Peer: nodeB}))
	box := newInbox(4)
	send(t, loud.sender(t), 20)
	box.read(t, d)
	send(t, soft.sender(t), 1)
	for range 2 { // the first one only takes what it knows of
		for _, h := range box.read(t, d) {
			if h.wire == 12 {
				return
			}
		}
	}
	t.Error("a wire waits for another one to be silent")
}

// A wire whose packets are all dropped keeps no other one waiting.
func TestReadPassesOver(t *testing.T) {
	d := newDevice(t, Config{NodeID: nodeA, MTU: tunnelMTU})
	lost, fdLost := quietEnd(t, 1)
	soft, fdSoft := quietEnd(t, 2)
	must(t, d.Add(Wire{FD: fdLost, Local: 1}))
	must(t, d.Add(Wire{FD: fdSoft, Local: 2, Remote: 12, Peer: nodeB}))
	send(t, lost.sender(t), 20)
	send(t, soft.sender(t), 1)
	if got := newInbox(1).read(t, d); got[0].wire != 12 {
		t.Errorf("%+v", got)
	}
	if s, _ := d.Stats(1); s.Dropped.NoPeer > 2 {
		t.Errorf("%d packets had to be dropped first", s.Dropped.NoPeer)
	}
}

// Nor does one whose units never fit into one Read.
func TestReadSeesNewcomersAmongSegments(t *testing.T) {
	d := newDevice(t, Config{NodeID: nodeA, MTU: tunnelMTU})
	loud, fdLoud := quietEnd(t, 1)
	soft, fdSoft := quietEnd(t, 2)
	must(t, d.Add(Wire{FD: fdLoud, Local: 1, Remote: 11, Peer: nodeB}))
	must(t, d.Add(Wire{FD: fdSoft, Local: 2, Remote: 12, Peer: nodeB}))
	c := loud.sender(t)
	for range 8 {
		sendSegments(t, c, 9500)
	}
	box := newInbox(4) // of ten in a unit
	box.read(t, d)
	send(t, soft.sender(t), 1)
	for range 8 { // two units more
		for _, h := range box.read(t, d) {
			if h.wire == 12 {
				return
			}
		}
	}
	t.Error("a wire waits for another one to be silent")
}

// sendSegments sends UDP packets of 1000 bytes as one unit.
func sendSegments(t testing.TB, c *net.UDPConn, bytes int) {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(s uintptr) { err = unix.SetsockoptInt(int(s), unix.SOL_UDP, unix.UDP_SEGMENT, 1000) }))
	must(t, err)
	_, err = c.Write(make([]byte, bytes))
	must(t, err)
}

// A workload that sends raw packets can ask the kernel for segments of any size. It does not
// have others wait for one packet for each of its bytes.
func TestReadRefusesTinySegments(t *testing.T) {
	d := newDevice(t, Config{NodeID: nodeA, MTU: tunnelMTU})
	many, fd := quietEnd(t, 1)
	must(t, d.Add(Wire{FD: fd, Local: 1, Remote: 11, Peer: nodeB}))
	one, fd := quietEnd(t, 2)
	must(t, d.Add(Wire{FD: fd, Local: 2, Remote: 12, Peer: nodeB}))
	tiny := shape{ports: 1, flags: tcpACK, payload: make([]byte, 60000), uncomputed: true}
	many.sendRaw(t, tiny.unit(1))
	send(t, one.sender(t), 1)
	in := newInbox(128)
	for packets := 0; ; {
		headers := in.read(t, d)
		packets += len(headers)
		if slices.ContainsFunc(headers, func(h header) bool { return h.wire == 12 }) {
			break
		}
		if packets > maxSegments {
			t.Fatalf("%d packets, and another wire's is not among them", packets)
		}
	}
	if s, _ := d.Stats(1); s.Dropped.Malformed != 1 {
		t.Errorf("of the wire with the segments: %+v", s)
	}
}

// sendRaw sends a packet, behind a vnet, by a raw socket.
func (e end) sendRaw(t testing.TB, raw []byte) {
	t.Helper()
	must(t, e.ns.Do(func() error {
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return err
		}
		protocol := binary.NativeEndian.Uint16([]byte{unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff})
		return unix.Sendto(fd, raw, 0, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Attrs().Index})
	}))
}

// A unit that does not fit into what is left goes on with the next Read.
func TestReadGoesOn(t *testing.T) {
	d := newDevice(t, Config{NodeID: nodeA, MTU: tunnelMTU})
	e, fd := quietEnd(t, 1)
	must(t, d.Add(Wire{FD: fd, Local: 1, Remote: 11, Peer: nodeB}))
	sendSegments(t, e.sender(t), 9500)
	box := newInbox(4)
	var sizes []int
	for len(sizes) < 10 {
		n, err := d.Read(box.bufs, box.sizes, room)
		must(t, err)
		sizes = append(sizes, box.sizes[:n]...)
	}
	for i, size := range sizes {
		want := Overhead + ipv4Len + udpLen + 1000
		if i == 9 {
			want -= 500
		}
		if size != want {
			t.Errorf("packet %d has %d bytes, want %d", i, size, want)
		}
	}
	if s, _ := d.Stats(1); s.Sent.Packets != 10 || s.Sent.Bytes != 10*28+9500 {
		t.Errorf("sent %+v", s.Sent)
	}
}

// What a workload sends before the peer is known is dropped; afterwards it gets to
// whoever the wire points at, in the same interface.
func TestPoint(t *testing.T) {
	d := newDevice(t, Config{NodeID: nodeA, MTU: tunnelMTU})
	e, fd := quietEnd(t, 1)
	must(t, d.Add(Wire{FD: fd, Local: 1}))
	other, fdOther := quietEnd(t, 2) // by its packet Read returns
	must(t, d.Add(Wire{FD: fdOther, Local: 2, Remote: 2, Peer: nodeB}))
	box, c := newInbox(8), e.sender(t)
	send(t, c, 3)
	send(t, other.sender(t), 1)
	for n := 0; n == 0; {
		n = len(box.read(t, d))
	}
	var s Stats
	for s.Dropped.NoPeer < 3 { // the rest is read with the next packet
		send(t, other.sender(t), 1)
		box.read(t, d)
		s, _ = d.Stats(1)
	}
	if s.Dropped.NoPeer != 3 || s.Sent.Packets != 0 {
		t.Errorf("%+v", s)
	}
	for remote := range uint32(3) {
		must(t, d.Point(1, nodeB+remote, remote))
		send(t, c, 1)
		want := header{wire: remote, src: nodeA, dst: nodeB + remote, summed: true}
		if got := box.read(t, d); len(got) != 1 || got[0] != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	if err := d.Point(7, 1, 1); !errors.Is(err, nserr.UnknownWire) {
		t.Errorf("Point of what is not there: %v", err)
	}
}

// A packet gets into a wire only from the wire's peer.
func TestForeignPacketsAreDropped(t *testing.T) {
	d := newDevice(t, Config{NodeID: nodeA, MTU: tunnelMTU})
	e, fd := quietEnd(t, 1)
	must(t, d.Add(Wire{FD: fd, Local: 1, Remote: 11, Peer: nodeB}))
	var l *net.UDPConn
	must(t, e.ns.Do(func() (err error) {
		l, err = net.ListenUDP("udp", &net.UDPAddr{Port: 9})
		return err
	}))
	defer l.Close()
	packet := func(payload string, h header) []byte {
		p := shape{udp: true, ttl: 64, ports: 9, payload: []byte(payload)}
		b := p.build()
		copy(b[12:20], []byte{10, 0, 0, 2, 10, 0, 0, 1})
		clear(b[26:28]) // no UDP checksum
		sumIPv4(b[:20])
		b = append(make([]byte, room+Overhead), b...)
		h.put(b[room:], len(b)-room-Overhead)
		return b
	}
	_, err := d.Write([][]byte{
		packet("from another node", header{wire: 1, src: 5, dst: nodeA}),
		packet("of no node", header{wire: 1, src: 0, dst: nodeA}),
		packet("to another wire", header{wire: 2, src: nodeB, dst: nodeA}),
		packet("to another node", header{wire: 1, src: nodeB, dst: 5}),
		packet("right", header{wire: 1, src: nodeB, dst: nodeA}),
	}, room)
	must(t, err)
	must(t, l.SetDeadline(time.Now().Add(patience)))
	buf := make([]byte, 100)
	n, err := l.Read(buf)
	must(t, err)
	s, _ := d.Stats(1)
	if string(buf[:n]) != "right" || s.Received.Packets != 1 || s.Dropped.Foreign != 2 || d.Strays() != 2 {
		t.Errorf("%q arrived, %+v, %d strays", buf[:n], s, d.Strays())
	}
	if time.Since(s.LastReceived) > time.Minute {
		t.Errorf("last received at %v", s.LastReceived)
	}

	// What the interface does not take is counted as well.
	must(t, e.ns.Do(func() error {
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	}))
	_, err = d.Write([][]byte{packet("down", header{wire: 1, src: nodeB, dst: nodeA})}, room)
	must(t, err)
	if s, _ := d.Stats(1); s.Dropped.Refused != 1 {
		t.Errorf("%+v", s)
	}
}

// Somebody who deletes an interface ends the wire.
func TestGone(t *testing.T) {
	gone := make(chan uint32, 2)
	d := newDevice(t, Config{NodeID: nodeA, MTU: tunnelMTU, Gone: func(local uint32) { gone <- local }})
	reader := make(chan error)
	go func() {
		box := newInbox(8)
		var err error
		for err == nil {
			_, err = d.Read(box.bufs, box.sizes, room)
		}
		reader <- err
	}()
	e, fd := quietEnd(t, 1)
	must(t, d.Add(Wire{FD: fd, Local: 1, Peer: nodeB}))
	must(t, e.ns.Do(func() error {
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	}))
	if local := <-gone; local != 1 {
		t.Errorf("wire %d is gone", local)
	}
	if _, ok := d.Stats(1); ok {
		t.Error("it is there still")
	}

	// Whom nobody waits for can be removed and added again.
	again, fd := quietEnd(t, 3)
	must(t, d.Add(Wire{FD: fd, Local: 1, Peer: nodeB}))
	must(t, d.Remove(1))
	must(t, d.Remove(1))
	if err := again.ns.Do(func() error { _, err := net.InterfaceByName(ifname); return err }); err == nil {
		t.Error("the interface of a wire that has been removed is there")
	}
	must(t, d.Close())
	if err := <-reader; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read ends with %v", err)
	}
	if len(gone) != 0 {
		t.Error("what has been removed is reported as gone")
	}
}

// openNull returns a descriptor that is not of a TUN device.
func openNull(t testing.TB) int {
	t.Helper()
	fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	return fd
}

// Add takes the descriptor and closes it when it cannot use it.
func TestAddRefuses(t *testing.T) {
	d := newDevice(t, Config{NodeID: nodeA, MTU: tunnelMTU})
	e, fd := quietEnd(t, 1)
	must(t, d.Add(Wire{FD: fd, Local: 1}))
	for _, c := range []struct {
		name string
		wire Wire
		want *nserr.Reason
	}{
		{"no TUN device", Wire{FD: openNull(t), Local: 2}, nserr.BadMechanism},
		{"TUN for TAP", Wire{FD: openTUN(t, e.ns, false, "a"), Local: 3, Ethernet: true}, nserr.BadMechanism},
		{"TAP for TUN", Wire{FD: openTUN(t, e.ns, true, "b"), Local: 4}, nserr.BadMechanism},
		{"the same number", Wire{FD: openTUN(t, e.ns, false, "c"), Local: 1}, nserr.Internal},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := d.Add(c.wire); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if _, err := unix.FcntlInt(uintptr(c.wire.FD), unix.F_GETFD, 0); err != unix.EBADF {
				t.Error("the descriptor is open still")
			}
		})
	}
	must(t, d.Close())
	must(t, d.Close())
	if err := d.Add(Wire{FD: openTUN(t, e.ns, false, "d"), Local: 5}); !errors.Is(err, nserr.Stopping) {
		t.Errorf("Add after Close: %v", err)
	}
	if _, err := d.Write(nil, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
	if _, open := <-d.Events(); open {
		t.Error("events go on after Close")
	}
	for _, cfg := range []Config{{MTU: 1420}, {NodeID: 1}, {NodeID: 1, MTU: 1 << 16}} {
		if _, err := New(cfg); !errors.Is(err, nserr.Internal) {
			t.Errorf("New(%+v): %v", cfg, err)
		}
	}
}

// readsWithoutGarbage has e send packets, each of which read returns without an allocation.
func readsWithoutGarbage(t *testing.T, e end, read func(bufs [][]byte, sizes []int, offset int) (int, error)) {
	t.Helper()
	box := newInbox(64)
	raw, err := e.sender(t).SyscallConn()
	must(t, err)
	payload := make([]byte, 1000)
	sendOne := func(s uintptr) { _, err = unix.Write(int(s), payload) }
	pass := func() {
		_ = raw.Control(sendOne)
		if n, err := read(box.bufs, box.sizes, room); n != 1 || err != nil {
			t.Fatalf("Read = %d, %v", n, err)
		}
	}
	pass()
	must(t, err)
	if got := testing.AllocsPerRun(200, pass); got > 0 {
		t.Errorf("a Read makes %v allocations", got)
	}
}

// Packets cost no garbage.
func TestNoAllocations(t *testing.T) {
	d := newDevice(t, Config{NodeID: nodeA, MTU: tunnelMTU})
	e, fd := quietEnd(t, 1)
	must(t, d.Add(Wire{FD: fd, Local: 1, Remote: 11, Peer: nodeB}))
	readsWithoutGarbage(t, e, d.Read)

	s := shape{ttl: 64, ports: 1, flags: tcpACK, payload: make([]byte, 20000), uncomputed: true}
	packets, _ := split(t, s.unit(1000), false)
	bufs := make([][]byte, len(packets))
	for i, p := range packets {
		bufs[i] = make([]byte, room+Overhead, room+Overhead+len(p))
		bufs[i] = append(bufs[i], p...)
	}
	write := func() {
		for _, b := range bufs {
			header{wire: 1, src: nodeB, dst: nodeA, summed: true}.put(b[room:], len(b)-room-Overhead)
		}
		if n, err := d.Write(bufs, room); n != len(bufs) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if got := testing.AllocsPerRun(200, write); got > 0 {
		t.Errorf("a Write makes %v allocations", got)
	}
	if st, _ := d.Stats(1); st.Dropped != (Drops{}) || st.Received.Packets != uint64(len(packets))*201 {
		t.Errorf("%+v", st)
	}
}

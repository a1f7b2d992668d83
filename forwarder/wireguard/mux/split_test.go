// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// split takes all packets of a unit.
func split(t testing.TB, raw []byte, ethernet bool) (packets [][]byte, u unit) {
	t.Helper()
	if !u.parse(bytes.Clone(raw), ethernet) {
		t.Fatalf("% x makes no sense", raw[:min(len(raw), 100)])
	}
	for !u.empty() {
		b := make([]byte, u.next())
		u.take(b)
		packets = append(packets, b)
	}
	return packets, u
}

// What is split is what would have been sent packet by packet, checksums included.
func TestSplit(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s := shapes(5000, false).Draw(r, "packet")
		s.uncomputed = true
		size := rapid.IntRange(5, 1500).Draw(r, "size") // no more than maxSegments
		packets, u := split(t, s.unit(size), s.ethernet())
		want := s.segments(size)
		if len(packets) != len(want) || !u.summed {
			t.Fatalf("%d packets, want %d", len(packets), len(want))
		}
		for i := range want {
			if w := want[i].build(); !bytes.Equal(packets[i], w) {
				t.Fatalf("packet %d of %d\n% x, want\n% x", i, len(want), packets[i], w)
			}
		}
	})
}

// A packet that is not to be split stays as it is, but for a checksum that was left
// to be computed.
func TestSplitNothing(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s := shapes(2000, false).Draw(r, "packet")
		s.uncomputed = rapid.Bool().Draw(r, "uncomputed")
		packets, u := split(t, s.unit(0), s.ethernet())
		computed := s
		computed.uncomputed = false
		if len(packets) != 1 || !bytes.Equal(packets[0], computed.build()) || u.summed != s.uncomputed {
			t.Fatalf("% x, want\n% x", packets, computed.build())
		}
	})
}

// A unit that makes no sense is refused.
func TestSplitRefuses(t *testing.T) {
	tcp4 := shape{ports: 1, flags: tcpACK, payload: make([]byte, 3000), uncomputed: true}
	tcp6, udp4, tagged := tcp4, tcp4, tcp4
	tcp6.v6, udp4.udp, tagged.link = true, true, ethernetHeader(false, 1, 2)
	const flags, gso, size, sumFrom, sumAt = 0, 1, 4, 6, 8 // offsets of a vnet
	put := func(at int, v uint16) func([]byte) []byte {
		return func(b []byte) []byte { binary.NativeEndian.PutUint16(b[at:], v); return b }
	}
	set := func(at int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = v; return b }
	}
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
	for _, c := range []struct {
		name   string
		shape  shape
		change func([]byte) []byte
	}{
		{"nothing", tcp4, cut(0)},
		{"half a header", tcp4, cut(vnetLen - 1)},
		{"no packet", tcp4, cut(vnetLen)},
		{"no segment size", tcp4, put(size, 0)},
		{"segments of a byte", tcp4, put(size, 1)},
		{"no checksum to compute", tcp4, set(flags, 0)},
		{"unknown offload", tcp4, set(gso, 9)},
		{"offload not asked for", tcp4, set(gso, unix.VIRTIO_NET_HDR_GSO_TCPV4|unix.VIRTIO_NET_HDR_GSO_ECN)},
		{"fragments of UDP", udp4, set(gso, unix.VIRTIO_NET_HDR_GSO_UDP)},
		{"TCP over IPv6 that is IPv4", tcp4, set(gso, unix.VIRTIO_NET_HDR_GSO_TCPV6)},
		{"TCP over IPv4 that is IPv6", tcp6, set(gso, unix.VIRTIO_NET_HDR_GSO_TCPV4)},
		{"checksum beyond the end", tcp4, put(sumAt, 60000)},
		{"checksum elsewhere", tcp4, put(sumAt, 6)},
		{"transport beyond the end", tcp4, put(sumFrom, 60000)},
		{"transport in the IP header", tcp4, put(sumFrom, 12)},
		{"transport at the start", tcp4, put(sumFrom, 0)},
		{"transport in the IPv6 header", tcp6, put(sumFrom, 24)},
		{"transport in a VLAN tag", tagged, put(sumFrom, 16)},
		{"TCP header too short", tcp4, set(vnetLen+20+12, 0x40)},
		{"headers without payload", tcp4, cut(vnetLen + 40)},
		{"half a TCP header", tcp4, cut(vnetLen + 39)},
		{"half an IP header", tcp4, cut(vnetLen + 10)},
		{"IPv4 header of another length", tcp4, set(vnetLen, 0x46)},
		{"one packet with a checksum beyond the end", tcp4, func(b []byte) []byte { b[gso] = 0; return b[:vnetLen+37] }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var u unit
			if u.parse(c.change(c.shape.unit(1000)), c.shape.ethernet()) {
				t.Errorf("%+v", u)
			}
			if !u.empty() {
				t.Error("something is left in it")
			}
		})
	}
}

// Whatever a device gives, it is refused or split into packets that have all of the
// payload.
func FuzzSplit(f *testing.F) {
	for _, s := range []shape{
		{ports: 1, flags: tcpACK, payload: make([]byte, 300), uncomputed: true},
		{v6: true, ports: 1, flags: tcpACK | tcpPSH, payload: make([]byte, 300), uncomputed: true, link: ethernetHeader(true, 7)},
		{udp: true, payload: make([]byte, 300), uncomputed: true, extra: make([]byte, 4)},
		{udp: true, v6: true, payload: make([]byte, 300), uncomputed: true, extra: make([]byte, 8)},
	} {
		f.Add(s.unit(100), s.ethernet())
		f.Add(s.unit(0), s.ethernet())
	}
	f.Fuzz(func(t *testing.T, raw []byte, ethernet bool) {
		var u unit
		if !u.parse(bytes.Clone(raw), ethernet) {
			return
		}
		var payload []byte
		headers := u.payload
		for !u.empty() {
			b := make([]byte, u.next())
			u.take(b)
			payload = append(payload, b[headers:]...)
		}
		if want := raw[vnetLen+headers:]; headers > 0 && !bytes.Equal(payload, want) || len(payload) != len(want) {
			t.Errorf("payload % x, want % x", payload, want)
		}
	})
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint16(0))
	f.Add(bytes.Repeat([]byte{0xff}, 200), uint16(0xffff))
	f.Add([]byte{1, 2, 3}, uint16(4))
	f.Fuzz(func(t *testing.T, b []byte, start uint16) {
		want := slowSum(binary.BigEndian.AppendUint16(append(bytes.Clone(b), make([]byte, len(b)%2)...), start))
		if got := fold(sum(b, word(start))); got != want {
			t.Errorf("sum %#x, want %#x", got, want)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// joined is what a train makes of packets whose checksums are right: units as a
// device takes them.
func joined(packets [][]byte, ethernet bool) [][]byte { return joinedBy(new(train), packets, ethernet) }

// verified is what a train makes of packets for which nobody vouches.
func verified(packets [][]byte, ethernet bool) [][]byte {
	return joinedBy(&train{verify: true}, packets, ethernet)
}

func joinedBy(t *train, packets [][]byte, ethernet bool) (units [][]byte) {
	end := func() {
		if t.packets > 0 {
			units = append(units, bytes.Clone(t.finish()))
		}
	}
	for _, p := range packets {
		if t.packets > 0 && t.join(p, ethernet) {
			continue
		}
		end()
		t.start(append(make([]byte, vnetLen), p...), ethernet, !t.verify, true)
	}
	end()
	return units
}

// What was one unit before it was split is the same one when it has been joined.
func TestJoin(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s := shapes(20000, true).Draw(r, "packet")
		s.uncomputed = true
		size := rapid.IntRange(500, 1500).Draw(r, "size")
		want := s.unit(size)
		packets, _ := split(t, want, s.ethernet())
		if len(packets) == 1 {
			want = append(make([]byte, vnetLen), packets[0]...)
		}
		units := joined(packets, s.ethernet())
		if len(units) != 1 || !bytes.Equal(units[0], want) {
			t.Fatalf("%d packets became %d units\n% x, want\n% x", len(packets), len(units), units, want)
		}
	})
}

// A unit gets no larger than the kernel accepts, and what is not joined is not lost.
func TestJoinIsBounded(t *testing.T) {
	tcp := shape{ports: 1, flags: tcpACK, payload: make([]byte, 60000), uncomputed: true}
	udp := tcp
	udp.udp = true
	for _, c := range []struct {
		name  string
		shape shape
		size  int
		want  []int // packets in each unit
	}{
		{"TCP", tcp, 1000, []int{65, 55}},
		{"TCP of Ethernet", func() shape { s := tcp; s.link = ethernetHeader(false, 1); return s }(), 1000, []int{65, 55}},
		{"UDP", udp, 600, []int{64, 64, 64, 8}},
	} {
		t.Run(c.name, func(t *testing.T) {
			first, _ := split(t, c.shape.unit(c.size), c.shape.ethernet())
			next := c.shape
			next.seq += uint32(len(next.payload))
			next.id += uint16(len(first))
			second, _ := split(t, next.unit(c.size), c.shape.ethernet())
			var got []int
			for _, raw := range joined(slices.Concat(first, second), c.shape.ethernet()) {
				packets, _ := split(t, raw, c.shape.ethernet())
				got = append(got, len(packets))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("units of %v packets, want %v", got, c.want)
			}
		})
	}
}

// A second packet that does not follow the first one is left alone.
func TestJoinRefuses(t *testing.T) {
	tcp4 := shape{ports: 1, ttl: 64, flags: tcpACK, window: 9, options: make([]byte, 12), payload: make([]byte, 1000)}
	change := func(s shape, f func(*shape)) shape { f(&s); return s }
	tcp6 := change(tcp4, func(s *shape) { s.v6 = true })
	udp4 := change(tcp4, func(s *shape) { s.udp = true })
	udp6 := change(udp4, func(s *shape) { s.v6 = true })
	tagged := change(udp4, func(s *shape) { s.link = ethernetHeader(false, 1) })
	mend := func(b []byte) []byte { sumIPv4(b[:20]); return b }
	same := func(*shape) {}
	for _, c := range []struct {
		name   string
		first  shape
		change func(*shape)        // of the second one
		raw    func([]byte) []byte // of its bytes
		joins  bool
	}{
		{"TCP over IPv4", tcp4, same, nil, true},
		{"TCP over IPv6", tcp6, same, nil, true},
		{"UDP over IPv4", udp4, same, nil, true},
		{"UDP over IPv6", udp6, same, nil, true},
		{"in a VLAN", tagged, same, nil, true},
		{"a shorter one", tcp4, func(s *shape) { s.payload = s.payload[:1] }, nil, true},
		{"the last one", tcp4, func(s *shape) { s.flags |= tcpPSH | tcpFIN }, nil, true},
		{"any id, not fragmented", change(udp4, func(s *shape) { s.df = true }), func(s *shape) { s.id = 77 }, nil, true},

		{"another id", udp4, func(s *shape) { s.id = 77 }, nil, false},
		{"a longer one", tcp4, func(s *shape) { s.payload = append(s.payload, 0) }, nil, false},
		{"no payload", tcp4, func(s *shape) { s.payload = nil }, nil, false},
		{"empty UDP", udp4, func(s *shape) { s.payload = nil }, nil, false},
		{"another port", tcp4, func(s *shape) { s.ports++ }, nil, false},
		{"another UDP port", udp6, func(s *shape) { s.ports++ }, nil, false},
		{"a gap", tcp4, func(s *shape) { s.seq++ }, nil, false},
		{"the same again", tcp4, func(s *shape) { s.seq -= 1000 }, nil, false},
		{"another acknowledgement", tcp4, func(s *shape) { s.ack++ }, nil, false},
		{"another window", tcp4, func(s *shape) { s.window++ }, nil, false},
		{"other options", tcp4, func(s *shape) { s.options = append(bytes.Clone(s.options[:11]), 1) }, nil, false},
		{"more options", tcp4, func(s *shape) { s.options = make([]byte, 16) }, nil, false},
		{"a reset", tcp4, func(s *shape) { s.flags |= 0x04 }, nil, false},
		{"urgent", tcp4, func(s *shape) { s.flags |= 0x20 }, nil, false},
		{"congestion", tcp4, func(s *shape) { s.flags |= tcpECE }, nil, false},
		{"window reduced", tcp4, func(s *shape) { s.flags |= 0x80 }, nil, false},
		{"no acknowledgement", tcp4, func(s *shape) { s.flags = 0 }, nil, false},
		{"another TOS", tcp4, func(s *shape) { s.tos++ }, nil, false},
		{"another TTL", tcp4, func(s *shape) { s.ttl++ }, nil, false},
		{"another traffic class", tcp6, func(s *shape) { s.tos++ }, nil, false},
		{"another hop limit", tcp6, func(s *shape) { s.ttl++ }, nil, false},
		{"may be fragmented", tcp4, func(s *shape) { s.df = true }, nil, false},
		{"another family", tcp4, func(s *shape) { s.v6 = true }, nil, false},
		{"another protocol", tcp4, func(s *shape) { s.udp = true }, nil, false},
		{"IPv4 options", tcp4, func(s *shape) { s.extra = make([]byte, 4) }, nil, false},
		{"an IPv6 extension", tcp6, func(s *shape) { s.extra = make([]byte, 8) }, nil, false},
		{"another VLAN", tagged, func(s *shape) { s.link = ethernetHeader(false, 2) }, nil, false},
		{"no VLAN", tagged, func(s *shape) { s.link = ethernetHeader(false) }, nil, false},
		{"too many VLANs", tagged, func(s *shape) { s.link = ethernetHeader(false, 1, 2, 3) }, nil, false},
		{"another station", tagged, func(s *shape) { s.link = append([]byte{4}, s.link[1:]...) }, nil, false},
		{"a fragment", tcp4, same, func(b []byte) []byte { b[6] |= 0x20; return mend(b) }, false},
		{"a later fragment", tcp4, same, func(b []byte) []byte { b[7] = 1; return mend(b) }, false},
		{"another source", tcp4, same, func(b []byte) []byte { b[12]++; return mend(b) }, false},
		{"another destination", tcp6, same, func(b []byte) []byte { b[39]++; return b }, false},
		{"IPv4 padding", tcp4, same, func(b []byte) []byte { return append(b, 0) }, false},
		{"IPv6 padding", tcp6, same, func(b []byte) []byte { return append(b, 0) }, false},
		{"UDP padding", udp4, same, func(b []byte) []byte { b[25]--; return b }, false},
		{"TCP header too short", tcp4, same, func(b []byte) []byte { b[32] = 0x40; return b }, false},
		{"TCP header too long", change(tcp4, func(s *shape) { s.payload = s.payload[:5] }), same, func(b []byte) []byte { b[32] = 0xf0; return b }, false},
		{"another protocol number", tcp4, same, func(b []byte) []byte { b[9] = unix.IPPROTO_SCTP; return mend(b) }, false},
		{"no IP", tcp4, same, func(b []byte) []byte { b[0] = 0x95; return b }, false},
		{"half an IPv6 header", tcp6, same, func(b []byte) []byte { return b[:30] }, false},
		{"half a header", tcp4, same, func(b []byte) []byte { return b[:19] }, false},
		{"nothing", tcp4, same, func(b []byte) []byte { return b[:0] }, false},
		{"half an Ethernet header", tagged, same, func(b []byte) []byte { return b[:13] }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			second := c.first
			second.payload = bytes.Clone(second.payload)
			second.seq += uint32(len(c.first.payload))
			second.id++
			c.change(&second)
			raw := second.build()
			if c.raw != nil {
				raw = c.raw(raw)
			}
			units := joined([][]byte{c.first.build(), raw}, c.first.ethernet())
			if (len(units) == 1) != c.joins {
				t.Fatalf("%d units", len(units))
			}
			if !c.joins && (!bytes.Equal(units[0][vnetLen:], c.first.build()) || !bytes.Equal(units[1][vnetLen:], raw)) {
				t.Error("packets that were not joined have changed")
			}
		})
	}
}

// After a shorter packet, and after one that is to be delivered at once, comes nothing.
func TestJoinEnds(t *testing.T) {
	for name, end := range map[string]func(*shape){
		"shorter": func(s *shape) { s.payload = s.payload[:999] },
		"PSH":     func(s *shape) { s.flags |= tcpPSH },
		"FIN":     func(s *shape) { s.flags |= tcpFIN },
	} {
		t.Run(name, func(t *testing.T) {
			s := shape{ports: 1, flags: tcpACK, payload: make([]byte, 1000)}
			packets := [][]byte{s.build()}
			follow := func() {
				s.seq += uint32(len(s.payload))
				s.id++
				packets = append(packets, s.build())
			}
			seq := s.seq + 1000
			end(&s)
			s.seq, s.id = seq, 1
			packets = append(packets, s.build())
			follow()
			s.flags = tcpACK
			follow()
			units := joined(packets, false)
			if len(units) < 2 || len(units[0]) != vnetLen+40+1000+len(packets[1])-40 {
				t.Errorf("%d units, the first has %d bytes", len(units), len(units[0]))
			}
		})
	}
}

// Packets whose checksums nobody vouches for, and UDP where the kernel takes no
// segments of it, stay alone.
func TestJoinOnlyWhatIsRight(t *testing.T) {
	for _, c := range []struct{ isUDP, summed, udp, open bool }{
		{false, true, false, true}, {false, false, true, false}, {true, true, false, false}, {true, true, true, true},
	} {
		var tr train
		s := shape{udp: c.isUDP, flags: tcpACK, payload: make([]byte, 10)}
		tr.start(append(make([]byte, vnetLen), s.build()...), false, c.summed, c.udp)
		if tr.open != c.open {
			t.Errorf("%+v: open %v", c, tr.open)
		}
	}
}

// A train that verifies joins what is right, and leaves a packet that is not as it came.
func TestJoinVerifies(t *testing.T) {
	const whole = -1
	for name, s := range map[string]shape{
		"TCP over IPv4": {ttl: 64, flags: tcpACK}, "TCP over IPv6": {v6: true, flags: tcpACK},
		"UDP over IPv4": {udp: true, ttl: 64}, "UDP over IPv6": {udp: true, v6: true},
	} {
		s.ports, s.payload = 1, bytes.Repeat([]byte{7}, 300)
		_, transport := s.offsets()
		payload, sum := s.headers(), transport+tcpSumAt
		if s.udp {
			sum = transport + udpSumAt
		}
		harms := map[string]func(p []byte){
			"payload":  func(p []byte) { p[payload] ^= 1 },
			"checksum": func(p []byte) { p[sum] ^= 1 },
			"none":     func(p []byte) { p[sum], p[sum+1] = 0, 0 },
		}
		if !s.v6 {
			harms["IPv4 header"] = func(p []byte) { p[10] ^= 1 }
		}
		for harm, damage := range harms {
			for at, want := range map[int][]int{whole: {3}, 0: {1, 2}, 1: {1, 1, 1}, 2: {2, 1}} {
				uncomputed := s
				uncomputed.payload, uncomputed.uncomputed = bytes.Repeat([]byte{7}, 900), true
				packets, _ := split(t, uncomputed.unit(300), false)
				if at != whole {
					damage(packets[at])
				}
				var got []int
				var again [][]byte
				for _, raw := range verified(packets, false) {
					parts, _ := split(t, raw, false)
					got, again = append(got, len(parts)), append(again, parts...)
				}
				if !slices.Equal(got, want) || !slices.EqualFunc(again, packets, bytes.Equal) {
					t.Errorf("%s, %s of packet %d damaged: units of %v packets, want %v", name, harm, at, got, want)
				}
			}
		}
	}
}

// Whatever packets come, what is joined and split again has the same payloads in the
// same order, and the kernel gets units that it can read. If checksums are verified they are
// the same too.
func FuzzJoin(f *testing.F) {
	for _, s := range []shape{
		{ports: 1, flags: tcpACK, payload: make([]byte, 300), uncomputed: true},
		{udp: true, v6: true, payload: make([]byte, 300), uncomputed: true, link: ethernetHeader(true, 7)},
	} {
		packets, _ := split(f, s.unit(100), s.ethernet())
		f.Add(sequence(packets), s.ethernet())
	}
	f.Fuzz(func(t *testing.T, data []byte, ethernet bool) {
		packets := unsequence(data)
		apart := func(units [][]byte) (got [][]byte) {
			for _, raw := range units {
				again, _ := split(t, raw, ethernet)
				got = append(got, again...)
			}
			if len(got) != len(packets) {
				t.Fatalf("%d packets became %d", len(packets), len(got))
			}
			return got
		}
		for i, p := range apart(verified(packets, ethernet)) {
			if !bytes.Equal(p, packets[i]) && !sameButIDs(p, packets[i], ethernet) {
				t.Fatalf("verified packet %d\n% x became\n% x", i, packets[i], p)
			}
		}
		got := apart(joined(packets, ethernet))
		for i := range got {
			if fl, ok := parseFlow(packets[i], ethernet); ok {
				mask(got[i], fl)
				mask(packets[i], fl)
			}
			if !bytes.Equal(got[i], packets[i]) {
				t.Fatalf("packet %d\n% x became\n% x", i, packets[i], got[i])
			}
		}
	})
}

// mask blanks what is made anew when packets are joined: checksums, and the ids of
// packets that are not fragmented.
func mask(p []byte, f flow) {
	at := f.transport + tcpSumAt
	if f.udp {
		at = f.transport + udpSumAt
	}
	clear(p[at : at+2])
	if !f.v6 {
		clear(p[f.ip+4 : f.ip+6])
		clear(p[f.ip+10 : f.ip+12])
	}
}

// sameButIDs reports whether two IPv4 packets have the same checksums, and are the same but
// for what the id of a packet that is not fragmented makes different.
func sameButIDs(a, b []byte, ethernet bool) bool {
	f, ok := parseFlow(a, ethernet)
	if !ok || f.v6 || len(a) != len(b) || !bytes.Equal(a[f.transport:], b[f.transport:]) {
		return false
	}
	a, b = bytes.Clone(a), bytes.Clone(b)
	mask(a, f)
	mask(b, f)
	return bytes.Equal(a, b)
}

// sequence writes packets with their lengths before them.
func sequence(packets [][]byte) (data []byte) {
	for _, p := range packets {
		data = append(binary.BigEndian.AppendUint16(data, uint16(len(p))), p...)
	}
	return data
}

func unsequence(data []byte) (packets [][]byte) {
	for len(data) > 2 {
		n := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
		if n > 0 {
			packets = append(packets, bytes.Clone(data[2:2+n]))
		}
		data = data[2+n:]
	}
	return packets
}

// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"encoding/binary"
	"math/big"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// shape is a packet as tests describe it. What is built of it is built without the
// package's own functions.
type shape struct {
	v6, udp    bool
	link       []byte // what is before the IP header
	extra      []byte // IPv4 options, or an IPv6 extension header; of 4 or 8 bytes each
	id         uint16
	df         bool
	tos, ttl   byte
	ports      uint32
	seq, ack   uint32
	flags      byte
	window     uint16
	options    []byte // of TCP
	payload    []byte
	uncomputed bool // the checksum is left to others: it is that of the pseudo header
}

var (
	addresses4 = []byte{10, 0, 0, 1, 10, 0, 0, 2}
	addresses6 = append(append([]byte{0xfd, 14: 0, 15: 1}, 0xfd), []byte{14: 2}...)
)

func (s shape) transport() (protocol byte, header []byte) {
	be := binary.BigEndian
	b := be.AppendUint32(nil, s.ports)
	if s.udp {
		return unix.IPPROTO_UDP, be.AppendUint32(b, uint32(8+len(s.payload))<<16)
	}
	b = be.AppendUint32(be.AppendUint32(b, s.seq), s.ack)
	b = be.AppendUint16(append(b, byte(20+len(s.options))<<2, s.flags), s.window)
	return unix.IPPROTO_TCP, append(append(b, 0, 0, 0, 0), s.options...)
}

// offsets of the IP and the transport header.
func (s shape) offsets() (ip, transport int) {
	if s.v6 {
		return len(s.link), len(s.link) + 40 + len(s.extra)
	}
	return len(s.link), len(s.link) + 20 + len(s.extra)
}

func (s shape) headers() int {
	_, header := s.transport()
	_, transport := s.offsets()
	return transport + len(header)
}

func (s shape) build() []byte {
	be := binary.BigEndian
	protocol, transport := s.transport()
	length := len(transport) + len(s.payload)
	var ip, addresses []byte
	if s.v6 {
		addresses = addresses6
		next := protocol
		if len(s.extra) > 0 {
			next = unix.IPPROTO_DSTOPTS
			s.extra[0] = protocol
		}
		ip = []byte{0x60 | s.tos>>4, s.tos << 4, 0, 0}
		ip = append(be.AppendUint16(ip, uint16(len(s.extra)+length)), next, s.ttl)
		ip = append(append(ip, addresses...), s.extra...)
	} else {
		addresses = addresses4
		ip = []byte{0x45 + byte(len(s.extra)/4), s.tos}
		ip = be.AppendUint16(be.AppendUint16(ip, uint16(20+len(s.extra)+length)), s.id)
		var fragment uint16
		if s.df {
			fragment = 0x4000
		}
		ip = append(be.AppendUint16(ip, fragment), s.ttl, protocol, 0, 0)
		ip = append(append(ip, addresses...), s.extra...)
		be.PutUint16(ip[10:], ^slowSum(ip))
	}
	pseudo := append([]byte{}, addresses...)
	pseudo = append(be.AppendUint32(pseudo, uint32(length)), 0, 0, 0, protocol)
	at := 16
	if s.udp {
		at = 6
	}
	if s.uncomputed {
		be.PutUint16(transport[at:], slowSum(pseudo))
	} else {
		c := ^slowSum(append(append(pseudo, transport...), s.payload...))
		if c == 0 {
			c = 0xffff
		}
		be.PutUint16(transport[at:], c)
	}
	return append(append(append(append([]byte{}, s.link...), ip...), transport...), s.payload...)
}

// slowSum is the ones' complement sum of b: the remainder, of division by 2¹⁶-1, of
// b as one long number.
func slowSum(b []byte) uint16 {
	if len(b)%2 == 1 {
		b = append(append([]byte{}, b...), 0)
	}
	n := new(big.Int).SetBytes(b)
	if n.Sign() == 0 {
		return 0
	}
	if n.Mod(n, big.NewInt(0xffff)).Sign() == 0 {
		return 0xffff // a sum of numbers that are not all 0 never becomes 0 again
	}
	return uint16(n.Uint64())
}

// segments are the packets that s is to be split into.
func (s shape) segments(size int) (list []shape) {
	for rest, i := s.payload, 0; len(rest) > 0; i++ {
		one := s
		one.uncomputed = false
		one.payload, rest = rest[:min(size, len(rest))], rest[min(size, len(rest)):]
		one.id += uint16(i)
		one.seq += uint32(i * size)
		if len(rest) > 0 {
			one.flags &^= tcpPSH | tcpFIN
		}
		list = append(list, one)
	}
	return list
}

// unit is s as a device gives it, to be split into segments of a size; 0: as it is.
func (s shape) unit(size int) []byte {
	v := vnet{size: uint16(size)}
	_, transport := s.offsets()
	if s.uncomputed {
		v.flags, v.sumFrom, v.sumAt = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, uint16(transport), 16
		if s.udp {
			v.sumAt = 6
		}
	}
	switch {
	case size == 0:
	case s.udp:
		v.gso = unix.VIRTIO_NET_HDR_GSO_UDP_L4
	case s.v6:
		v.gso = unix.VIRTIO_NET_HDR_GSO_TCPV6
	default:
		v.gso = unix.VIRTIO_NET_HDR_GSO_TCPV4
	}
	if size != 0 {
		v.headers = uint16(s.headers())
	}
	b := make([]byte, vnetLen)
	v.put(b)
	return append(b, s.build()...)
}

func (s shape) ethernet() bool { return len(s.link) > 0 }

// ethernetHeader is one with tags, in front of IP.
func ethernetHeader(v6 bool, tags ...uint16) []byte {
	b := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}
	for i, tag := range tags {
		kind := uint16(0x8100)
		if i < len(tags)-1 {
			kind = 0x88a8
		}
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, kind), tag)
	}
	if v6 {
		return append(b, 0x86, 0xdd)
	}
	return append(b, 0x08, 0x00)
}

// shapes draws packets with a payload of at most max bytes. Joinable ones are those
// that the kernel's own offloads would join.
func shapes(max int, joinable bool) *rapid.Generator[shape] {
	return rapid.Custom(func(t *rapid.T) shape {
		s := shape{
			v6: rapid.Bool().Draw(t, "v6"), udp: rapid.Bool().Draw(t, "udp"), df: rapid.Bool().Draw(t, "df"),
			id: rapid.Uint16().Draw(t, "id"), tos: rapid.Byte().Draw(t, "tos"), ttl: rapid.Byte().Draw(t, "ttl"),
			ports: rapid.Uint32().Draw(t, "ports"), seq: rapid.Uint32().Draw(t, "seq"), ack: rapid.Uint32().Draw(t, "ack"),
			window:  rapid.Uint16().Draw(t, "window"),
			flags:   tcpACK | rapid.SampledFrom([]byte{0, tcpPSH, tcpFIN, tcpPSH | tcpFIN, tcpECE}).Draw(t, "flags"),
			options: rapid.SliceOfN(rapid.Byte(), 0, 10).Draw(t, "options"),
		}
		s.options = s.options[:len(s.options)&^3]
		if rapid.Bool().Draw(t, "ethernet") {
			tags := rapid.SliceOfN(rapid.Uint16(), 0, 2).Draw(t, "tags")
			s.link = ethernetHeader(s.v6, tags...)
		}
		if !joinable && rapid.Bool().Draw(t, "extra") {
			s.extra = make([]byte, 8)
		}
		s.payload = make([]byte, rapid.IntRange(1, max).Draw(t, "length"))
		for i, x := 0, rapid.Uint32().Draw(t, "payload"); i < len(s.payload); i++ {
			x = x*1664525 + 1013904223
			s.payload[i] = byte(x >> 24)
		}
		return s
	})
}

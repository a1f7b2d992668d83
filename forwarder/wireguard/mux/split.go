// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// maxSegments is how many packets a unit may become. A workload that may send raw packets
// can ask for segments of one byte, and would have all others wait for 65,535 packets
// at each of its turns. TCP's least (TCP_MIN_MSS of the kernel, 88 bytes with options)
// makes 862 of 64 KiB.
const maxSegments = 1024

// unit is what one read of a TUN or TAP device gives: a packet, or a TCP or UDP packet
// that is to be split into segments. The zero unit is empty.
type unit struct {
	frame  []byte
	summed bool // the checksums of its packets are computed here

	segment int // payload of each segment but the last, bytes; 0: one packet, as it is
	at      int // where the payload of the next segment begins; len(frame): nothing is left
	index   int // of the next segment

	// Of what has segments:
	ip, transport, payload int // where they begin
	udp, v6                bool
	pseudo                 uint64 // sum of the pseudo header without the length
}

// parse makes u what a device has given, without copying it. False means that it
// makes no sense. A checksum that the kernel has left to be computed is put in place.
func (u *unit) parse(raw []byte, ethernet bool) bool {
	*u = unit{}
	if len(raw) <= vnetLen {
		return false
	}
	v := parseVnet(raw)
	frame := raw[vnetLen:]
	from, sumAt := int(v.sumFrom), int(v.sumFrom)+int(v.sumAt)
	partial := v.flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0
	if partial && sumAt+2 > len(frame) {
		return false
	}
	if v.gso != unix.VIRTIO_NET_HDR_GSO_NONE {
		return partial && u.parseSegments(v, frame, ethernet)
	}
	if partial {
		// The field holds the sum of the pseudo header.
		binary.BigEndian.PutUint16(frame[sumAt:], complement(sum(frame[from:], 0)))
	}
	u.frame, u.summed = frame, partial
	return true
}

// parseSegments is parse for what has segments.
func (u *unit) parseSegments(v vnet, frame []byte, ethernet bool) bool {
	ip, transport := 0, int(v.sumFrom)
	if ethernet {
		ip = networkAt(frame)
	}
	if ip >= transport || transport >= len(frame) {
		return false
	}
	var udp, v6 bool
	switch v.gso {
	case unix.VIRTIO_NET_HDR_GSO_TCPV4:
	case unix.VIRTIO_NET_HDR_GSO_TCPV6:
		v6 = true
	case unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		udp, v6 = true, frame[ip]>>4 == 6
	default:
		return false
	}
	headers, sumAt := udpLen, udpSumAt
	if !udp {
		if transport+tcpLen > len(frame) {
			return false
		}
		headers, sumAt = int(frame[transport+tcpLengthAt]>>4)*4, tcpSumAt
	}
	payload := transport + headers
	switch {
	case v.size == 0 || payload >= len(frame) || int(v.sumAt) != sumAt || len(frame)-ip > maxLength:
		return false
	case (len(frame)-payload-1)/int(v.size) >= maxSegments:
		return false
	case !udp && headers < tcpLen:
		return false
	case v6 && (frame[ip]>>4 != 6 || transport-ip < ipv6Len):
		return false
	case !v6 && (frame[ip]>>4 != 4 || transport-ip < ipv4Len || int(frame[ip]&0xf)*4 != transport-ip):
		return false
	}
	// The checksum field holds the sum of the pseudo header of the whole. The packets'
	// differ from it in the length. The kernel goes the same way, and need not know
	// what else counts: routing headers change the addresses.
	field := binary.BigEndian.Uint16(frame[transport+sumAt:])
	*u = unit{
		frame: frame, summed: true,
		segment: int(v.size), at: payload,
		ip: ip, transport: transport, payload: payload, udp: udp, v6: v6,
		pseudo: word(field) + word(^uint16(len(frame)-transport)),
	}
	frame[transport+sumAt], frame[transport+sumAt+1] = 0, 0
	return true
}

// empty reports whether nothing is left to take.
func (u *unit) empty() bool { return u.at >= len(u.frame) }

// next returns the length of the next packet.
func (u *unit) next() int {
	if u.segment == 0 {
		return len(u.frame)
	}
	return u.payload + min(u.segment, len(u.frame)-u.at)
}

// take writes the next packet into b, which must have room for it.
func (u *unit) take(b []byte) {
	if u.segment == 0 {
		copy(b, u.frame)
		u.at = len(u.frame)
		return
	}
	n := u.next()
	b = b[:n]
	copy(b, u.frame[:u.payload])
	copy(b[u.payload:], u.frame[u.at:])
	u.at += n - u.payload

	be := binary.BigEndian
	if ip := b[u.ip:u.transport]; u.v6 {
		be.PutUint16(ip[4:], uint16(n-u.ip-ipv6Len))
	} else {
		be.PutUint16(ip[2:], uint16(n-u.ip))
		be.PutUint16(ip[4:], be.Uint16(ip[4:])+uint16(u.index))
		sumIPv4(ip)
	}
	transport, sumAt := b[u.transport:], udpSumAt
	if u.udp {
		be.PutUint16(transport[udpLengthAt:], uint16(len(transport)))
	} else {
		sumAt = tcpSumAt
		be.PutUint32(transport[tcpSeqAt:], be.Uint32(transport[tcpSeqAt:])+uint32(u.index*u.segment))
		if !u.empty() {
			transport[tcpFlagsAt] &^= tcpFIN | tcpPSH // are for the last one
		}
	}
	be.PutUint16(transport[sumAt:], complement(sum(transport, u.pseudo+word(uint16(len(transport))))))
	u.index++
}

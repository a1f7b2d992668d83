// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// maxDatagrams is how many UDP packets the kernel accepts as one (UDP_MAX_SEGMENTS
// of linux/udp.h, 64 before Linux 6.9).
const maxDatagrams = 64

// flow is where the parts of a TCP or UDP packet with a payload begin.
type flow struct {
	ip, transport, payload int
	udp, v6                bool
}

// parseFlow finds the parts of a packet that could be joined with others. False
// means that it could not: it has options or extensions, is a fragment, asks for
// something special, or its lengths disagree.
func parseFlow(p []byte, ethernet bool) (f flow, ok bool) {
	if ethernet {
		f.ip = networkAt(p)
	}
	if len(p) < f.ip+ipv4Len {
		return f, false
	}
	be, ip := binary.BigEndian, p[f.ip:]
	var protocol byte
	switch ip[0] >> 4 {
	case 4:
		if ip[0] != ipv4NoOptions || int(be.Uint16(ip[2:])) != len(ip) || be.Uint16(ip[6:])&^ipv4DF != 0 {
			return f, false
		}
		protocol, f.transport = ip[9], f.ip+ipv4Len
	case 6:
		if len(ip) < ipv6Len || int(be.Uint16(ip[4:])) != len(ip)-ipv6Len {
			return f, false
		}
		protocol, f.transport, f.v6 = ip[6], f.ip+ipv6Len, true
	default:
		return f, false
	}
	t := p[f.transport:]
	switch protocol {
	case unix.IPPROTO_UDP:
		if len(t) < udpLen || int(be.Uint16(t[udpLengthAt:])) != len(t) {
			return f, false
		}
		f.udp, f.payload = true, f.transport+udpLen
	case unix.IPPROTO_TCP:
		if len(t) < tcpLen || t[tcpFlagsAt]&tcpACK == 0 || t[tcpFlagsAt]&^(tcpACK|tcpPSH|tcpFIN|tcpECE) != 0 {
			return f, false
		}
		length := int(t[tcpLengthAt]>>4) * 4
		if length < tcpLen {
			return f, false
		}
		f.payload = f.transport + length
	default:
		return f, false
	}
	return f, f.payload < len(p)
}

const ipv4DF = 0x4000 // do not fragment, of the flags

// train is a packet and what has been joined to it.
type train struct {
	flow
	head    []byte // the first packet, behind room for a vnet
	joined  []byte // the same and the payloads that follow, once there is a second packet
	packets int
	bytes   int  // of the packets
	segment int  // payload of the first
	open    bool // more can follow
	verify  bool // nobody has vouched for checksums: packets are joined if they prove to be right
	room    [maxUnit]byte
}

// start makes t the train that begins with the packet in head. Others may follow if its
// checksum is right, which summed says or is found out later if t is to verify it, and, if
// it is UDP, the kernel takes that.
func (t *train) start(head []byte, ethernet, summed, udp bool) {
	p := head[vnetLen:]
	t.head, t.packets, t.bytes, t.open = head, 1, len(p), false
	if !summed && !t.verify {
		return
	}
	f, ok := parseFlow(p, ethernet)
	if !ok || f.udp && !udp {
		return
	}
	t.flow, t.segment = f, len(p)-f.payload
	t.open = t.continues(p)
}

// continues reports whether something may follow after p, the last packet.
func (t *train) continues(p []byte) bool {
	return len(p)-t.payload == t.segment && (t.udp || p[t.transport+tcpFlagsAt]&(tcpPSH|tcpFIN) == 0)
}

// join appends p, whose checksum is right unless t verifies it, if it follows what t has.
func (t *train) join(p []byte, ethernet bool) bool {
	if !t.open || t.udp && t.packets == maxDatagrams {
		return false
	}
	f, ok := parseFlow(p, ethernet)
	if !ok || f != t.flow || len(p)-f.payload > t.segment || !t.follows(p) {
		return false
	}
	if t.verify && (!t.right(p) || t.packets == 1 && !t.right(t.head[vnetLen:])) {
		return false
	}
	if t.packets == 1 {
		t.joined = t.room[:copy(t.room[:], t.head)]
	}
	length := len(t.joined)
	if length+len(p)-t.payload > vnetLen+t.ip+maxLength {
		return false
	}
	t.joined = t.room[:length+copy(t.room[length:], p[t.payload:])]
	if !t.udp {
		t.joined[vnetLen+t.transport+tcpFlagsAt] |= p[t.transport+tcpFlagsAt] & (tcpPSH | tcpFIN)
	}
	t.packets++
	t.bytes += len(p)
	t.open = t.continues(p)
	return true
}

// follows reports whether the headers of p are those of a segment that comes after
// all in t, which has the same flow. This is what the kernel's own receive offload
// looks at.
func (t *train) follows(p []byte) bool {
	be := binary.BigEndian
	first := t.head[vnetLen:]
	a, b := first[t.ip:], p[t.ip:]
	if !bytes.Equal(first[:t.ip], p[:t.ip]) {
		return false
	}
	if t.v6 {
		if !bytes.Equal(a[:4], b[:4]) || !bytes.Equal(a[6:ipv6Len], b[6:ipv6Len]) {
			return false
		}
	} else {
		// An id means something only where a packet may be fragmented (RFC 6864).
		counted := be.Uint16(a[4:])+uint16(t.packets) == be.Uint16(b[4:])
		atomic := be.Uint16(a[6:]) == ipv4DF
		if !bytes.Equal(a[:2], b[:2]) || !counted && !atomic || !bytes.Equal(a[6:10], b[6:10]) || !bytes.Equal(a[12:ipv4Len], b[12:ipv4Len]) {
			return false
		}
	}
	a, b = first[t.transport:t.payload], p[t.transport:t.payload]
	if t.udp {
		return bytes.Equal(a[:udpLengthAt], b[:udpLengthAt])
	}
	const last = tcpPSH | tcpFIN
	return bytes.Equal(a[:tcpSeqAt], b[:tcpSeqAt]) &&
		be.Uint32(a[tcpSeqAt:])+uint32(t.packets*t.segment) == be.Uint32(b[tcpSeqAt:]) &&
		bytes.Equal(a[8:tcpFlagsAt], b[8:tcpFlagsAt]) &&
		a[tcpFlagsAt]&^last == b[tcpFlagsAt]&^last &&
		bytes.Equal(a[14:tcpSumAt], b[14:tcpSumAt]) &&
		bytes.Equal(a[18:], b[18:])
}

// right reports whether the checksums of p, which has t's flow, are right. They would be
// made anew when it is joined, and a damaged packet would pass for a whole one.
func (t *train) right(p []byte) bool {
	const all = 0xffff // what a sum gives that includes its own complement
	ip, transport := p[t.ip:t.transport], p[t.transport:]
	if !t.v6 && fold(sum(ip[:ipv4Len], 0)) != all {
		return false
	}
	if t.udp && transport[udpSumAt] == 0 && transport[udpSumAt+1] == 0 { // it has none
		return false
	}
	return fold(sum(transport, sumPseudo(t.addresses(ip), t.protocol(), len(transport)))) == all
}

// addresses returns those of an IP header of t's flow, source and destination.
func (t *train) addresses(ip []byte) []byte {
	if t.v6 {
		return ip[8:ipv6Len]
	}
	return ip[12:ipv4Len]
}

func (t *train) protocol() byte {
	if t.udp {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// finish returns the packets as a device takes them: behind a vnet, and with headers
// that speak of the whole.
func (t *train) finish() []byte {
	if t.packets == 1 {
		vnet{}.put(t.head)
		return t.head
	}
	be := binary.BigEndian
	frame := t.joined[vnetLen:]
	v := vnet{
		flags:   unix.VIRTIO_NET_HDR_F_NEEDS_CSUM,
		headers: uint16(t.payload),
		size:    uint16(t.segment),
		sumFrom: uint16(t.transport),
		sumAt:   tcpSumAt,
	}
	ip, transport := frame[t.ip:], frame[t.transport:]
	if t.udp {
		v.gso, v.sumAt = unix.VIRTIO_NET_HDR_GSO_UDP_L4, udpSumAt
		be.PutUint16(transport[udpLengthAt:], uint16(len(transport)))
	}
	if t.v6 {
		be.PutUint16(ip[4:], uint16(len(ip)-ipv6Len))
	} else {
		be.PutUint16(ip[2:], uint16(len(ip)))
		sumIPv4(ip[:ipv4Len])
	}
	switch {
	case t.udp:
	case t.v6:
		v.gso = unix.VIRTIO_NET_HDR_GSO_TCPV6
	default:
		v.gso = unix.VIRTIO_NET_HDR_GSO_TCPV4
	}
	be.PutUint16(transport[v.sumAt:], fold(sumPseudo(t.addresses(ip), t.protocol(), len(transport))))
	v.put(t.joined)
	return t.joined
}

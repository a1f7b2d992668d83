// SPDX-License-Identifier: Apache-2.0

package mux

import "encoding/binary"

const (
	ethernetLen = 14
	vlanLen     = 4
	maxVLANs    = 2
	ipv4Len     = 20
	ipv6Len     = 40
	tcpLen      = 20
	udpLen      = 8

	// maxUnit is the largest that a TUN or TAP device gives or takes, in bytes.
	maxUnit = vnetLen + ethernetLen + maxVLANs*vlanLen + maxLength

	// Offsets in the TCP and UDP headers.
	tcpSeqAt, tcpLengthAt, tcpFlagsAt, tcpSumAt = 4, 12, 13, 16
	udpLengthAt, udpSumAt                       = 4, 6

	tcpFIN, tcpPSH, tcpACK, tcpECE = 0x01, 0x08, 0x10, 0x40
)

// vnetLen is the size of a vnet, in bytes.
const vnetLen = 10

// vnet is the header that a TUN or TAP device has before each unit: struct
// virtio_net_hdr of linux/virtio_net.h, in the machine's byte order.
type vnet struct {
	flags, gso uint8  // VIRTIO_NET_HDR_F_…, VIRTIO_NET_HDR_GSO_…
	headers    uint16 // bytes; from the kernel: how it has laid out its buffer
	size       uint16 // of the payload of a segment, bytes
	sumFrom    uint16 // where begins what the checksum covers: the TCP or UDP header
	sumAt      uint16 // where it is, from there
}

func parseVnet(b []byte) vnet {
	_ = b[vnetLen-1]
	ne := binary.NativeEndian
	return vnet{flags: b[0], gso: b[1], headers: ne.Uint16(b[2:]), size: ne.Uint16(b[4:]), sumFrom: ne.Uint16(b[6:]), sumAt: ne.Uint16(b[8:])}
}

func (v vnet) put(b []byte) {
	_ = b[vnetLen-1]
	ne := binary.NativeEndian
	b[0], b[1] = v.flags, v.gso
	ne.PutUint16(b[2:], v.headers)
	ne.PutUint16(b[4:], v.size)
	ne.PutUint16(b[6:], v.sumFrom)
	ne.PutUint16(b[8:], v.sumAt)
}

// networkAt returns where the IP header of a frame would be, behind the Ethernet
// header and VLAN tags.
func networkAt(frame []byte) int {
	at := ethernetLen
	for range maxVLANs {
		if len(frame) < at {
			break
		}
		if tag := binary.BigEndian.Uint16(frame[at-2:]); tag != 0x8100 && tag != 0x88a8 { // 802.1Q, 802.1ad
			break
		}
		at += vlanLen
	}
	return at
}

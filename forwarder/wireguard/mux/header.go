// SPDX-License-Identifier: Apache-2.0

package mux

import "encoding/binary"

// Overhead is what a wire has less of MTU than the device, in bytes: the header.
const Overhead = 20

const (
	ipv4NoOptions = 0x45   // IPv4, header of 5 words
	version       = 1 << 4 // of the header
	versionMask   = 0xf0
	flagSummed    = 0x01 // the checksum is right

	maxLength = 1<<16 - 1 // of header and packet, bytes
)

// header is what stands before each packet, see the package comment.
type header struct {
	wire     uint32
	src, dst uint32
	summed   bool
}

// put writes the header for a packet of n bytes into b.
func (h header) put(b []byte, n int) {
	_ = b[Overhead-1]
	b[0], b[1] = ipv4NoOptions, version
	if h.summed {
		b[1] |= flagSummed
	}
	binary.BigEndian.PutUint16(b[2:], uint16(Overhead+n))
	binary.BigEndian.PutUint32(b[4:], h.wire)
	binary.BigEndian.PutUint32(b[8:], 0)
	binary.BigEndian.PutUint32(b[12:], h.src)
	binary.BigEndian.PutUint32(b[16:], h.dst)
}

// parseHeader reads the header at the start of b, which must be as long as it says
// and have something behind it.
func parseHeader(b []byte) (header, bool) {
	if len(b) <= Overhead || b[0] != ipv4NoOptions || b[1]&versionMask != version || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
		return header{}, false
	}
	return header{
		wire:   binary.BigEndian.Uint32(b[4:]),
		src:    binary.BigEndian.Uint32(b[12:]),
		dst:    binary.BigEndian.Uint32(b[16:]),
		summed: b[1]&flagSummed != 0,
	}, true
}

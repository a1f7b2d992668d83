// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"encoding/binary"
	"math/bits"
)

// sum adds b to acc, a ones' complement sum of 16-bit words (RFC 1071). Words are
// taken little-endian, eight bytes at a time: the sum of swapped words is the swapped
// sum, and a longer word is the sum of its parts. An odd byte counts as the first of
// a word, so only the last b of a sum may have an odd length.
func sum(b []byte, acc uint64) uint64 {
	le := binary.LittleEndian
	var carry uint64
	for len(b) >= 64 {
		acc, carry = bits.Add64(acc, le.Uint64(b[0:8]), carry)
		acc, carry = bits.Add64(acc, le.Uint64(b[8:16]), carry)
		acc, carry = bits.Add64(acc, le.Uint64(b[16:24]), carry)
		acc, carry = bits.Add64(acc, le.Uint64(b[24:32]), carry)
		acc, carry = bits.Add64(acc, le.Uint64(b[32:40]), carry)
		acc, carry = bits.Add64(acc, le.Uint64(b[40:48]), carry)
		acc, carry = bits.Add64(acc, le.Uint64(b[48:56]), carry)
		acc, carry = bits.Add64(acc, le.Uint64(b[56:64]), carry)
		b = b[64:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, le.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) > 0 {
		var rest [8]byte
		copy(rest[:], b)
		acc, carry = bits.Add64(acc, le.Uint64(rest[:]), carry)
	}
	acc, carry = bits.Add64(acc, 0, carry)
	return acc + carry
}

// word is a 16-bit number as a sum.
func word(v uint16) uint64 { return uint64(bits.ReverseBytes16(v)) }

// fold makes 16 bits of a sum, in network byte order.
func fold(acc uint64) uint16 {
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return bits.ReverseBytes16(uint16(acc))
}

// complement makes of a sum the checksum for a TCP or UDP header. 0 would mean that
// a UDP packet has none; all ones is the same number (RFC 768).
func complement(acc uint64) uint16 {
	if c := ^fold(acc); c != 0 {
		return c
	}
	return 0xffff
}

// sumIPv4 puts the checksum into an IPv4 header.
func sumIPv4(header []byte) {
	header[10], header[11] = 0, 0
	binary.BigEndian.PutUint16(header[10:], ^fold(sum(header, 0)))
}

// sumPseudo is the sum of the pseudo header that TCP and UDP checksums include (RFC
// 9293 §3.1, RFC 8200 §8.1): both addresses, protocol and length.
func sumPseudo(addresses []byte, protocol byte, length int) uint64 {
	return sum(addresses, word(uint16(protocol))+word(uint16(length)))
}

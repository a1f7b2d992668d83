// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Smallest MTUs a wire may have, in bytes.
const (
	MinMTUv4 = 576  // RFC 791: what every host must take
	MinMTUv6 = 1280 // RFC 8200 section 5; below it the kernel has no IPv6 on the link
	MaxMTU   = 65535
)

// overhead returns how many bytes a tunnel takes from the MTU of the link
// under it, by the family of its outer addresses (protocol §2.16). The VXLAN
// figures leave room for the inner Ethernet header and a VLAN tag.
func overhead(kind Kind, outer netip.Addr) int {
	v6 := outer.Is6() && !outer.Is4In6()
	switch {
	case kind == KindVXLAN && v6:
		return 74
	case kind == KindVXLAN:
		return 54
	case kind == KindWireGuard && v6:
		return 80
	case kind == KindWireGuard:
		return 60
	}
	return 0
}

// TunnelMTU returns the MTU inside a tunnel over a link with the given MTU, in
// bytes, or 0 if nothing is left.
func TunnelMTU(uplink int, kind Kind, outer netip.Addr) int {
	return max(0, uplink-overhead(kind, outer))
}

// UplinkMTU is the MTU of a link over which a tunnel has the given one: the reverse of
// TunnelMTU; 0 remains unknown.
func UplinkMTU(inside int, kind Kind, outer netip.Addr) int {
	if inside == 0 {
		return 0
	}
	return inside + overhead(kind, outer)
}

// MinMTU returns the smaller of two MTUs, of which 0 means unknown.
func MinMTU(a, b int) int {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

// CheckMTU refuses an MTU that no end of a wire can have; 0 means none is asked for.
func CheckMTU(mtu int, v6 bool) error {
	least := MinMTUv4
	if v6 {
		least = MinMTUv6
	}
	switch {
	case mtu == 0:
		return nil
	case mtu < least:
		return nserr.MTUTooSmall.Errorf("MTU %d is below %d", mtu, least)
	case mtu > MaxMTU:
		return nserr.BadContext.Errorf("MTU %d is above %d", mtu, MaxMTU)
	}
	return nil
}

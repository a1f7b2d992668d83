// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"crypto/sha256"
	"net"
	"strings"
)

// Tag says whose a link is. It stands in the link's ifalias as
// "nsm:OWNER:ID:SIDE", survives every restart and shows in `ip link`.
type Tag struct {
	Owner string // forwarder; has no colon
	ID    string // wire
	Side  Side
	Aside bool // another link takes the place of this one; the ifalias ends in "~"
}

const (
	tagPrefix = "nsm:"
	asideMark = "~"
)

// maxTag is the longest ifalias the kernel takes, in bytes (IFALIASZ less the final NUL).
const maxTag = 255

// String returns the ifalias.
func (t Tag) String() string {
	s := tagPrefix + t.Owner + ":" + t.ID + ":" + string(t.Side)
	if t.Aside {
		s += asideMark
	}
	return s
}

// SetAside returns the tag of the link that another one takes the place of.
func (t Tag) SetAside() Tag {
	t.Aside = true
	return t
}

// Device returns the tag that a WireGuard device has at its backend, which does not know
// whether the link is set aside.
func (t Tag) Device() Tag {
	t.Aside = false
	return t
}

// ParseTag reads an ifalias; false means that it is not one of ours.
func ParseTag(alias string) (Tag, bool) {
	rest, ok := strings.CutPrefix(alias, tagPrefix)
	if !ok {
		return Tag{}, false
	}
	owner, rest, ok := strings.Cut(rest, ":")
	if !ok {
		return Tag{}, false
	}
	last := strings.LastIndexByte(rest, ':')
	if last < 0 {
		return Tag{}, false
	}
	side, aside := strings.CutSuffix(rest[last+1:], asideMark)
	t := Tag{Owner: owner, ID: rest[:last], Side: Side(side), Aside: aside}
	if t.Owner == "" || t.ID == "" || (t.Side != Client && t.Side != Endpoint) {
		return Tag{}, false
	}
	return t, true
}

// Tag returns the tag of one end of the wire.
func (w Wire) Tag(side Side) Tag { return Tag{Owner: w.Owner, ID: w.ID, Side: side} }

// MAC derives the address of a wire's end: locally administered, unicast, the
// same after every restart, so that each end can know the other's unasked.
func MAC(wireID string, side Side) net.HardwareAddr {
	sum := sha256.Sum256([]byte("nsm mac\x00" + wireID + "\x00" + string(side)))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}

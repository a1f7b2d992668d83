// SPDX-License-Identifier: Apache-2.0

// Package flow reads by what a policy route selects packets, beside their
// addresses: protocol and ports, as text on the wire (protocol.md §2.1, §3.8).
// It is pure.
package flow

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Ports is a range of ports, inclusive; the zero value selects every port.
type Ports struct{ From, To uint16 }

// ParsePorts reads "80" or "8080-8090"; empty means every port. It fails with
// nserr.BadContext.
func ParsePorts(s string) (Ports, error) {
	if s == "" {
		return Ports{}, nil
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	from, err1 := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
	to, err2 := strconv.ParseUint(strings.TrimSpace(last), 10, 16)
	if err1 != nil || err2 != nil || from == 0 || from > to {
		return Ports{}, nserr.BadContext.Errorf("policy port %.40q is neither a port nor a range like 8080-8090", s)
	}
	return Ports{From: uint16(from), To: uint16(to)}, nil
}

// String prints a port or a range as ParsePorts reads it.
func (p Ports) String() string {
	switch {
	case p == Ports{}:
		return ""
	case p.From == p.To:
		return fmt.Sprint(p.From)
	}
	return fmt.Sprintf("%d-%d", p.From, p.To)
}

var protoNumbers = map[string]uint8{
	"": 0, "icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51,
	"ipv6-icmp": 58, "icmpv6": 58, "sctp": 132,
}

// ParseProto reads a protocol: a decimal number (IANA) or one of the usual names;
// empty means any and gives 0. It fails with nserr.BadContext.
func ParseProto(s string) (uint8, error) {
	if n, ok := protoNumbers[strings.ToLower(s)]; ok {
		return n, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, nserr.BadContext.Errorf("policy protocol %.40q is neither a number up to 255 nor a known name", s)
	}
	return uint8(n), nil
}

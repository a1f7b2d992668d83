// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"bytes"
	"slices"
)

// Equal reports whether the kernel needs nothing to get from w to o. Each refresh asks.
func (w Wire) Equal(o Wire) bool {
	return w.ID == o.ID && w.Owner == o.Owner && w.Kind == o.Kind && w.Payload == o.Payload &&
		slices.EqualFunc(w.Ends, o.Ends, End.equal) &&
		samePart(w.VXLAN, o.VXLAN) && samePart(w.WireGuard, o.WireGuard) && samePart(w.Tunnel, o.Tunnel)
}

func samePart[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

func (e End) equal(o End) bool {
	return e.NetNS == o.NetNS && e.Name == o.Name && e.Side == o.Side && e.MTU == o.MTU && bytes.Equal(e.MAC, o.MAC) &&
		slices.Equal(e.Addrs, o.Addrs) && slices.Equal(e.Routes, o.Routes) &&
		slices.EqualFunc(e.Policies, o.Policies, Policy.equal) && slices.EqualFunc(e.Neighbors, o.Neighbors, Neighbor.equal)
}

func (p Policy) equal(o Policy) bool {
	return p.From == o.From && p.Proto == o.Proto && p.SrcPort == o.SrcPort && p.DstPort == o.DstPort && slices.Equal(p.Routes, o.Routes)
}

func (n Neighbor) equal(o Neighbor) bool { return n.IP == o.IP && bytes.Equal(n.MAC, o.MAC) }

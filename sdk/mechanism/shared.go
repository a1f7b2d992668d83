// SPDX-License-Identifier: Apache-2.0

package mechanism

import (
	"strconv"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Shared is one side of the tunnel that all wires between two nodes can share: one
// WireGuard device at each node, which has the other for a peer, and the wires inside
// by numbers. Either type of mechanism between nodes can be had in this way: the client's
// side offers it beside what the type says, and the server's answers with its own half
// if it likes. Whoever does not know of it keeps the parameters and answers with what
// the type says.
type Shared struct {
	Key  Key    // of the node's tunnel, public
	Port uint16 // its UDP port, at src_ip or dst_ip
	Node uint32 // the node's id, the source of all that it sends in the tunnel
	Wire uint32 // the number by which this side receives the wire's packets
}

// Parameter keys, behind "src_tunnel_" and "dst_tunnel_".
const (
	srcShared = "src_tunnel_"
	dstShared = "dst_tunnel_"

	keySharedKey  = "public_key"
	keySharedPort = "port"
	keySharedNode = "id"
	keySharedWire = "wire"
)

// IsZero reports whether a side has said nothing.
func (s Shared) IsZero() bool { return s == Shared{} }

// Shared reads both sides' halves; what a side has not said is zero. It fails with
// nserr.BadMechanism for a half that is not complete.
func (m Mechanism) Shared() (src, dst Shared, err error) {
	if src, err = m.half(srcShared); err == nil {
		dst, err = m.half(dstShared)
	}
	return src, dst, err
}

func (m Mechanism) half(side string) (s Shared, err error) {
	keyText, portText := m.Params[side+keySharedKey], m.Params[side+keySharedPort]
	nodeText, wireText := m.Params[side+keySharedNode], m.Params[side+keySharedWire]
	if keyText+portText+nodeText+wireText == "" {
		return Shared{}, nil
	}
	if s.Key, err = parseKey(side+keySharedKey, keyText); err != nil {
		return Shared{}, err
	}
	port, portErr := strconv.ParseUint(portText, 10, 16)
	node, nodeErr := strconv.ParseUint(nodeText, 10, 32)
	wire, wireErr := strconv.ParseUint(wireText, 10, 32)
	s.Port, s.Node, s.Wire = uint16(port), uint32(node), uint32(wire)
	if portErr != nil || nodeErr != nil || wireErr != nil || s.Key.IsZero() || s.Port == 0 || s.Node == 0 || s.Wire == 0 {
		return Shared{}, nserr.BadMechanism.Errorf("%s: %s, %s, %s and %s of %s… are not all there and numbers above 0",
			m.Type, keySharedKey, keySharedPort, keySharedNode, keySharedWire, side)
	}
	return s, nil
}

// WithShared returns m with these two halves and no others. Once both are there, what
// describes a device of the wire's own is left out: there is none.
func (m Mechanism) WithShared(src, dst Shared) Mechanism {
	d := m.as(m.Class, m.Type)
	d.setHalf(srcShared, src)
	d.setHalf(dstShared, dst)
	if d.IsShared() {
		d.remove(keySrcPort, keyDstPort, keySrcKey, keyDstKey, keyVNI)
	}
	return d.Mechanism
}

func (d *draft) setHalf(side string, s Shared) {
	if s.IsZero() {
		d.remove(side+keySharedKey, side+keySharedPort, side+keySharedNode, side+keySharedWire)
		return
	}
	d.set(side+keySharedKey, s.Key.String())
	d.set(side+keySharedPort, strconv.Itoa(int(s.Port)))
	d.set(side+keySharedNode, strconv.FormatUint(uint64(s.Node), 10))
	d.set(side+keySharedWire, strconv.FormatUint(uint64(s.Wire), 10))
}

// IsShared reports whether the leg is one of those in the tunnel of two nodes: it was
// offered, and is answered.
func (m Mechanism) IsShared() bool {
	return m.Params[srcShared+keySharedWire] != "" && m.Params[dstShared+keySharedWire] != ""
}

// TypeShared is what a leg in the tunnel of two nodes is called for people, whatever
// its Type.
const TypeShared = "TUNNEL"

// Shown is the type as people are shown it.
func (m Mechanism) Shown() string {
	if m.IsShared() {
		return TypeShared
	}
	return m.Type
}

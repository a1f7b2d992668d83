// SPDX-License-Identifier: Apache-2.0

// Package mechanism knows how two neighbours build one leg of a wire: the
// mechanism types, their parameters as they stand on the wire, and the choice
// among what a peer prefers (protocol.md §2.12, §2.13).
//
// By convention src is the client's side (left) and dst the endpoint's side
// (right) of a leg, whoever of the two sends the message. All of it is pure.
package mechanism

import (
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"strings"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Mechanism classes: on one node, or between nodes.
const (
	Local  = "LOCAL"
	Remote = "REMOTE"
)

// Mechanism types that this project builds.
const (
	TypeKernel    = "KERNEL"
	TypeVXLAN     = "VXLAN"
	TypeWireGuard = "WIREGUARD"
)

// Payloads of a network service (§2.16).
const (
	PayloadIP       = "IP"
	PayloadEthernet = "ETHERNET"
)

// Parameter keys, literal on the wire.
const (
	keyName    = "name"
	keyNetNS   = "inodeURL"
	keySrcIP   = "src_ip"
	keyDstIP   = "dst_ip"
	keySrcPort = "src_port"
	keyDstPort = "dst_port"
	keyOrigSrc = "orig_src_ip"
	keyOrigDst = "orig_dst_ip"
	keyVNI     = "vni"
	keySrcKey  = "src_public_key"
	keyDstKey  = "dst_public_key"
	keyMTU     = "MTU"
)

// Mechanism is one leg's mechanism as it stands on the wire. Parameters that
// this project does not know are kept.
type Mechanism struct {
	Class  string
	Type   string
	Params map[string]string
}

// Choose returns those of prefs that supported accepts, in the order of the
// requester: the first that can be built is the answer. When the leg has a
// mechanism already (current.Type is set) only that type is one (§2.12). It fails
// with nserr.Unsupported if there is none.
func Choose(current Mechanism, prefs []Mechanism, supported func(Mechanism) bool) (choices []Mechanism, err error) {
	if current.Type != "" {
		prefs = append([]Mechanism{current}, sameType(prefs, current.Type)...)
	}
	var offered []string
	for _, m := range prefs {
		if supported(m) {
			choices = append(choices, m)
		}
		offered = append(offered, m.Class+"/"+m.Type)
	}
	switch {
	case len(choices) > 0:
		return choices, nil
	case len(prefs) == 0:
		return nil, nserr.Unsupported.Errorf("the request offers no mechanism")
	}
	return nil, nserr.Unsupported.Errorf("none of the offered mechanisms %s can be used here", strings.Join(offered, ", "))
}

func sameType(prefs []Mechanism, typ string) (out []Mechanism) {
	for _, m := range prefs {
		if m.Type == typ {
			out = append(out, m)
		}
	}
	return out
}

// Kernel are the parameters of a network interface in a namespace of this node.
type Kernel struct {
	NetNS string // URL: file:///… here, inode://dev/ino between processes
	Name  string // of the interface; empty = whoever owns the namespace chooses
}

// Kernel reads m's parameters. It fails with nserr.BadMechanism if m is of
// another type and nserr.BadName for a name that no interface can have.
func (m Mechanism) Kernel() (Kernel, error) {
	if m.Type != TypeKernel {
		return Kernel{}, nserr.BadMechanism.Errorf("mechanism is %s, not %s", m.Type, TypeKernel)
	}
	k := Kernel{NetNS: m.Params[keyNetNS], Name: m.Params[keyName]}
	if k.Name != "" {
		if err := CheckInterfaceName(k.Name); err != nil {
			return Kernel{}, err
		}
	}
	return k, nil
}

// With returns m with the parameters of k.
func (k Kernel) With(m Mechanism) Mechanism {
	d := m.as(Local, TypeKernel)
	d.set(keyNetNS, k.NetNS)
	d.set(keyName, k.Name)
	return d.Mechanism
}

// CheckInterfaceName fails with nserr.BadName for what the kernel does not take
// as an interface name (dev_valid_name in net/core/dev.c), takes as a pattern (%),
// or uses otherwise below /proc/sys.
func CheckInterfaceName(name string) error {
	switch {
	case name == "":
		return nserr.BadName.Errorf("interface name is empty")
	case len(name) > 15:
		return nserr.BadName.Errorf("interface name %q has %d characters, at most 15 are allowed", name, len(name))
	case name == "." || name == ".." || name == "all" || name == "default":
		return nserr.BadName.Errorf("interface name %q is reserved", name)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || c == '/' || c == ':' || c == '%' {
			return nserr.BadName.Errorf("interface name %q contains %q", name, c)
		}
	}
	return nil
}

// Tunnel are the parameters that VXLAN and WIREGUARD share. What a side has not
// said yet is zero: the client fills src in its preference, the server dst in
// its answer.
type Tunnel struct {
	Src, Dst netip.AddrPort
	MTU      int // inside the tunnel as seen by the sender; 0 = unknown
}

// Tunnel reads what m says whatever it is that leads to the other node, or fails with
// nserr.BadMechanism.
func (m Mechanism) Tunnel() (t Tunnel, err error) {
	if t.Src, err = m.addrPort(keySrcIP, keySrcPort); err != nil {
		return t, err
	}
	if t.Dst, err = m.addrPort(keyDstIP, keyDstPort); err != nil {
		return t, err
	}
	if text := m.Params[keyMTU]; text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return t, nserr.BadMechanism.Errorf("%s: %s=%q is not an MTU", m.Type, keyMTU, text)
		}
		t.MTU = int(n)
	}
	return t, nil
}

func (m Mechanism) addrPort(keyIP, keyPort string) (netip.AddrPort, error) {
	text := m.Params[keyIP]
	if text == "" {
		return netip.AddrPort{}, nil
	}
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" {
		return netip.AddrPort{}, nserr.BadMechanism.Errorf("%s: %s=%q is not an IP address", m.Type, keyIP, text)
	}
	if ip = ip.Unmap(); ip.IsUnspecified() || ip.IsMulticast() || ip == broadcast {
		return netip.AddrPort{}, nserr.BadMechanism.Errorf("%s: %s=%q is not the address of a node", m.Type, keyIP, text)
	}
	var port uint64
	if text := m.Params[keyPort]; text != "" {
		if port, err = strconv.ParseUint(text, 10, 16); err != nil {
			return netip.AddrPort{}, nserr.BadMechanism.Errorf("%s: %s=%q is not a port", m.Type, keyPort, text)
		}
	}
	return netip.AddrPortFrom(ip, uint16(port)), nil
}

// broadcast reaches whoever is on the link (RFC 919). Loopback addresses pass: nodes of one
// machine may have them.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// With returns m, of whatever type, with the parameters of t.
func (t Tunnel) With(m Mechanism) Mechanism {
	d := m.as(m.Class, m.Type)
	t.apply(d)
	return d.Mechanism
}

func (t Tunnel) apply(d *draft) {
	d.setAddrPort(keySrcIP, keySrcPort, t.Src)
	d.setAddrPort(keyDstIP, keyDstPort, t.Dst)
	if t.MTU > 0 {
		d.set(keyMTU, strconv.Itoa(t.MTU))
	}
}

// VXLAN are the parameters of a VXLAN leg. The server chooses the VNI.
type VXLAN struct {
	Tunnel
	VNI uint32 // 24 bits; 0 = not chosen yet

	// The nodes' own addresses where something between two domains has replaced
	// those of Tunnel (§4.7); invalid otherwise. They are only read.
	OrigSrc, OrigDst netip.Addr
}

// DefaultVXLANPort is IANA's port, which both nodes use (§2.13).
const DefaultVXLANPort = 4789

// VXLAN reads m's parameters or fails with nserr.BadMechanism.
func (m Mechanism) VXLAN() (VXLAN, error) {
	if m.Type != TypeVXLAN {
		return VXLAN{}, nserr.BadMechanism.Errorf("mechanism is %s, not %s", m.Type, TypeVXLAN)
	}
	t, err := m.Tunnel()
	if err != nil {
		return VXLAN{}, err
	}
	v := VXLAN{Tunnel: t}
	for key, orig := range map[string]*netip.Addr{keyOrigSrc: &v.OrigSrc, keyOrigDst: &v.OrigDst} {
		a, err := m.addrPort(key, "")
		if err != nil {
			return VXLAN{}, err
		}
		*orig = a.Addr()
	}
	if text := m.Params[keyVNI]; text != "" {
		n, err := strconv.ParseUint(text, 10, 24)
		if err != nil {
			return VXLAN{}, nserr.BadMechanism.Errorf("VXLAN: %s=%q is not a 24 bit number", keyVNI, text)
		}
		v.VNI = uint32(n)
	}
	return v, nil
}

// With returns m with the parameters of v.
func (v VXLAN) With(m Mechanism) Mechanism {
	d := m.as(Remote, TypeVXLAN)
	v.Tunnel.apply(d)
	if v.VNI != 0 {
		d.set(keyVNI, strconv.FormatUint(uint64(v.VNI), 10))
	}
	return d.Mechanism
}

// Parity is the lowest bit of the VNIs that the server may choose: each of two
// nodes that serve each other takes one half, so that their choices never collide
// (§2.13). As with the reference, which is the other node as likely as not, the
// server chooses even ones unless its address is the lower one.
func (v VXLAN) Parity() uint32 {
	src, dst := v.Src.Addr(), v.Dst.Addr()
	if v.OrigSrc.IsValid() {
		src = v.OrigSrc
	}
	if v.OrigDst.IsValid() {
		dst = v.OrigDst
	}
	if dst.Less(src) {
		return 1
	}
	return 0
}

// WireGuard are the parameters of a WIREGUARD leg. Keys are base64 as `wg`
// prints them; each side makes its own for each connection.
type WireGuard struct {
	Tunnel
	SrcKey, DstKey Key
}

// DefaultWireGuardPort is what peers assume that send no port (§2.13).
const DefaultWireGuardPort = 51820

// WireGuard reads m's parameters or fails with nserr.BadMechanism.
func (m Mechanism) WireGuard() (WireGuard, error) {
	if m.Type != TypeWireGuard {
		return WireGuard{}, nserr.BadMechanism.Errorf("mechanism is %s, not %s", m.Type, TypeWireGuard)
	}
	t, err := m.Tunnel()
	if err != nil {
		return WireGuard{}, err
	}
	w := WireGuard{Tunnel: t}
	if w.SrcKey, err = parseKey(keySrcKey, m.Params[keySrcKey]); err != nil {
		return WireGuard{}, err
	}
	if w.DstKey, err = parseKey(keyDstKey, m.Params[keyDstKey]); err != nil {
		return WireGuard{}, err
	}
	return w, nil
}

// With returns m with the parameters of w.
func (w WireGuard) With(m Mechanism) Mechanism {
	d := m.as(Remote, TypeWireGuard)
	w.Tunnel.apply(d)
	if !w.SrcKey.IsZero() {
		d.set(keySrcKey, w.SrcKey.String())
	}
	if !w.DstKey.IsZero() {
		d.set(keyDstKey, w.DstKey.String())
	}
	return d.Mechanism
}

// draft is a mechanism that is being changed. Its parameters are those of the one it comes
// from, which others may look at, until the first of them changes: most stay.
type draft struct {
	Mechanism
	own bool // the parameters are the draft's own
}

// as returns a draft of m with the given class and type.
func (m Mechanism) as(class, typ string) *draft {
	return &draft{Mechanism: Mechanism{Class: class, Type: typ, Params: m.Params}}
}

func (d *draft) change() {
	if d.own {
		return
	}
	params := make(map[string]string, len(d.Params)+6)
	maps.Copy(params, d.Params)
	d.Params, d.own = params, true
}

func (d *draft) set(key, value string) {
	if value != "" && d.Params[key] != value {
		d.change()
		d.Params[key] = value
	}
}

func (d *draft) remove(keys ...string) {
	for _, key := range keys {
		if _, ok := d.Params[key]; ok {
			d.change()
			delete(d.Params, key)
		}
	}
}

func (d *draft) setAddrPort(keyIP, keyPort string, a netip.AddrPort) {
	if !a.IsValid() {
		return
	}
	d.set(keyIP, a.Addr().String())
	d.set(keyPort, strconv.Itoa(int(a.Port())))
}

// String is for people: type and the parameters that matter, no keys.
func (m Mechanism) String() string {
	switch m.Shown() {
	case TypeShared:
		return fmt.Sprintf("%s %s:%s→%s:%s", TypeShared, m.Params[keySrcIP], m.Params[srcShared+keySharedPort], m.Params[keyDstIP], m.Params[dstShared+keySharedPort])
	case TypeKernel:
		return fmt.Sprintf("%s/%s", m.Type, m.Params[keyName])
	case TypeVXLAN:
		return fmt.Sprintf("%s vni %s %s→%s", m.Type, m.Params[keyVNI], m.Params[keySrcIP], m.Params[keyDstIP])
	case TypeWireGuard:
		return fmt.Sprintf("%s %s:%s→%s:%s", m.Type, m.Params[keySrcIP], m.Params[keySrcPort], m.Params[keyDstIP], m.Params[keyDstPort])
	}
	return m.Type
}

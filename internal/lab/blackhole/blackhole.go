// SPDX-License-Identifier: Apache-2.0

// Package blackhole drops packets on a link, silently and in both directions, as
// a network does that is broken somewhere in the middle: whoever sends is told
// nothing.
//
//	hole, err := blackhole.Dig(node.NetNS, lab.Underlay, blackhole.UDP)
//	…
//	err = hole.Fill()
//
// It is the lab's, and a package of its own so that nsm, which has the lab for
// its demo, does not carry nftables.
package blackhole

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/internal/lab"
)

// Kind says which packets.
type Kind int

// The kinds. Nothing else is between the nodes of a lab: UDP is what tunnels
// send, TCP is what daemons say to each other.
const (
	All Kind = iota
	UDP
	TCP
)

func (k Kind) String() string { return [...]string{"all packets", "UDP", "TCP"}[k] }

// Hole is where packets vanish.
type Hole struct {
	ns    *lab.NetNS
	table string
}

// Dig begins to drop packets of a kind on a link of the namespace. Holes of
// different kinds can be there at once.
//
// The chains are the device's own (family netdev): what is dropped in a chain of
// IP's output is reported to the sender as EPERM, and ARP does not pass there.
func Dig(ns *lab.NetNS, link string, k Kind) (*Hole, error) {
	h := &Hole{ns: ns, table: fmt.Sprintf("hole-%d", k)}
	err := ns.Do(func() error {
		c := &nftables.Conn{}
		table := c.AddTable(&nftables.Table{Name: h.table, Family: nftables.TableFamilyNetdev})
		for name, hook := range map[string]*nftables.ChainHook{"in": nftables.ChainHookIngress, "out": nftables.ChainHookEgress} {
			chain := c.AddChain(&nftables.Chain{
				Name: name, Table: table, Type: nftables.ChainTypeFilter,
				Hooknum: hook, Priority: nftables.ChainPriorityFilter, Device: link,
			})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(k.match(), &expr.Verdict{Kind: expr.VerdictDrop})})
		}
		return c.Flush()
	})
	if err != nil {
		return nil, fmt.Errorf("drop %s on %s of %s: %w", k, link, ns.Name, err)
	}
	return h, nil
}

// match is what the packets have in common: for UDP `meta l4proto udp`.
func (k Kind) match() []expr.Any {
	var proto byte
	switch k {
	case UDP:
		proto = unix.IPPROTO_UDP
	case TCP:
		proto = unix.IPPROTO_TCP
	default:
		return nil
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}
}

// Fill lets packets pass again.
func (h *Hole) Fill() error {
	return h.ns.Do(func() error {
		c := &nftables.Conn{}
		c.DelTable(&nftables.Table{Name: h.table, Family: nftables.TableFamilyNetdev})
		return c.Flush()
	})
}

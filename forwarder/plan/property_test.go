// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/openvwire/nsm/forwarder/kernel/memkernel"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/flow"
)

// From any state that some wire, damaged or not, may have left behind, the
// difference reaches the desired state, and is empty there.
func TestDiffReachesDesiredState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := memkernel.New("fwd")
		disturb(t, k)
		want := drawWire(t, "want")
		if _, err := k.Apply(t.Context(), want); err != nil {
			t.Fatalf("apply %+v: %v", want, err)
		}
		seen := observe(t, k, want)
		if steps := plan.Diff(want, seen); len(steps) != 0 {
			t.Fatalf("difference of the reached state:\n%s", plan.Script(steps, func(key string) string { return key }))
		}
		checkReached(t, want, seen)
	})
}

// A failure at any step leaves what was there before, unless links had to be
// deleted first: then nothing is left.
func TestFailureIsUndone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := memkernel.New("fwd")
		disturb(t, k)
		want := drawWire(t, "want")
		before := observe(t, k, want)
		steps := plan.Diff(want, before)
		if len(steps) == 0 {
			t.Skip("nothing to do, nothing to fail")
		}
		at := rapid.IntRange(0, len(steps)-1).Draw(t, "failing step")
		n := 0
		k.Fail = func(plan.Step) error {
			if n++; n == at+1 {
				return errors.New("injected")
			}
			return nil
		}
		if _, err := k.Apply(t.Context(), want); err == nil {
			t.Fatal("no error")
		}
		after := observe(t, k, want)
		if deleted(steps[:at]) {
			for i, e := range after.Ends {
				if e.Found || len(e.Tables) > 0 {
					t.Fatalf("left behind at end %d: %+v", i, e)
				}
			}
			return
		}
		if t := before.Ends[0].Tunnel; t == nil || t.Peer == (plan.TunnelPeer{}) {
			before.Ends[0].Tunnel, after.Ends[0].Tunnel = nil, nil // nor that a wire leads somewhere
		}
		if before.Ends[0].WireGuard == nil {
			after.Ends[0].WireGuard = nil // a first configuration is not taken back
		}
		if b, a := comparable(before), comparable(after); !reflect.DeepEqual(b, a) {
			t.Fatalf("state before\n%+v\nand after a failure of %s\n%+v", b, steps[at], a)
		}
	})
}

// Removal leaves no link and no rule, whatever the state.
func TestRemovalLeavesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := memkernel.New("fwd")
		disturb(t, k)
		w := drawWire(t, "wire")
		if _, err := k.Apply(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		for range 2 { // idempotent
			if err := k.Remove(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			if k.Links() != 0 || k.Rules() != 0 {
				t.Fatalf("%d links and %d rules left", k.Links(), k.Rules())
			}
		}
	})
}

// Policies that change places: the rules follow, also when a forwarder was killed
// at any step of an earlier change.
func TestPoliciesChangePlaces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := memkernel.New("fwd")
		w := plan.Wire{ID: "u2", Owner: "fwd", Kind: plan.KindVXLAN, Payload: plan.Ethernet,
			VXLAN: &plan.VXLAN{VNI: 1, Local: netip.MustParseAddr("172.16.0.1"), Remote: netip.MustParseAddr("172.16.0.2"), Port: 4789},
			Ends:  []plan.End{{NetNS: "1:1", Name: "nsm-1", Side: plan.Client, Addrs: addrs[:3]}}}
		for i := range 3 {
			w.Ends[0].Policies = rapid.Permutation(policies).Draw(t, "policies")
			steps := plan.Diff(w, observe(t, k, w))
			if i < 2 {
				steps = steps[:rapid.IntRange(0, len(steps)).Draw(t, "killed after step")]
			}
			if err := k.Execute(steps); err != nil {
				t.Fatal(err)
			}
		}
		checkReached(t, w, observe(t, k, w))
	})
}

// disturb leaves the state of an earlier version of the wire, with some of its
// steps missing as if the forwarder had been killed or somebody had interfered.
func disturb(t *rapid.T, k *memkernel.Kernel) {
	k.SetIPv6Off("1:1", rapid.Bool().Draw(t, "IPv6 off"))
	if rapid.Bool().Draw(t, "from scratch") {
		return
	}
	old := drawWire(t, "old")
	steps := plan.Diff(old, observe(t, k, old))
	// WireGuard devices have no MAC address to be known by before they are tagged.
	upTo := rapid.IntRange(2, len(steps)).Draw(t, "killed after step")
	k.SetWireGuardKind(rapid.SampledFrom(wireGuardKinds).Draw(t, "WireGuard then"))
	if err := k.Execute(steps[:upTo]); err != nil {
		t.Fatalf("old state: %v", err)
	}
	defer k.SetWireGuardKind(rapid.SampledFrom(wireGuardKinds).Draw(t, "WireGuard now"))
	for i := range rapid.IntRange(0, 3).Draw(t, "interferences") {
		s := rapid.SampledFrom(steps[:upTo]).Draw(t, fmt.Sprint("interfered with ", i))
		switch s.(type) {
		case plan.AddVeth, plan.AddVXLAN, plan.AddWireGuard, plan.AddTunnel:
			continue // the two ends of the old wire stay findable
		}
		if inverse := plan.Inverse(s); inverse != nil {
			_ = k.Execute([]plan.Step{inverse}) // may be gone already
		}
	}
}

func observe(t *rapid.T, k *memkernel.Kernel, w plan.Wire) plan.Observed {
	seen, err := k.Observe(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

// comparable strips what an undo leaves repaired, and order.
func comparable(o plan.Observed) plan.Observed {
	for i := range o.Ends {
		e := &o.Ends[i]
		if !e.Found {
			*e = plan.ObservedEnd{Tables: e.Tables}
		}
		e.Up, e.IPv6Off, e.PingClosed, e.Tagged, e.UsedTables = false, false, false, false, nil
		e.Addrs, e.Routes, e.Neighbors = sorted(e.Addrs), sorted(e.Routes), sorted(e.Neighbors)
		for j := range e.Tables {
			e.Tables[j].Routes = sorted(e.Tables[j].Routes)
		}
		e.Tables = sorted(e.Tables)
	}
	return o
}

// sorted sorts in place by all that is in the values; it returns nil for an empty
// list.
func sorted[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b T) int { return strings.Compare(fmt.Sprintf("%#v", a), fmt.Sprintf("%#v", b)) })
	return list
}

func deleted(steps []plan.Step) bool {
	return slices.ContainsFunc(steps, func(s plan.Step) bool { _, is := s.(plan.DelLink); return is })
}

// checkReached compares the state with the wire, by hand and not by Diff.
func checkReached(t *rapid.T, w plan.Wire, seen plan.Observed) {
	for i, e := range w.Ends {
		o := seen.Ends[i]
		if !o.Found || !o.Tagged || !o.Up || o.Name != e.Name || (e.MTU != 0 && o.MTU != e.MTU) {
			t.Fatalf("end %d: %+v", i, o)
		}
		for _, a := range e.Addrs {
			if !slices.Contains(o.Addrs, a) && !slices.ContainsFunc(e.Addrs, func(b netip.Prefix) bool { return b != a && b.Addr() == a.Addr() }) {
				t.Fatalf("end %d lacks address %v", i, a)
			}
		}
		for _, a := range o.Addrs {
			if !slices.Contains(e.Addrs, a) {
				t.Fatalf("end %d has foreign address %v", i, a)
			}
		}
		for _, r := range e.Routes {
			if !slices.ContainsFunc(o.Routes, func(s plan.Route) bool { return s.Dst == r.Dst.Masked() && s.Via == r.Via }) {
				t.Fatalf("end %d lacks route %v", i, r)
			}
		}
		if len(o.Routes) > len(e.Routes) {
			t.Fatalf("end %d has routes %v, wants %v", i, o.Routes, e.Routes)
		}
		for _, table := range o.Tables {
			if !table.HasRule || len(table.Routes) == 0 {
				t.Fatalf("end %d has a rule without routes or routes without rule: %+v", i, table)
			}
		}
		checkOrder(t, e.Policies, o.Tables)
		if w.Kind == plan.KindWireGuard || w.Kind == plan.KindTunnel && w.Payload == plan.IP {
			for _, r := range o.Routes {
				hop := r.Via
				if r.Dst.Addr().Is4() {
					hop = netip.IPv4Unspecified()
				} else if !r.Via.IsValid() {
					hop = r.Dst.Addr()
				}
				if !slices.ContainsFunc(o.Neighbors, func(n plan.Neighbor) bool { return n.IP == hop && n.MAC == nil }) {
					t.Fatalf("end %d has a route to %v and not the neighbour %v", i, r.Dst, hop)
				}
			}
		}
		if w.Kind == plan.KindVeth && w.Payload == plan.IP {
			for _, a := range w.Ends[1-i].Addrs {
				if known := slices.ContainsFunc(o.Neighbors, func(n plan.Neighbor) bool { return n.IP == a.Addr() }); !known && (a.Addr().Is4() || e.NeedsIPv6()) {
					t.Fatalf("end %d lacks its neighbour %v", i, a)
				}
			}
		}
	}
}

// checkOrder checks that the kernel tries the rules in the order of the policies:
// of two that select the same packet the first decides.
func checkOrder(t *rapid.T, policies []plan.Policy, tables []plan.PolicyTable) {
	tables = slices.Clone(tables)
	slices.SortFunc(tables, func(a, b plan.PolicyTable) int { return a.Rule.Priority - b.Rule.Priority })
	last := map[bool]int{false: -1, true: -1} // by family: the policy before
	for _, table := range tables {
		r := table.Rule
		i := slices.IndexFunc(policies, func(p plan.Policy) bool {
			proto, _ := flow.ParseProto(p.Proto)
			from := p.From.Masked()
			if from.Bits() == 0 && from.Addr().Is6() == r.IPv6 {
				from = netip.Prefix{}
			}
			return r.Proto == proto && r.From == from && r.SrcPort == p.SrcPort && r.DstPort == p.DstPort
		})
		if i <= last[r.IPv6] {
			t.Fatalf("the rule %v of policy %d comes behind that of policy %d: %+v", r, i, last[r.IPv6], tables)
		}
		last[r.IPv6] = i
	}
}

func drawWire(t *rapid.T, label string) plan.Wire {
	w := plan.Wire{ID: "u2", Owner: "fwd", Payload: plan.IP}
	w.Kind = rapid.SampledFrom([]plan.Kind{plan.KindVeth, plan.KindVXLAN, plan.KindWireGuard, plan.KindTunnel}).Draw(t, label+" kind")
	switch w.Kind {
	case plan.KindVeth:
		w.Payload = rapid.SampledFrom([]string{plan.IP, plan.Ethernet}).Draw(t, label+" payload")
		// The same namespace for both is odd, and must work.
		second := rapid.SampledFrom([]string{"1:1", "1:2"}).Draw(t, label+" namespace")
		w.Ends = []plan.End{drawEnd(t, label, "1:1", plan.Client), drawEnd(t, label, second, plan.Endpoint)}
	case plan.KindVXLAN:
		w.Payload = plan.Ethernet
		vni := rapid.Uint32Range(1, 2).Draw(t, label+" vni")
		w.VXLAN = &plan.VXLAN{VNI: vni, Local: netip.MustParseAddr("172.16.0.1"), Remote: netip.MustParseAddr("172.16.0.2"), Port: 4789}
		w.Ends = []plan.End{drawEnd(t, label, "1:1", plan.Client)}
	case plan.KindWireGuard:
		key := rapid.SampledFrom([]byte{1, 2}).Draw(t, label+" key")
		w.WireGuard = &plan.WireGuard{PrivateKey: [32]byte{key}, PeerKey: [32]byte{9}, Port: rapid.SampledFrom([]uint16{0, 51821}).Draw(t, label+" port")}
		w.Ends = []plan.End{drawEnd(t, label, "1:1", plan.Client)}
	}
	if w.Kind == plan.KindTunnel {
		w.Payload = rapid.SampledFrom([]string{plan.IP, plan.Ethernet}).Draw(t, label+" payload")
		tunnel := tunnelWire().Tunnel
		tunnel.Wire = rapid.Uint32Range(1, 2).Draw(t, label+" wire")
		tunnel.Peer.ID = rapid.Uint32Range(1, 2).Draw(t, label+" peer")
		w.Tunnel = tunnel
		w.Ends = []plan.End{drawEnd(t, label, "1:1", plan.Client)}
	}
	if err := w.Validate(); err != nil {
		t.Fatalf("drew an invalid wire: %v", err)
	}
	return w
}

func drawEnd(t *rapid.T, label, ns string, side plan.Side) plan.End {
	label += " " + string(side)
	var some []plan.Policy
	if side == plan.Client { // policies belong to the client's side (protocol §3.8)
		some = rapid.SliceOfN(rapid.SampledFrom(policies), 0, 3).Draw(t, label+" policies")
	}
	return plan.End{
		NetNS:     ns,
		Side:      side,
		Name:      rapid.SampledFrom([]string{"nsm-1" + string(side), "nsm-2" + string(side)}).Draw(t, label+" name"),
		MTU:       rapid.SampledFrom([]int{0, 1400, 1500, 9000}).Draw(t, label+" mtu"),
		Addrs:     rapid.SliceOfN(rapid.SampledFrom(addrs), 0, 4).Draw(t, label+" addresses"),
		Routes:    rapid.SliceOfN(rapid.SampledFrom(routes), 0, 4).Draw(t, label+" routes"),
		Policies:  some,
		Neighbors: rapid.SliceOfN(rapid.SampledFrom(neighbors), 0, 2).Draw(t, label+" neighbours"),
	}
}

var (
	wireGuardKinds = []string{"wireguard", "tun"}

	addrs = []netip.Prefix{
		netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("10.0.0.2/24"),
		netip.MustParsePrefix("fd00::1/128"), netip.MustParsePrefix("fd00::2/64"), netip.MustParsePrefix("fd00::2/128"),
	}
	routes = []plan.Route{
		{Dst: netip.MustParsePrefix("10.0.0.9/32")},
		{Dst: netip.MustParsePrefix("10.1.2.3/16"), Via: netip.MustParseAddr("10.0.0.9"), OnLink: true},
		{Dst: netip.MustParsePrefix("fd00::9/128"), OnLink: true},
		{Dst: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd00::9")},
	}
	policies = []plan.Policy{
		{Proto: "tcp", DstPort: plan.PortRange{From: 80, To: 80}},
		{From: netip.MustParsePrefix("10.0.0.0/24"), Routes: routes[:2]},
		{From: netip.MustParsePrefix("10.0.0.0/24"), Routes: routes[:1]},
		{From: netip.MustParsePrefix("fd00::1/128"), Proto: "58", Routes: routes[2:]},
		{Routes: routes[1:3]},
		{From: netip.MustParsePrefix("0.0.0.0/0"), Proto: "udp"},
		{From: netip.MustParsePrefix("::/0"), Proto: "udp"},
	}
	neighbors = []plan.Neighbor{
		{IP: netip.MustParseAddr("10.0.0.9"), MAC: plan.MAC("x", plan.Client)},
		{IP: netip.MustParseAddr("10.0.0.9"), MAC: plan.MAC("y", plan.Client)},
		{IP: netip.MustParseAddr("fd00::9"), MAC: plan.MAC("x", plan.Client)},
	}
)

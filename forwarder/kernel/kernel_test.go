// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/internal/nstest"
)

func TestVeth(t *testing.T) {
	for _, payload := range []string{plan.IP, plan.Ethernet} {
		for name, families := range map[string][]int{"v4": {4}, "v6": {6}, "dual": {4, 6}} {
			t.Run(payload+" "+name, func(t *testing.T) {
				n := newNode(t, "fwd")
				client, endpoint := n.workload(), n.workload()
				before := []nstest.Census{n.census(client), n.census(endpoint)}
				descriptors := len(nstest.Descriptors())

				w := vethWire("u1", client, endpoint, payload, families...)
				mustApply(t, n, w)
				for _, family := range families {
					if family == 4 {
						mustEcho(t, n, client, "10.0.0.1", n, endpoint, "10.0.0.2")
						mustEcho(t, n, endpoint, "10.0.0.2", n, client, "10.0.0.1")
					} else {
						mustEcho(t, n, client, "fd00::1", n, endpoint, "fd00::2")
						mustEcho(t, n, endpoint, "fd00::2", n, client, "fd00::1")
					}
				}
				mustBeDone(t, n, w)

				for range 2 { // idempotent
					if err := n.Remove(t.Context(), w); err != nil {
						t.Fatal(err)
					}
				}
				if after := []nstest.Census{n.census(client), n.census(endpoint)}; !slices.Equal(before, after) {
					t.Errorf("before %+v, after %+v", before, after)
				}
				if left := len(nstest.Descriptors()) - descriptors; left != 0 {
					t.Errorf("%d descriptors left", left)
				}
			})
		}
	}
}

// Both workloads may be in one namespace.
func TestVethInOneNamespace(t *testing.T) {
	n := newNode(t, "fwd")
	ns := n.workload()
	before := n.census(ns)
	w := vethWire("u1", ns, ns, plan.IP, 4, 6)
	mustApply(t, n, w)
	mustBeDone(t, n, w)
	if err := n.Remove(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if after := n.census(ns); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

func TestVXLAN(t *testing.T) {
	for name, underlay := range map[string]string{"over IPv4": "172.16.0.%d", "over IPv6": "fd16::%d"} {
		t.Run(name, func(t *testing.T) {
			a, b := newNode(t, "fwd"), newNode(t, "fwd")
			connect(t, a, b)
			client, endpoint := a.workload(), b.workload()
			self := a.table.Self().Key()
			before := []nstest.Census{a.census(client), b.census(endpoint), a.census(self)}

			wa := vxlanWire("u1", client, 1, 0xabcdef, underlay)
			wb := vxlanWire("u2", endpoint, 2, 0xabcdef, underlay)
			mustApply(t, b, wb)
			mustApply(t, a, wa)
			mustEcho(t, a, client, "10.0.0.1", b, endpoint, "10.0.0.2")
			mustEcho(t, b, endpoint, "fd00::2", a, client, "fd00::1")
			mustBeDone(t, a, wa)
			mustBeDone(t, b, wb)

			wa.VXLAN.VNI, wb.VXLAN.VNI = 7, 7 // a new peer, say
			mustApply(t, a, wa)
			mustApply(t, b, wb)
			mustEcho(t, a, client, "10.0.0.1", b, endpoint, "10.0.0.2")
			mustBeDone(t, a, wa)

			if err := errors.Join(a.Remove(t.Context(), wa), b.Remove(t.Context(), wb)); err != nil {
				t.Fatal(err)
			}
			after := []nstest.Census{a.census(client), b.census(endpoint), a.census(self)}
			for i := range after { // neighbours of the underlay are learned
				before[i].Neighbors, after[i].Neighbors = 0, 0
			}
			if !slices.Equal(before, after) {
				t.Errorf("before %+v, after %+v", before, after)
			}
		})
	}
}

// A policy sends what it selects over the wire, and nothing else.
func TestPolicies(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	before := n.census(client)
	w := vethWire("u1", client, endpoint, plan.IP, 4, 6)
	far4, far6 := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")
	w.Ends[1].Addrs = append(w.Ends[1].Addrs, prefixes("198.51.100.1/32", "2001:db8::1/128")...)
	w.Ends[0].Policies = []plan.Policy{
		{Proto: "udp", DstPort: plan.PortRange{From: 7000, To: 7009}}, // from everywhere, both families
		{From: prefixes("10.0.0.1/32")[0], Proto: "17", DstPort: plan.PortRange{From: 8000, To: 8000}, Routes: []plan.Route{
			{Dst: prefixes("198.51.100.0/24")[0], Via: netip.MustParseAddr("10.0.0.2"), OnLink: true},
		}},
	}
	mustApply(t, n, w)
	mustBeDone(t, n, w)

	from4, from6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	unbound := netip.Addr{} // as nearly every socket is when its route is looked up
	for _, c := range []struct {
		from, to netip.Addr
		port     uint16
		reached  bool
	}{
		{from4, far4, 7000, true}, {from4, far4, 7009, true}, {from4, far4, 7010, false},
		{from4, far4, 8000, true}, {from6, far6, 7001, true}, {from6, far6, 8000, false},
		{unbound, far4, 7000, true}, {unbound, far6, 7001, true}, {unbound, far4, 7010, false},
		{unbound, far4, 8000, false}, // that policy is for packets from one address
	} {
		err := echo(n, client, c.from, n, endpoint, c.to, c.port)
		if (err == nil) != c.reached {
			t.Errorf("from %v to %v port %d: %v", c.from, c.to, c.port, err)
		}
	}

	// One policy goes, one changes its routes, one comes.
	w.Ends[0].Policies = []plan.Policy{
		{From: prefixes("10.0.0.1/32")[0], Proto: "udp", DstPort: plan.PortRange{From: 8000, To: 8000}},
		{From: prefixes("fd00::1/128")[0], Routes: []plan.Route{{Dst: prefixes("2001:db8::/32")[0], Via: netip.MustParseAddr("fd00::2"), OnLink: true}}},
	}
	mustApply(t, n, w)
	mustBeDone(t, n, w)
	if err := echo(n, client, from4, n, endpoint, far4, 7000); err == nil {
		t.Error("the policy that went is still in force")
	}
	if err := echo(n, client, from6, n, endpoint, far6, 9); err != nil {
		t.Errorf("new policy: %v", err)
	}
	if err := n.Remove(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if after := n.census(client); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// A prefix that contains everything is a source that selects nothing: the kernel
// keeps no such source.
func TestPolicyFromAnywhere(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	before := n.census(client)
	w := vethWire("u1", client, endpoint, plan.IP, 4, 6)
	w.Ends[0].Policies = []plan.Policy{
		{From: prefixes("0.0.0.0/0")[0], Proto: "udp"},
		{From: prefixes("::/0")[0], Proto: "tcp"},
	}
	mustApply(t, n, w)
	mustBeDone(t, n, w)
	if err := n.Remove(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if after := n.census(client); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// When somebody else deletes the link, its rules stay. The next call that sees
// them cleans up (lessons 9.1 #17).
func TestRulesOfVanishedLink(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	before := n.census(client)
	w := vethWire("u1", client, endpoint, plan.IP, 4)
	w.Ends[0].Policies = []plan.Policy{{Proto: "tcp"}}
	mustApply(t, n, w)
	intact := n.census(client)
	deleteLink := func() {
		n.inside(client, func(h *netlink.Handle) error {
			l, err := h.LinkByName("nsm-c")
			if err != nil {
				return err
			}
			return h.LinkDel(l)
		})
	}

	deleteLink()
	mustApply(t, n, w)
	if repaired := n.census(client); repaired != intact {
		t.Errorf("intact %+v, repaired %+v", intact, repaired)
	}
	deleteLink()
	if err := newKernel(t, "fwd", n.table).Remove(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if after := n.census(client); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// Addresses, routes, MTU and neighbours follow the desired state, also where
// the kernel takes more away than it was asked to.
func TestChanges(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	w := vethWire("u1", client, endpoint, plan.IP, 4, 6)
	mustApply(t, n, w)
	gateway := netip.MustParseAddr("10.1.0.9")
	for _, c := range []struct {
		name   string
		addrs  []netip.Prefix
		routes []plan.Route
		mtu    int
	}{
		{"a subnet", prefixes("10.1.0.1/24", "fd01::1/64"), []plan.Route{{Dst: prefixes("10.2.0.0/16")[0], Via: gateway}}, 1500},
		{"another address of it, deleting the primary one", prefixes("10.1.0.2/24", "fd01::2/64"), []plan.Route{{Dst: prefixes("10.2.0.0/16")[0], Via: gateway}}, 1500},
		{"several, one with another length", prefixes("10.1.0.2/24", "10.1.0.3/24", "10.1.0.4/32", "fd01::2/128"), nil, 9000},
		{"no IPv4 address, but an IPv4 route", prefixes("fd01::2/128"), []plan.Route{{Dst: prefixes("10.2.0.0/16")[0]}}, 1280},
		{"nothing", nil, nil, 0},
		{"a route that the address brings itself", prefixes("10.1.0.1/24"), []plan.Route{{Dst: prefixes("10.1.0.0/24")[0]}}, 1400},
		{"a link-local address and a default route of each family", prefixes("169.254.1.1/32", "fe80::1234/64"),
			[]plan.Route{{Dst: prefixes("0.0.0.0/0")[0], Via: gateway, OnLink: true}, {Dst: prefixes("::/0")[0], Via: netip.MustParseAddr("fe80::1")}}, 1400},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.Ends[0].Addrs, w.Ends[0].Routes, w.Ends[0].MTU = c.addrs, c.routes, c.mtu
			mustApply(t, n, w)
			mustBeDone(t, n, w)
			seen, err := n.Observe(t.Context(), w)
			if err != nil {
				t.Fatal(err)
			}
			e := seen.Ends[0]
			if len(e.Addrs) != len(c.addrs) || len(e.Routes) != len(c.routes) || (c.mtu != 0 && e.MTU != c.mtu) {
				t.Errorf("observed %v, %v, MTU %d", e.Addrs, e.Routes, e.MTU)
			}
		})
	}
}

// What a stranger or a killed forwarder did to a link is repaired.
func TestRepair(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	w := vethWire("u1", client, endpoint, plan.IP, 4, 6)
	mustApply(t, n, w)
	for name, damage := range map[string]func(h *netlink.Handle, l netlink.Link) error{
		"no tag yet": func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetAlias(l, "") },
		"down":       func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetDown(l) },
		"MTU":        func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetMTU(l, 1300) },
		"deleted":    func(h *netlink.Handle, l netlink.Link) error { return h.LinkDel(l) },
		"MAC": func(h *netlink.Handle, l netlink.Link) error {
			return h.LinkSetHardwareAddr(l, plan.MAC("other", plan.Client))
		},
		"renamed": func(h *netlink.Handle, l netlink.Link) error {
			return errors.Join(h.LinkSetDown(l), h.LinkSetName(l, "other"))
		},
		"address": func(h *netlink.Handle, l netlink.Link) error {
			a, err := netlink.ParseAddr("10.0.0.1/32")
			return errors.Join(err, h.AddrDel(l, a))
		},
		"another address": func(h *netlink.Handle, l netlink.Link) error {
			a, err := netlink.ParseAddr("fd00:9::1/64")
			return errors.Join(err, h.AddrAdd(l, a))
		},
		"route": func(h *netlink.Handle, l netlink.Link) error {
			_, to, err := net.ParseCIDR("fd00::2/128")
			return errors.Join(err, h.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: to}))
		},
		"another route": func(h *netlink.Handle, l netlink.Link) error {
			_, to, err := net.ParseCIDR("10.9.0.0/16")
			return errors.Join(err, h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK, Table: 77, Protocol: plan.RouteProtocol}))
		},
		"neighbour": func(h *netlink.Handle, l netlink.Link) error {
			return h.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: net.ParseIP("fd00::2")})
		},
		"no IPv6": func(*netlink.Handle, netlink.Link) error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/nsm-c/disable_ipv6", []byte("1"), 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			n.inside(client, func(h *netlink.Handle) error {
				l, err := h.LinkByName("nsm-c")
				if err != nil {
					return err
				}
				return damage(h, l)
			})
			if steps := mustApply(t, n, w); len(steps) == 0 {
				t.Error("the damage was not seen")
			}
			mustBeDone(t, n, w)
			mustEcho(t, n, client, "10.0.0.1", n, endpoint, "10.0.0.2")
			mustEcho(t, n, client, "fd00::1", n, endpoint, "fd00::2")
		})
	}
}

// Where IPv6 is switched off for new links, a wire that needs it switches it on.
func TestIPv6SwitchedOn(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	for _, key := range []string{client, endpoint} {
		err := n.table.Do(key, func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	w := vethWire("u1", client, endpoint, plan.IP, 6)
	mustApply(t, n, w)
	mustEcho(t, n, client, "fd00::1", n, endpoint, "fd00::2")
	mustBeDone(t, n, w)
}

// Where it stays switched off, since the end has nothing of IPv6, what the other end has of
// it does no harm.
func TestIPv6StaysOff(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	err := n.table.Do(client, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	w := vethWire("u1", client, endpoint, plan.IP, 4)
	addAddrs(&w.Ends[1], 6, 2, 1)
	mustApply(t, n, w)
	mustEcho(t, n, client, "10.0.0.1", n, endpoint, "10.0.0.2")
	mustBeDone(t, n, w)
}

// The liveness check of the reference pings without privileges (protocol §2.15).
func TestPingOpened(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	mustApply(t, n, vethWire("u1", client, endpoint, plan.IP, 4))
	err := n.table.Do(client, func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv4/ping_group_range")
		if got := strings.TrimSpace(string(b)); got == "1\t0" {
			t.Errorf("ping_group_range is %q", got)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Calls for different wires may run at the same time in the same namespaces,
// and find table numbers of their own.
func TestParallel(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	before := []nstest.Census{n.census(client), n.census(endpoint)}
	var wires []plan.Wire
	for i := range 12 {
		w := vethWire(fmt.Sprint("u", i), client, endpoint, plan.IP)
		for side := range w.Ends {
			e := &w.Ends[side]
			e.Name = fmt.Sprintf("nsm-%s%d", e.Side, i)
			e.Addrs = prefixes(fmt.Sprintf("10.%d.0.%d/32", i, side+1), fmt.Sprintf("fd00:%d::%d/128", i, side+1))
			e.Policies = []plan.Policy{{Proto: "tcp"}, {Proto: "udp"}}
			other := 2 - side
			e.Routes = []plan.Route{{Dst: prefixes(fmt.Sprintf("10.%d.0.%d/32", i, other))[0]}, {Dst: prefixes(fmt.Sprintf("fd00:%d::%d/128", i, other))[0]}}
		}
		wires = append(wires, w)
	}
	each := func(f func(w plan.Wire) error) {
		var all sync.WaitGroup
		for _, w := range wires {
			all.Go(func() {
				if err := f(w); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	each(func(w plan.Wire) error { _, err := n.Apply(t.Context(), w); return err })
	tables := make(map[string]bool)
	for i, w := range wires {
		mustBeDone(t, n, w)
		mustEcho(t, n, client, fmt.Sprintf("10.%d.0.1", i), n, endpoint, fmt.Sprintf("10.%d.0.2", i))
		seen, err := n.Observe(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range seen.Ends[0].Tables {
			key := fmt.Sprint(p.Rule.Table, p.Rule.IPv6)
			if tables[key] {
				t.Errorf("table %s is used twice", key)
			}
			tables[key] = true
		}
	}
	if len(tables) != 12*4 {
		t.Errorf("%d policy tables, want %d", len(tables), 12*4)
	}
	each(func(w plan.Wire) error { return n.Remove(t.Context(), w) })
	if after := []nstest.Census{n.census(client), n.census(endpoint)}; !slices.Equal(before, after) {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// A namespace that died takes its end with it; the other is removed as usual.
func TestRemoveAfterNamespaceDied(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	before := n.census(endpoint)
	w := vethWire("u1", client, endpoint, plan.IP, 4)
	w.Ends[1].Policies = []plan.Policy{{Proto: "tcp"}}
	mustApply(t, n, w)
	n.table.Release(client) // the last reference
	if err := n.Remove(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if after := n.census(endpoint); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}
	n.table.Release(endpoint)
	if err := n.Remove(t.Context(), w); err != nil {
		t.Errorf("with no namespace left: %v", err)
	}
}

// An address that has a peer is the address, not its peer's network. A stranger's goes
// like any other.
func TestAddressWithPeer(t *testing.T) {
	n := newNode(t, "fwd")
	w := vethWire("u1", n.workload(), n.workload(), plan.IP, 4, 6)
	mustApply(t, n, w)
	before := n.census(w.Ends[0].NetNS)
	foreign := prefixes("10.3.0.1/32", "fd03::1/128")
	n.inside(w.Ends[0].NetNS, func(h *netlink.Handle) error {
		l, err := h.LinkByName("nsm-c")
		for i, peer := range []string{"10.4.0.0/24", "fd04::/64"} {
			_, of, _ := net.ParseCIDR(peer)
			a := &net.IPNet{IP: foreign[i].Addr().AsSlice(), Mask: net.CIDRMask(foreign[i].Bits(), foreign[i].Bits())}
			err = errors.Join(err, h.AddrAdd(l, &netlink.Addr{IPNet: a, Peer: of}))
		}
		return err
	})
	seen, err := n.Observe(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range foreign {
		if got := seen.Ends[0].Addrs; !slices.Contains(got, a) || len(got) != 4 {
			t.Errorf("observed %v, want %v too", got, a)
		}
	}
	mustApply(t, n, w)
	if after := n.census(w.Ends[0].NetNS); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}
	mustBeDone(t, n, w)
}

// A look at a wire costs the same alone and beside others: what is read of a namespace
// with many is no more than what is the wire's.
func TestLookAmongMany(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	first := numberedWire(0, client, endpoint)
	mustApply(t, n, first)
	look := func() float64 {
		return testing.AllocsPerRun(5, func() {
			if steps, err := n.Apply(t.Context(), first); err != nil || len(steps) > 0 {
				t.Errorf("%v, %v", steps, err)
			}
		})
	}
	alone := look()
	for i := range 50 {
		mustApply(t, n, numberedWire(i+1, client, endpoint))
	}
	if many := look(); many > 1.1*alone {
		t.Errorf("%v allocations beside 50 others, %v alone", many, alone)
	}
}

// numberedWire is a wire of its own addresses between two namespaces.
func numberedWire(i int, client, endpoint string) plan.Wire {
	w := vethWire(fmt.Sprint("u", i), client, endpoint, plan.IP)
	for side := range w.Ends {
		e := &w.Ends[side]
		e.Name = fmt.Sprint(e.Name, i)
		e.Addrs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 80, byte(i), byte(side)}), 32)}
		e.Routes = []plan.Route{{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 80, byte(i), byte(1 - side)}), 32)}}
	}
	return w
}

// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/kernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/internal/nstest"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "wireguard-holder" {
		playHolder(os.Args[3])
	}
	nstest.Main(m)
}

// node is a node of a mesh: a namespace with the forwarder's Kernel, and
// workloads in namespaces of their own.
//
//	┌ node ───────────────────┐
//	│ table, kernel  underlay │──── other nodes
//	└─────────────────────────┘
//	 workload   workload   …
type node struct {
	t     testing.TB
	table *netns.Table
	*kernel.Kernel
}

func newNode(t testing.TB, name string) *node {
	table, err := netns.NewTableAt(newNS(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.Close)
	return &node{t: t, table: table, Kernel: newKernel(t, name, table)}
}

func newKernel(t testing.TB, name string, table *netns.Table) *kernel.Kernel {
	k, err := kernel.New(kernel.Config{Name: name, Namespaces: table})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newNS(t testing.TB) *os.File {
	f, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// workload makes a namespace and returns its key.
func (n *node) workload() string {
	key, err := n.table.Add(newNS(n.t))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { n.table.Release(key) })
	return key
}

// connect joins the underlays of two nodes by a veth pair with two addresses
// each: 172.16.0.x/24 and fd16::x/64.
func connect(t testing.TB, a, b *node) {
	table, err := netns.NewTableAt(newNS(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.Close)
	w := plan.Wire{ID: "underlay", Kind: plan.KindVeth, Payload: plan.Ethernet}
	for i, n := range []*node{a, b} {
		f, err := netns.Open(fmt.Sprintf("/proc/self/fd/%d", n.table.Self().File().Fd()))
		if err != nil {
			t.Fatal(err)
		}
		key, err := table.Add(f)
		if err != nil {
			t.Fatal(err)
		}
		w.Ends = append(w.Ends, plan.End{
			NetNS: key, Name: "uplink", Side: []plan.Side{plan.Client, plan.Endpoint}[i],
			Addrs: prefixes(fmt.Sprintf("172.16.0.%d/24", i+1), fmt.Sprintf("fd16::%d/64", i+1)),
		})
	}
	k := newKernel(t, "cable", table)
	mustApply(t, k, w)
}

// vethWire is a wire between two workloads on one node, with addresses of the
// given families (4, 6).
func vethWire(id, client, endpoint, payload string, families ...int) plan.Wire {
	w := plan.Wire{ID: id, Kind: plan.KindVeth, Payload: payload, Ends: []plan.End{
		{NetNS: client, Name: "nsm-c", Side: plan.Client, MTU: 1400},
		{NetNS: endpoint, Name: "nsm-e", Side: plan.Endpoint, MTU: 1400},
	}}
	for _, family := range families {
		addAddrs(&w.Ends[0], family, 1, 2)
		addAddrs(&w.Ends[1], family, 2, 1)
	}
	return w
}

// addAddrs gives an end its own host address and the route to the other's, as
// point-to-point IPAM does (protocol §6.3).
func addAddrs(e *plan.End, family, own, other int) {
	format := map[int]string{4: "10.0.0.%d/32", 6: "fd00::%d/128"}[family]
	e.Addrs = append(e.Addrs, prefixes(fmt.Sprintf(format, own))...)
	e.Routes = append(e.Routes, plan.Route{Dst: prefixes(fmt.Sprintf(format, other))[0]})
}

// vxlanWire is the half at node number self (1 or 2) of a wire across nodes.
func vxlanWire(id, workload string, self int, vni uint32, underlay string) plan.Wire {
	other := 3 - self
	side := []plan.Side{plan.Client, plan.Endpoint}[self-1]
	w := plan.Wire{
		ID: id, Kind: plan.KindVXLAN, Payload: plan.Ethernet,
		VXLAN: &plan.VXLAN{
			VNI: vni, Port: 4789,
			Local:  netip.MustParseAddr(fmt.Sprintf(underlay, self)),
			Remote: netip.MustParseAddr(fmt.Sprintf(underlay, other)),
		},
		Ends: []plan.End{{NetNS: workload, Name: "nsm-1", Side: side, MTU: 1400}},
	}
	addAddrs(&w.Ends[0], 4, self, other)
	addAddrs(&w.Ends[0], 6, self, other)
	return w
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

type applier interface {
	Apply(context.Context, plan.Wire) ([]plan.Step, error)
	Look() func(context.Context, plan.Wire) bool
}

// mustApply also checks that a look has seen whether there is anything to do, unless what
// it does is measured.
func mustApply(t testing.TB, k applier, w plan.Wire) []plan.Step {
	t.Helper()
	_, measured := t.(*testing.B)
	intact := !measured && k.Look()(t.Context(), w)
	steps, err := k.Apply(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	if !measured && intact != (len(steps) == 0) {
		t.Errorf("a look says that %s is intact: %v, but the steps are\n%s", w.ID, intact, plan.Script(steps, func(key string) string { return key }))
	}
	return steps
}

// mustBeDone checks that the wire is as desired: applying it again, also by a
// forwarder that has just started, takes no step.
func mustBeDone(t testing.TB, n *node, w plan.Wire) {
	t.Helper()
	for _, k := range []*kernel.Kernel{n.Kernel, newKernel(t, "fwd", n.table)} {
		if steps := mustApply(t, k, w); len(steps) != 0 {
			t.Errorf("applied again:\n%s", plan.Script(steps, func(key string) string { return key }))
		}
	}
}

// mustEcho sends one datagram from one namespace to another and wants it back:
// one, because a wire that Apply has returned carries the first packet.
func mustEcho(t testing.TB, n *node, from, fromAddr string, m *node, to, toAddr string) {
	t.Helper()
	if err := echo(n, from, netip.MustParseAddr(fromAddr), m, to, netip.MustParseAddr(toAddr), 7777); err != nil {
		t.Errorf("from %s to %s: %v", fromAddr, toAddr, err)
	}
}

// echo does the same with a given port; without fromAddr the socket is not bound.
func echo(n *node, from string, fromAddr netip.Addr, m *node, to string, toAddr netip.Addr, port uint16) error {
	var server, client *net.UDPConn
	err := m.table.Do(to, func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(toAddr, port)))
		return err
	})
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 1500)
		for {
			size, peer, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(buf[:size], peer)
		}
	})
	defer serving.Wait()
	defer server.Close()
	var local *net.UDPAddr
	if fromAddr.IsValid() {
		local = net.UDPAddrFromAddrPort(netip.AddrPortFrom(fromAddr, 0))
	}
	err = n.table.Do(from, func() (err error) {
		client, err = net.DialUDP("udp", local, net.UDPAddrFromAddrPort(netip.AddrPortFrom(toAddr, port)))
		return err
	})
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	defer client.Close()
	if err := client.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := client.Write([]byte("hello")); err != nil {
		return err
	}
	buf := make([]byte, 16)
	size, err := client.Read(buf)
	if err == nil && string(buf[:size]) != "hello" {
		return fmt.Errorf("got %q", buf[:size])
	}
	return err
}

// census counts what is in a namespace.
func (n *node) census(key string) nstest.Census {
	n.t.Helper()
	var c nstest.Census
	err := n.table.Do(key, func() (err error) {
		c, err = nstest.Count()
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

// inside gives f a netlink handle in a namespace.
func (n *node) inside(key string, f func(h *netlink.Handle) error) {
	n.t.Helper()
	err := n.table.Do(key, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return f(h)
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

// send sends a datagram from a namespace. Nobody need receive it.
func (n *node) send(from, to string) {
	n.t.Helper()
	err := n.table.Do(from, func() error {
		c, err := net.Dial("udp", net.JoinHostPort(to, "7777"))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("hello"))
		return err
	})
	if err != nil {
		n.t.Errorf("to %s: %v", to, err)
	}
}

// neighborsOf returns the unicast neighbours that a link has, in order, and of those that
// are not permanent also that.
func (n *node) neighborsOf(key, link string) (all []string) {
	n.t.Helper()
	n.inside(key, func(h *netlink.Handle) error {
		list, err := h.NeighList(n.linkIn(h, link), netlink.FAMILY_ALL)
		for _, entry := range list {
			switch {
			case entry.IP.IsMulticast(): // what the kernel itself has to say
			case entry.State == netlink.NUD_PERMANENT:
				all = append(all, entry.IP.String())
			case entry.State == netlink.NUD_NOARP:
				all = append(all, entry.IP.String()+" noarp")
			default:
				all = append(all, fmt.Sprint(entry.IP, " ", entry.State))
			}
		}
		return err
	})
	slices.Sort(all)
	return all
}

// linkIn is the index of a link in the namespace of h.
func (n *node) linkIn(h *netlink.Handle, name string) int {
	n.t.Helper()
	l, err := h.LinkByName(name)
	if err != nil {
		n.t.Fatal(err)
	}
	return l.Attrs().Index
}

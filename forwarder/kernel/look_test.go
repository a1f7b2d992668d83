// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/internal/nstest"
)

// A namespace is listed once for all wires that a look is at, however many they are.
// Links, addresses and neighbours are a list each, routes and rules one for each of both
// families.
func TestLookListsOnce(t *testing.T) {
	const lists = 3 + 2*2
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	var wires []plan.Wire
	for _, many := range []int{1, 40} {
		for i := len(wires); i < many; i++ {
			w := numberedWire(i, client, endpoint)
			if i%4 == 3 {
				w.Ends[0].Policies = []plan.Policy{{Proto: "tcp"}}
			}
			wires = append(wires, w)
			mustApply(t, n, w)
		}
		descriptors := fmt.Sprint(nstest.Descriptors())
		asked, intact := n.Asked(), n.Look()
		for _, w := range wires {
			if !intact(t.Context(), w) {
				t.Errorf("%s is not intact", w.ID)
			}
		}
		if got := n.Asked() - asked; got != 2*lists {
			t.Errorf("%d lists for %d wires in two namespaces, want %d", got, many, 2*lists)
		}
		if after := fmt.Sprint(nstest.Descriptors()); after != descriptors {
			t.Errorf("descriptors before %v, after %v", descriptors, after)
		}
	}
}

// What a look allocates for a wire has a ceiling: it is most of what a look costs, and a
// node looks all day.
func TestLookAllocations(t *testing.T) {
	const most, wires = 110, 40
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	var all []plan.Wire
	for i := range wires {
		all = append(all, numberedWire(i, client, endpoint))
		mustApply(t, n, all[i])
	}
	allocated := testing.AllocsPerRun(5, func() {
		intact := n.Look()
		for _, w := range all {
			if !intact(t.Context(), w) {
				t.Errorf("%s is not intact", w.ID)
			}
		}
	})
	t.Logf("%.1f allocations for each wire", allocated/wires)
	if allocated > most*wires {
		t.Errorf("%.1f allocations for each wire, at most %d are allowed", allocated/wires, most)
	}
}

// One wire that is damaged, invalid or where nothing is to be seen is not intact; all
// others are. A look shows what it saw first, the next one what is there then.
func TestLookFindsTheBadOnes(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint, other := n.workload(), n.workload(), n.workload()
	wires := make([]plan.Wire, 6)
	for i := range wires {
		wires[i] = numberedWire(i, client, endpoint)
		if i == 4 {
			wires[i].Ends[1].NetNS = other
		}
		mustApply(t, n, wires[i])
	}
	wires[0].Ends[0].MTU = 1 // refused
	wires[5].Ends[1].NetNS = "4:1"
	n.table.Release(other)
	early, late := n.Look(), n.Look()
	check := func(name string, intact func(i int) bool, bad ...int) {
		t.Helper()
		want := map[int]bool{0: true, 4: true, 5: true}
		for _, i := range bad {
			want[i] = true
		}
		for i := range wires {
			if got := intact(i); got == want[i] {
				t.Errorf("%s: wire %d is intact: %v", name, i, got)
			}
		}
	}
	first := func(i int) bool { return early(t.Context(), wires[i]) }
	check("nothing is damaged", first)
	n.inside(endpoint, func(h *netlink.Handle) error {
		l, err := h.LinkByName(wires[2].Ends[1].Name)
		if err != nil {
			return err
		}
		return h.LinkSetDown(l)
	})
	check("the same look", first)
	check("another one", func(i int) bool { return late(t.Context(), wires[i]) }, 2)
	mustApply(t, n, wires[2])
	check("when it is repaired", func(i int) bool { return n.Look()(t.Context(), wires[i]) })
}

// The wires of the tunnel are read once for all.
func TestLookAtTunnel(t *testing.T) {
	n, backend, own, peer := tunnelNode(t)
	var wires []plan.Wire
	for i := range uint32(3) {
		peer.Wire = 7 + i
		w := plan.Wire{
			ID: fmt.Sprint("u", i), Owner: "fwd", Kind: plan.KindTunnel, Payload: []string{plan.IP, plan.Ethernet}[i%2],
			Tunnel: &plan.Tunnel{Own: own, Wire: i + 1, Peer: peer},
			Ends:   []plan.End{{NetNS: n.workload(), Name: "nsm-1", Side: plan.Endpoint, MTU: 1400}},
		}
		wires = append(wires, w)
		mustApply(t, n.Kernel, w)
	}
	look := func(bad int) {
		t.Helper()
		intact := n.Look()
		for i, w := range wires {
			if got := intact(t.Context(), w); got == (i == bad) {
				t.Errorf("wire %d is intact: %v", i, got)
			}
		}
	}
	look(-1)
	led := wires[1]
	led.Tunnel = &plan.Tunnel{Own: own, Wire: led.Tunnel.Wire, Peer: peer}
	led.Tunnel.Peer.Wire = 99
	mustApply(t, n.Kernel, led)
	look(1)
	mustApply(t, n.Kernel, wires[1])
	look(-1)
	w := wires[2]
	if err := backend.Delete(t.Context(), w.Ends[0].NetNS, nil, "nsm-1", w.Tag(plan.Endpoint).String()); err != nil {
		t.Fatal(err)
	}
	look(2)
	mustApply(t, n.Kernel, w)
	look(-1)
	for _, w := range wires {
		if err := n.Remove(t.Context(), w); err != nil {
			t.Error(err)
		}
	}
}

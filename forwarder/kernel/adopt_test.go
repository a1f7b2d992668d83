// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"testing"

	"github.com/openvwire/nsm/forwarder/kernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
)

// A forwarder that starts again finds what it made, wherever that is, and
// nothing of others.
func TestAdopt(t *testing.T) {
	n := newNode(t, "fwd")
	client := n.workload()
	f, err := netns.NewNamed("blue")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.DeleteNamed("blue"); err != nil {
			t.Error(err)
		}
	})
	blue, err := n.table.Add(f)
	if err != nil {
		t.Fatal(err)
	}
	defer n.table.Release(blue)
	before := n.census(blue)
	w := vethWire("u1", client, blue, plan.IP, 4)
	w.Ends[1].Policies = []plan.Policy{{Proto: "udp"}}
	mustApply(t, n, w)
	foreign := vethWire("u2", client, blue, plan.IP)
	foreign.Ends[0].Name, foreign.Ends[1].Name = "other-c", "other-e"
	other := newKernel(t, "other", n.table)
	mustApply(t, other, foreign)

	table, err := netns.NewTable() // knows nothing but itself
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	again := newKernel(t, "fwd", table)
	found, err := again.FindLinks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := kernel.Found{Tag: plan.Tag{Owner: "fwd", ID: "u1", Side: plan.Endpoint}, NetNS: blue, Name: "nsm-e", LinkKind: "veth"}
	if len(found) != 1 || found[0] != want {
		t.Fatalf("found %+v, want %+v", found, want)
	}
	if keys := table.Keys(); len(keys) != 2 {
		t.Errorf("the table holds %v, want its own namespace and %s", keys, blue)
	}
	for _, w := range plan.Wires(found) {
		if err := again.Remove(t.Context(), w); err != nil {
			t.Error(err)
		}
	}
	table.Release(blue)
	if err := other.Remove(t.Context(), foreign); err != nil {
		t.Error(err)
	}
	if after := n.census(blue); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}

	// With its old table it also finds what no process and no mount shows.
	mustApply(t, n, w)
	found, err = n.FindLinks(t.Context())
	if err != nil || len(found) != 2 {
		t.Errorf("found %+v, %v; want both ends", found, err)
	}
	for _, f := range found {
		n.table.Release(f.NetNS)
	}
	if err := n.Remove(t.Context(), w); err != nil {
		t.Error(err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/openvwire/nsm/forwarder/kernel/memkernel"
	"github.com/openvwire/nsm/forwarder/plan"
)

// A forwarder that is killed at any step of any change, several times in a row, leaves
// what the next one makes the desired wire of, and no link too many.
func TestKilledWhileReplacing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := memkernel.New("fwd")
		if rapid.IntRange(0, 9).Draw(t, "names fixed") == 0 {
			k.FixNames()
		}
		for i := range rapid.IntRange(1, 3).Draw(t, "changes") {
			w := drawWire(t, []string{"first", "second", "third"}[i])
			steps := plan.Diff(w, observe(t, k, w))
			if rapid.Bool().Draw(t, "lingers") {
				steps = plan.Urgent(steps)
			}
			if err := k.Execute(killed(t, steps)); err != nil {
				t.Fatalf("change %d: %v", i, err)
			}
		}
		want := drawWire(t, "want")
		if _, err := k.Switch(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		checkReached(t, want, observe(t, k, want))
		rest, err := k.Apply(t.Context(), want)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range rest {
			if s, is := s.(plan.DelLink); !is || !s.Tag.Aside {
				t.Errorf("left to do after Switch: %v", s)
			}
		}
		checkReached(t, want, observe(t, k, want))
		if k.Links() != len(want.Ends) {
			t.Errorf("%d links for %d ends", k.Links(), len(want.Ends))
		}
		if steps := plan.Diff(want, observe(t, k, want)); len(steps) != 0 {
			t.Errorf("difference of the reached state: %v", steps)
		}
	})
}

// killed are the steps that somebody has taken who is killed then. WireGuard devices, and
// wires of the tunnel, have no MAC address to be known by before they are tagged.
func killed(t *rapid.T, steps []plan.Step) []plan.Step {
	at := rapid.IntRange(0, len(steps)).Draw(t, "killed after step")
	if at > 0 {
		switch steps[at-1].(type) {
		case plan.AddWireGuard, plan.AddTunnel:
			at++
		}
	}
	return steps[:at]
}

// While a whole wire is replaced, each address and route that it had and is to have is
// there all the time. It is the same for a forwarder that goes on after another one was
// killed half way.
func TestNothingIsMissingMeanwhile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := memkernel.New("fwd")
		old, want := drawWire(t, "old"), drawWire(t, "want")
		if clash(old, want) {
			t.Skip("both cannot be there at the same time")
		}
		if _, err := k.Apply(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		check := func(after plan.Step) {
			t.Helper()
			for _, e := range want.Ends {
				i := slices.IndexFunc(old.Ends, func(o plan.End) bool { return o.NetNS == e.NetNS && o.Side == e.Side })
				if i < 0 {
					continue
				}
				for _, a := range e.Addrs {
					if slices.Contains(old.Ends[i].Addrs, a) && !k.Has(e.NetNS, a.Addr()) {
						t.Fatalf("address %v is missing after %v", a, after)
					}
				}
				for _, r := range e.Routes {
					has := func(o plan.Route) bool { return o.Dst.Masked() == r.Dst.Masked() && o.Via == r.Via }
					if slices.ContainsFunc(old.Ends[i].Routes, has) && !k.Routes(e.NetNS, r.Dst) {
						t.Fatalf("route %v is missing after %v", r, after)
					}
				}
			}
		}
		execute := func(steps []plan.Step) {
			for _, s := range steps {
				if err := k.Execute([]plan.Step{s}); err != nil {
					t.Fatal(err)
				}
				check(s)
			}
		}
		steps := plan.Diff(want, observe(t, k, want))
		execute(killed(t, steps))
		execute(plan.Diff(want, observe(t, k, want)))
	})
}

// clash reports whether two wires cannot stand beside each other, or have an address
// with two lengths, which IPv6 has to take away first.
func clash(a, b plan.Wire) bool {
	byTag := func(w plan.Wire) bool { return w.Kind == plan.KindWireGuard || w.Kind == plan.KindTunnel }
	if a.Kind == b.Kind && a.Kind != plan.KindVeth || byTag(a) && byTag(b) {
		return true
	}
	for _, e := range append(slices.Clone(a.Ends), b.Ends...) {
		if slices.Contains(e.Addrs, addrs[3]) || slices.Contains(e.Addrs, addrs[4]) {
			return true
		}
	}
	return false
}

// What is set aside counts as the wire's where nothing has taken its place.
func TestWiresAside(t *testing.T) {
	tag := plan.Tag{Owner: "f", ID: "1", Side: plan.Client}
	for _, tt := range []struct {
		name  string
		found []plan.Found
		want  plan.End
		kind  plan.Kind
	}{
		{"both", []plan.Found{{Tag: tag.SetAside(), NetNS: "4:1", Name: "old1", LinkKind: "vxlan"}, {Tag: tag, NetNS: "4:1", Name: "a", LinkKind: "veth"}},
			plan.End{NetNS: "4:1", Name: "a", Side: plan.Client}, plan.KindVeth},
		{"alone", []plan.Found{{Tag: tag.SetAside(), NetNS: "4:1", Name: "old1", LinkKind: "vxlan"}},
			plan.End{NetNS: "4:1", Name: "old1", Side: plan.Client}, plan.KindVXLAN},
	} {
		wires := plan.Wires(tt.found)
		if len(wires) != 1 || wires[0].Kind != tt.kind || len(wires[0].Ends) != 1 || wires[0].Ends[0].Name != tt.want.Name {
			t.Errorf("%s: %+v", tt.name, wires)
		}
	}
}

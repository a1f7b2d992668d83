// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/openvwire/nsm/forwarder/kernel/memkernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/internal/nstest"
)

// history is a wire's life: each version is applied to what the one before left.
func history(client, endpoint string) []plan.Wire {
	var wires []plan.Wire
	w := vethWire("u1", client, endpoint, plan.IP, 4, 6)
	add := func(change func(c *plan.End)) {
		w.Ends = slices.Clone(w.Ends)
		change(&w.Ends[0])
		wires = append(wires, w)
	}
	via := plan.Route{Dst: prefixes("10.9.0.0/16")[0], Via: netip.MustParseAddr("10.0.0.2"), OnLink: true}
	add(func(*plan.End) {})
	add(func(*plan.End) {})
	add(func(c *plan.End) { c.MTU = 9000 })
	add(func(c *plan.End) { c.Routes = append(slices.Clone(c.Routes), via) })
	add(func(c *plan.End) {
		c.Policies = []plan.Policy{{Proto: "tcp"}, {Proto: "udp", Routes: []plan.Route{via}}}
	})
	add(func(c *plan.End) {
		c.Policies = []plan.Policy{{Proto: "udp"}, {From: prefixes("fd00::/64")[0], SrcPort: plan.PortRange{From: 1, To: 9}}}
	})
	add(func(c *plan.End) {
		c.Policies = []plan.Policy{c.Policies[1], {From: prefixes("0.0.0.0/0")[0], Proto: "sctp"}, c.Policies[0]}
	})
	add(func(c *plan.End) { c.Addrs = append(slices.Clone(c.Addrs), prefixes("10.0.0.5/32", "fd00::5/64")...) })
	add(func(c *plan.End) { c.Addrs = c.Addrs[:2]; c.Routes = c.Routes[:1]; c.Policies = nil })
	add(func(c *plan.End) {
		c.Name = "renamed"
		c.Neighbors = []plan.Neighbor{{IP: via.Via, MAC: plan.MAC("x", plan.Client)}}
	})
	return wires
}

// The kernel in memory takes the same steps as the real one.
func TestTwin(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	twin := memkernel.New("fwd")
	if !nstest.RenamesUp() {
		twin.FixNames()
	}
	for i, w := range history(client, endpoint) {
		real, mem := mustApply(t, n, w), mustApply(t, twin, w)
		if i == 1 && len(real) != 0 {
			t.Errorf("the same wire again:\n%s", script(real))
		}
		if r, m := script(real), script(mem); r != m {
			t.Errorf("version %d: the kernel took\n%s\nits twin\n%s", i, r, m)
		}
	}
	last := history(client, endpoint)[0]
	for _, k := range []interface {
		FindLinks(context.Context) ([]plan.Found, error)
		Remove(context.Context, plan.Wire) error
	}{n, twin} {
		found, err := k.FindLinks(t.Context())
		if err != nil || len(found) != 2 {
			t.Errorf("%T found %+v, %v; want two ends", k, found, err)
		}
		if err := k.Remove(t.Context(), last); err != nil {
			t.Error(err)
		}
		if found, err = k.FindLinks(t.Context()); err != nil || len(found) != 0 {
			t.Errorf("%T found %+v, %v after Remove", k, found, err)
		}
	}
	for _, e := range last.Ends { // the references that the first Adopt gave
		n.table.Release(e.NetNS)
	}
}

// script prints steps in an order that does not depend on how the kernel lists
// what it has, and without the step for ping sockets, which is not needed in a
// user namespace.
func script(steps []plan.Step) string {
	lines := strings.Split(plan.Script(steps, func(key string) string { return key }), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, "ping_group_range") })
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// A plan as printed does, typed into a shell, what Apply does.
func TestScriptIsExecutable(t *testing.T) {
	for _, command := range []string{"ip", "sysctl", "sh"} {
		if _, err := exec.LookPath(command); err != nil {
			t.Skipf("the printed commands cannot be run: %v", err)
		}
	}
	n := newNode(t, "fwd")
	keys := make([]string, 2)
	names := make(map[string]string)
	for i, name := range []string{"client", "endpoint"} {
		f, err := netns.NewNamed(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := netns.DeleteNamed(name); err != nil {
				t.Error(err)
			}
		})
		if keys[i], err = n.table.Add(f); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.table.Release(keys[i]) })
		names[keys[i]] = name
	}
	wires := history(keys[0], keys[1])
	wires = append(wires, vxlanWire("u2", keys[0], 1, 7, "172.16.0.%d"), vxlanWire("u3", keys[1], 1, 8, "fd16::%d"))
	for i, w := range wires {
		w.Owner = "fwd"
		seen, err := n.Observe(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		typed := plan.Script(plan.Diff(w, seen), func(key string) string { return names[key] })
		err = n.table.Self().Do(func() error { // where the forwarder would be
			c := exec.Command("sh", "-e", "-x")
			c.Stdin = strings.NewReader(typed)
			out, err := c.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w:\n%s", err, out)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("version %d: %v", i, err)
		}
		mustBeDone(t, n, w)
	}
}

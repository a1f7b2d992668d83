// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/openvwire/nsm/forwarder/kernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/internal/nstest"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Whatever is wrong, the error says so by its reason, and nothing is left.
func TestFailureLeavesNothing(t *testing.T) {
	// Accepted by every check but the kernel's: no link leads to this next hop.
	unreachable := plan.Route{Dst: prefixes("192.0.2.0/24")[0], Via: netip.MustParseAddr("203.0.113.1")}
	noSuchProto := []plan.Policy{{Proto: "tcp"}, {Proto: "udp", Routes: []plan.Route{unreachable}}}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()

	for name, c := range map[string]struct {
		ctx   context.Context
		spoil func(n *node, w *plan.Wire)
		want  *nserr.Reason
		says  string
	}{
		"name taken at the client":   {spoil: taken(0), want: nserr.NameTaken, says: "nsm-c"},
		"name taken at the endpoint": {spoil: taken(1), want: nserr.NameTaken, says: "nsm-e"},
		"both names the same": {want: nserr.NameTaken, says: "nsm-c", spoil: func(_ *node, w *plan.Wire) {
			w.Ends[1].NetNS, w.Ends[1].Name = w.Ends[0].NetNS, w.Ends[0].Name
		}},
		"name too long":      {spoil: rename("a-name-of-16-byte"), want: nserr.BadName, says: "at most 15"},
		"name with slash":    {spoil: rename("a/b"), want: nserr.BadName, says: "'/'"},
		"name as a pattern":  {spoil: rename("nsm%d"), want: nserr.BadName, says: "'%'"},
		"namespace unknown":  {want: nserr.NoNetNS, says: "4:1", spoil: func(_ *node, w *plan.Wire) { w.Ends[1].NetNS = "4:1" }},
		"no namespace":       {want: nserr.NoNetNS, says: "nsm-e", spoil: func(_ *node, w *plan.Wire) { w.Ends[1].NetNS = "" }},
		"MTU for IPv6":       {want: nserr.MTUTooSmall, says: "1280", spoil: func(_ *node, w *plan.Wire) { w.Ends[0].MTU = 1279 }},
		"MTU":                {want: nserr.MTUTooSmall, says: "1280", spoil: func(_ *node, w *plan.Wire) { w.Ends[1].MTU = 575 }},
		"route, at the end":  {want: nserr.KernelFailed, says: "route append 192.0.2.0/24 via 203.0.113.1", spoil: func(_ *node, w *plan.Wire) { w.Ends[1].Routes = append(w.Ends[1].Routes, unreachable) }},
		"policy, at the end": {want: nserr.KernelFailed, says: "table 2", spoil: func(_ *node, w *plan.Wire) { w.Ends[1].Policies = noSuchProto }},
		"cancelled":          {ctx: cancelled, want: nserr.TimedOut, says: "canceled", spoil: func(*node, *plan.Wire) {}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "fwd")
			client, endpoint := n.workload(), n.workload()
			w := vethWire("u1", client, endpoint, plan.IP, 4, 6)
			c.spoil(n, &w)
			before := []nstest.Census{n.census(client), n.census(endpoint)}
			descriptors := nstest.Descriptors()
			ctx := c.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			_, err := n.Apply(ctx, w)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error is %v, want %s that says %q", err, c.want.Code, c.says)
			}
			if after := []nstest.Census{n.census(client), n.census(endpoint)}; !slices.Equal(before, after) {
				t.Errorf("before %+v, after %+v", before, after)
			}
			if after := nstest.Descriptors(); !slices.Equal(descriptors, after) {
				t.Errorf("descriptors before %v, after %v", descriptors, after)
			}
		})
	}
}

func taken(end int) func(*node, *plan.Wire) {
	return func(n *node, w *plan.Wire) {
		n.inside(w.Ends[end].NetNS, func(h *netlink.Handle) error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = w.Ends[end].Name
			return h.LinkAdd(&netlink.Ifb{LinkAttrs: attrs})
		})
	}
}

func rename(name string) func(*node, *plan.Wire) {
	return func(_ *node, w *plan.Wire) { w.Ends[1].Name = name }
}

// A change that fails leaves the wire as it was.
func TestFailedChangeIsUndone(t *testing.T) {
	n := newNode(t, "fwd")
	client, endpoint := n.workload(), n.workload()
	w := vethWire("u1", client, endpoint, plan.IP, 4)
	w.Ends[0].Policies = []plan.Policy{{Proto: "tcp"}}
	mustApply(t, n, w)
	before := []nstest.Census{n.census(client), n.census(endpoint)}

	changed := w
	changed.Ends = slices.Clone(w.Ends)
	e := &changed.Ends[0]
	e.MTU = 1300
	e.Addrs = prefixes("10.0.0.3/32", "fd00::3/128")
	e.Policies = []plan.Policy{{Proto: "udp"}, {Proto: "sctp"}}
	// The endpoint's end comes last.
	changed.Ends[1].Routes = []plan.Route{{Dst: prefixes("192.0.2.0/24")[0], Via: netip.MustParseAddr("203.0.113.1")}}
	if _, err := n.Apply(t.Context(), changed); !errors.Is(err, nserr.KernelFailed) {
		t.Fatalf("error is %v, want KernelFailed", err)
	}
	mustBeDone(t, n, w)
	mustEcho(t, n, client, "10.0.0.1", n, endpoint, "10.0.0.2")
	if after := []nstest.Census{n.census(client), n.census(endpoint)}; !slices.Equal(before, after) {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// Two VXLAN devices on a node cannot share VNI and port, whatever their peers.
func TestVNITaken(t *testing.T) {
	a, b := newNode(t, "fwd"), newNode(t, "fwd")
	connect(t, a, b)
	first, second := a.workload(), a.workload()
	mustApply(t, a, vxlanWire("u1", first, 1, 5, "172.16.0.%d"))
	before := a.census(second)
	w := vxlanWire("u2", second, 1, 5, "172.16.0.%d")
	w.VXLAN.Remote = netip.MustParseAddr("172.16.0.77")
	_, err := a.Apply(t.Context(), w)
	if !errors.Is(err, plan.ErrVNITaken) || !errors.Is(err, nserr.KernelFailed) {
		t.Errorf("error is %v, want ErrVNITaken", err)
	}
	if after := a.census(second); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}
	// The same where the underlay has a link of that name, which some kernels
	// answer alike.
	w.Ends[0].Name = "uplink"
	if _, err := a.Apply(t.Context(), w); !errors.Is(err, plan.ErrVNITaken) {
		t.Errorf("error is %v, want ErrVNITaken", err)
	}
	if after := a.census(second); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}
	w.VXLAN.VNI = 6
	mustApply(t, a, w)
	mustBeDone(t, a, w)
}

// Without privileges the error says so. The process that has none is this
// binary under another user.
func TestNotPrivileged(t *testing.T) {
	if os.Getenv("NSM_TEST_UNPRIVILEGED") != "" {
		table, err := netns.NewTable()
		if err != nil {
			t.Fatal(err)
		}
		defer table.Close()
		key := table.Self().Key()
		_, err = newKernel(t, "fwd", table).Apply(t.Context(), vethWire("u1", key, key, plan.IP, 4))
		if !errors.Is(err, nserr.NotPrivileged) {
			t.Errorf("error is %v, want NotPrivileged", err)
		}
		if _, err := netns.New(); !errors.Is(err, nserr.NotPrivileged) {
			t.Errorf("a new namespace: %v, want NotPrivileged", err)
		}
		return
	}
	if ids, err := os.ReadFile("/proc/self/uid_map"); err != nil || !strings.Contains(string(ids), "4294967295") {
		t.Skip("inside a user namespace there is no other user to be")
	}
	c := exec.Command("/proc/self/exe", "-test.run=^TestNotPrivileged$", "-test.v")
	c.Dir = "/"
	c.Env = append(os.Environ(), "NSM_TEST_UNPRIVILEGED=1")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestNotPrivileged") {
		t.Errorf("%v:\n%s", err, out)
	}
}

func TestConfigIsChecked(t *testing.T) {
	table, err := netns.NewTable()
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	for _, c := range []kernel.Config{{}, {Name: "fwd"}, {Namespaces: table}, {Name: "a:b", Namespaces: table}, {Name: strings.Repeat("x", 101), Namespaces: table}} {
		if _, err := kernel.New(c); !errors.Is(err, nserr.BadFlag) {
			t.Errorf("New(%+v): %v, want BadFlag", c, err)
		}
	}
}

// A program that has the port of the tunnels is called so.
func TestVXLANPortTaken(t *testing.T) {
	a, b := newNode(t, "fwd"), newNode(t, "fwd")
	connect(t, a, b)
	var c net.PacketConn
	if err := a.table.Self().Do(func() (err error) {
		c, err = net.ListenPacket("udp4", ":4789")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	work := a.workload()
	before := a.census(work)
	_, err := a.Apply(t.Context(), vxlanWire("u1", work, 1, 5, "172.16.0.%d"))
	if !errors.Is(err, nserr.AddressInUse) || !strings.Contains(err.Error(), "another program has the UDP port") || !strings.Contains(err.Error(), "--vxlan-port") {
		t.Errorf("%v, want %s", err, nserr.AddressInUse.Code)
	}
	if after := a.census(work); before != after {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/openvwire/nsm/forwarder/kernel/memkernel"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/forwarder/wireguard"
)

// tunnelNode is a node with its end of the tunnel, and another one to lead wires to.
func tunnelNode(t *testing.T) (n *node, backend wireguard.Backend, own plan.TunnelNode, peer plan.TunnelPeer) {
	t.Helper()
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("no TUN devices here: %v", err)
	}
	n = newNode(t, "fwd")
	backend = n.useWireGuardAt(t, filepath.Join(t.TempDir(), "wg.sock"), true)
	own, err := n.OpenTunnel(t.Context(), plan.TunnelNode{PrivateKey: newKey(t), Port: 51820, ID: 1})
	if err != nil {
		t.Fatal(err)
	}
	return n, backend, own, plan.TunnelPeer{Key: newKey(t), ID: 2, Wire: 7, Endpoint: netip.MustParseAddrPort("172.16.0.2:51820")}
}

// An end in the tunnel that moves within its node stands in two namespaces until the old
// one is removed. Whoever starts then finds both, and removes one without the other.
func TestTunnelEndInTwoPlaces(t *testing.T) {
	n, backend, own, peer := tunnelNode(t)
	var places []string
	for i := range uint32(2) {
		key := n.workload()
		places = append(places, key)
		mustApply(t, n.Kernel, plan.Wire{
			ID: "u1", Kind: plan.KindTunnel, Payload: plan.IP,
			Tunnel: &plan.Tunnel{Own: own, Wire: i + 1, Peer: peer},
			Ends:   []plan.End{{NetNS: key, Name: "nsm-1", Side: plan.Endpoint, MTU: 1400}},
		})
	}
	for len(places) > 0 {
		found, err := n.FindLinks(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var at []string
		for _, f := range found {
			n.table.Release(f.NetNS)
			if f.LinkKind != plan.LinkTunnel || f.Hidden {
				t.Errorf("found %+v", f)
			}
			at = append(at, f.NetNS)
		}
		if slices.Sort(at); !slices.Equal(at, slices.Sorted(slices.Values(places))) {
			t.Fatalf("found in %v, want %v", at, places)
		}
		i := slices.IndexFunc(found, func(f plan.Found) bool { return f.NetNS == places[0] })
		if err := n.Remove(t.Context(), plan.Wires(found[i : i+1])[0]); err != nil {
			t.Fatal(err)
		}
		places = places[1:]
	}
	if devices, err := backend.Devices(t.Context()); err != nil || len(devices) != 0 {
		t.Errorf("left are %+v, %v", devices, err)
	}
}

// The kernel makes no neighbours for a wire of the tunnel, since it has permanent ones,
// which do not count: also one that is from a time when wires had none, and is kept.
func TestTunnelNeighbors(t *testing.T) {
	n, _, own, peer := tunnelNode(t)
	twin := memkernel.New("fwd")
	client := n.workload()
	w := plan.Wire{
		ID: "u1", Owner: "fwd", Kind: plan.KindTunnel, Payload: plan.IP, Tunnel: &plan.Tunnel{Own: own, Wire: 1, Peer: peer},
		Ends: []plan.End{{NetNS: client, Name: "nsm-1", Side: plan.Client, MTU: 1400}},
	}
	gateway := plan.End{Routes: []plan.Route{{Dst: prefixes("::/0")[0], Via: netip.MustParseAddr("fe80::9"), OnLink: true}}}
	var both, four plan.End
	addAddrs(&four, 4, 1, 2)
	addAddrs(&both, 4, 1, 2)
	addAddrs(&both, 6, 1, 2)
	for _, version := range []struct {
		plan.End
		to   []string
		want []string
	}{
		{plan.End{}, nil, nil},
		{four, []string{"10.0.0.2"}, []string{"0.0.0.0"}},
		{gateway, []string{"2001:db8::1", "2001:db8::2"}, []string{"fe80::9"}},
		{both, []string{"10.0.0.2", "fd00::2"}, []string{"0.0.0.0", "fd00::2"}},
	} {
		w.Ends[0].Addrs, w.Ends[0].Routes = version.Addrs, version.Routes
		if r, m := script(mustApply(t, n, w)), script(mustApply(t, twin, w)); r != m {
			t.Errorf("the kernel took\n%s\nits twin\n%s", r, m)
		}
		if steps := mustApply(t, n, w); len(steps) != 0 {
			t.Errorf("applied again:\n%s", script(steps))
		}
		for _, to := range version.to {
			n.send(client, to)
		}
		if got := n.neighborsOf(client, "nsm-1"); !slices.Equal(got, version.want) {
			t.Errorf("neighbours %v, want %v", got, version.want)
		}
	}
	n.inside(client, func(h *netlink.Handle) error {
		for _, ip := range []string{"0.0.0.0", "fd00::2"} {
			if err := h.NeighDel(&netlink.Neigh{LinkIndex: n.linkIn(h, "nsm-1"), IP: net.ParseIP(ip)}); err != nil {
				return err
			}
		}
		return nil
	})
	n.send(client, "10.0.0.2")
	n.send(client, "fd00::2")
	if got, want := n.neighborsOf(client, "nsm-1"), []string{"0.0.0.0 noarp", "fd00::2 noarp"}; !slices.Equal(got, want) {
		t.Errorf("without permanent ones there are the neighbours %v, want %v", got, want)
	}
	steps := mustApply(t, n, w)
	if slices.ContainsFunc(steps, func(s plan.Step) bool { _, adds := s.(plan.AddNeighbor); return !adds }) {
		t.Errorf("a wire without permanent neighbours takes\n%s", script(steps))
	}
	if got, want := n.neighborsOf(client, "nsm-1"), []string{"0.0.0.0", "fd00::2"}; !slices.Equal(got, want) {
		t.Errorf("neighbours %v, want %v", got, want)
	}
	if err := n.Remove(t.Context(), w); err != nil {
		t.Error(err)
	}
}

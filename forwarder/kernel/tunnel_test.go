// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

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

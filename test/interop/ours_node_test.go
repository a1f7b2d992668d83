// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"net/netip"
	"testing"

	"github.com/openvwire/nsm/forwarder"
	"github.com/openvwire/nsm/forwarder/kernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/wireguard"
	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

// forwarderPart is a running forwarder of ours, with the real kernel. Its node is
// a namespace of its own, with one link that has the tunnel's address.
type forwarderPart struct {
	ours.Part
	*forwarder.Forwarder
	node    *netns.Table
	tunnels *wireguard.Userspace
}

const underlayMTU = 1500

// ourForwarder runs our forwarder on a Unix socket, registered with a manager of
// either make.
func ourForwarder(t *testing.T, s ref.Security, name, manager string, tunnelIP netip.Addr) forwarderPart {
	t.Helper()
	node := newWorkload(t)
	node.addLink(t, "uplink", netip.PrefixFrom(tunnelIP, 24), underlayMTU)
	tunnels, err := wireguard.NewUserspace(t.Context(), holderOf(t, node))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { endHolder(t, tunnels) })
	k, err := kernel.New(kernel.Config{Name: name, Namespaces: node.table, WireGuard: tunnels, Logger: ours.Quiet})
	if err != nil {
		t.Fatal(err)
	}
	p, f := ours.Forwarder(t, s, ours.ForwarderConfig{
		Name: name, Manager: manager, TunnelIP: tunnelIP, Kernel: k, Namespaces: node.table,
	})
	return forwarderPart{Part: p, Forwarder: f, node: node.table, tunnels: tunnels}
}

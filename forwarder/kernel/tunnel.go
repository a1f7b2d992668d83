// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/nserr"
)

func (k *Kernel) noTunnel() error {
	return nserr.Unsupported.Errorf("forwarder %s has no WireGuard in userspace, and so no tunnel", k.name)
}

// OpenTunnel returns this node's end of the tunnel that wires share, made as wanted if
// there is none. It fails with nserr.Unsupported where there can be none.
func (k *Kernel) OpenTunnel(ctx context.Context, want plan.TunnelNode) (plan.TunnelNode, error) {
	if k.tunnel == nil {
		return plan.TunnelNode{}, k.noTunnel()
	}
	return k.tunnel.OpenTunnel(ctx, want)
}

// TunnelWire returns the number of a wire of the tunnel whose interface is in a
// namespace, as after a restart; false means that there is none.
func (k *Kernel) TunnelWire(ctx context.Context, key, wireID string) (number uint32, ok bool) {
	if k.tunnel == nil {
		return 0, false
	}
	for _, f := range k.linksOf(ctx, key, wireID) {
		status, exists, err := k.tunnel.ReadWire(ctx, key, f.Tag.Device().String())
		if err == nil && exists {
			return status.Wire, true
		}
	}
	return 0, false
}

// linksOf returns this forwarder's links of a wire in a namespace.
func (k *Kernel) linksOf(ctx context.Context, key, wireID string) []Found {
	ns, err := k.namespaces.Get(key)
	if err != nil || k.known(ns).hasNone(k.name, wireID) {
		return nil
	}
	found, err := k.adoptFrom(ctx, key)
	if err != nil {
		k.log.Warn("look for WireGuard device", "connection", wireID, "error", err)
	}
	return slices.DeleteFunc(found, func(f Found) bool { return f.Tag.ID != wireID })
}

// RenewTunnel forgets all sessions with the peer of w, if the last one is outlived.
func (k *Kernel) RenewTunnel(ctx context.Context, w plan.Wire) error {
	if k.tunnel == nil || w.Tunnel == nil {
		return k.noTunnel()
	}
	return k.tunnel.RenewTunnel(ctx, *w.Tunnel)
}

// addTunnel makes the interface of a wire of the tunnel.
func (c *call) addTunnel(t plan.AddTunnel) error {
	s := c.sites[t.NetNS]
	delete(s.index, t.Name)
	if err := c.k.tunnel.AddWire(c.ctx, s.ns, t.Name, t.Tag.String(), t.MTU, t.Ethernet, t.Tunnel); err != nil {
		return err
	}
	if t.MAC == nil {
		return nil
	}
	index, err := s.linkIndex(t.Name)
	if err != nil {
		return err
	}
	return s.nl.LinkSetHardwareAddr(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index, Name: t.Name}}, t.MAC)
}

// observeTunnel looks whether a TUN or TAP interface is a wire of the tunnel.
func (c *call) observeTunnel(key, tag string, o *plan.ObservedEnd) error {
	read := c.k.tunnel.ReadWire
	if c.look != nil {
		read = c.look.readWire
	}
	status, ok, err := read(c.ctx, key, tag)
	if err != nil || !ok {
		return err
	}
	o.LinkKind, o.Tunnel, o.LastHandshake = plan.LinkTunnel, &status.Tunnel, status.LastHandshake
	o.Keepalive = status.Keepalive
	o.PeerRx, o.PeerTx = uint64(status.RxBytes), uint64(status.TxBytes)
	return nil
}

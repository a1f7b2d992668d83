// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"time"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
)

// WireGuardBackend makes WireGuard devices: by the kernel's module, or by
// wireguard-go in a holder process. Package wireguard has both.
//
// A device stands in namespace ns under ifname while its UDP socket stays in
// the forwarder's own namespace. The tag (see [plan.Tag]) names the device for
// ever; a backend may use it as its own key. [Kernel] sets the ifalias,
// addresses and routes itself, and switches the device up after Configure.
//
// All methods are safe for concurrent use on different tags.
type WireGuardBackend interface {
	// Create makes the device, down and without a key. It fails with
	// nserr.NameTaken if ifname exists in ns.
	Create(ctx context.Context, ns *netns.Handle, ifname, tag string, mtu int) error
	// Configure sets exactly this configuration: other peers are removed.
	// What already is as desired stays untouched, sessions included.
	Configure(ctx context.Context, ns *netns.Handle, ifname, tag string, wg plan.WireGuard) error
	// Read returns the device as it is, its private key included; false means
	// that it does not exist.
	Read(ctx context.Context, ns *netns.Handle, ifname, tag string) (WireGuardStatus, bool, error)
	// Delete removes the device; one that does not exist, or whose namespace, of the
	// given key, is gone (then ns may be nil), is not an error. A device that a process
	// keeps alive is removed by every backend, one of the module by the module's.
	Delete(ctx context.Context, key string, ns *netns.Handle, ifname, tag string) error
	// Devices returns the devices that a process keeps alive, whoever's they are.
	// They keep their namespaces alive, too, after all that was in there has ended.
	Devices(ctx context.Context) ([]WireGuardDevice, error)
	// Kind is the link kind of its devices as rtnetlink names it: "wireguard"
	// for the kernel's module, "tun" for wireguard-go.
	Kind() string
}

// WireGuardDevice is where a device of userspace is.
type WireGuardDevice struct {
	Tag, NetNS, Name string // NetNS is a key as of a netns.Table
	Tunnel           bool   // it is no device of its own but a wire of the tunnel
}

// TunnelBackend is a WireGuardBackend that has wires share one device as well, the node's
// tunnel (docs/adr/0008). A wire of it is known by its tag and the key of its namespace, so
// that one can stand in the place to which it moves before it leaves the other. It is
// deleted and listed as if it were a device.
type TunnelBackend interface {
	WireGuardBackend
	// OpenTunnel returns the node's end of the tunnel, made as wanted if there is none.
	OpenTunnel(ctx context.Context, want plan.TunnelNode) (plan.TunnelNode, error)
	// AddWire makes a wire's interface, down; it leads nowhere. It makes the tunnel, too,
	// if there is none.
	AddWire(ctx context.Context, ns *netns.Handle, ifname, tag string, mtu int, ethernet bool, t plan.Tunnel) error
	// PointWire leads a wire to its other end. The peers of the tunnel are then those
	// which wires lead to; what is as desired stays untouched, sessions included.
	PointWire(ctx context.Context, key, tag string, t plan.Tunnel) error
	// ReadWire returns a wire as it is; false means that there is none.
	ReadWire(ctx context.Context, key, tag string) (TunnelStatus, bool, error)
	// ReadWires reads all wires, for those who want to know of many: by the function it
	// returns they are told as by ReadWire.
	ReadWires(ctx context.Context) (func(key, tag string) (TunnelStatus, bool), error)
	// RenewTunnel forgets all sessions with a peer if the last one is outlived.
	RenewTunnel(ctx context.Context, t plan.Tunnel) error
}

// TunnelStatus is a wire of the tunnel as it is.
type TunnelStatus struct {
	plan.Tunnel
	Keepalive        time.Duration // of the peer; 0: off
	LastHandshake    time.Time     // with the peer: zero: none yet
	RxBytes, TxBytes int64         // of this wire's packets
}

// WireGuardStatus is a WireGuard device as it is.
type WireGuardStatus struct {
	plan.WireGuard
	LastHandshake    time.Time // zero: none yet
	RxBytes, TxBytes int64     // of the peer, payload and WireGuard's own overhead
}

// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"context"

	"github.com/openvwire/nsm/forwarder/kernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/forwarder/wireguard/holder"
)

// Userspace makes devices of wireguard-go in a holder process, which outlives
// this one (package holder).
type Userspace struct {
	holder *holder.Client
	socket string
	wg     uapi

	peers peers // of the tunnel
}

var (
	_ Backend              = (*Userspace)(nil)
	_ kernel.TunnelBackend = (*Userspace)(nil)
)

// NewUserspace returns the backend that uses the holder described by cfg. The
// holder is adopted if it runs, and started with the first device if not.
func NewUserspace(ctx context.Context, cfg holder.ClientConfig) (*Userspace, error) {
	h, err := holder.NewClient(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &Userspace{holder: h, socket: cfg.Socket, peers: newPeers()}, nil
}

// Kind implements kernel.WireGuardBackend.
func (u *Userspace) Kind() string { return "tun" }

// Close implements Backend. The holder and its devices stay. It may be called more than once.
func (u *Userspace) Close() {
	u.peers.end()
	u.peers.waiting.Wait()
	u.holder.Close()
}

// Holder returns the client of the holder, for its status and list of devices.
func (u *Userspace) Holder() *holder.Client { return u.holder }

// Create implements kernel.WireGuardBackend. A device with this tag that is
// there already, in ns under ifname, is left as it is.
func (u *Userspace) Create(ctx context.Context, ns *netns.Handle, ifname, tag string, mtu int) error {
	_, err := u.holder.Create(ctx, ns, tag, ifname, mtu)
	return err
}

// Configure implements kernel.WireGuardBackend.
func (u *Userspace) Configure(ctx context.Context, _ *netns.Handle, _, tag string, wg plan.WireGuard) error {
	// If nobody answers the holder's client says why, and what is to be done.
	if _, err := u.holder.Running(ctx); err != nil {
		return err
	}
	return configure(ctx, u.wg, u.name(tag), wg)
}

// Read implements kernel.WireGuardBackend.
func (u *Userspace) Read(ctx context.Context, _ *netns.Handle, _, tag string) (kernel.WireGuardStatus, bool, error) {
	if running, err := u.holder.Running(ctx); err != nil || !running {
		return kernel.WireGuardStatus{}, false, err
	}
	return status(ctx, u.wg, u.name(tag))
}

// Delete implements kernel.WireGuardBackend.
func (u *Userspace) Delete(ctx context.Context, key string, _ *netns.Handle, _, tag string) error {
	if err := u.holder.Delete(ctx, tag); err != nil {
		return err
	}
	left, err := u.holder.Drop(ctx, wireTag(key, tag)) // takes the kernel 20 ms, others meanwhile too
	if err != nil {
		return err
	}
	u.peers.mu.Lock()
	defer u.peers.mu.Unlock()
	return u.forgetPeer(ctx, left)
}

// Devices implements kernel.WireGuardBackend.
func (u *Userspace) Devices(ctx context.Context) ([]kernel.WireGuardDevice, error) {
	all, err := devices(ctx, u.holder)
	if err != nil {
		return nil, err
	}
	_, wires, err := u.holder.Wires(ctx, "")
	for _, w := range wires {
		all = append(all, kernel.WireGuardDevice{Tag: tagOf(w), NetNS: w.NetNS, Name: w.Name, Tunnel: true})
	}
	return all, err
}

func devices(ctx context.Context, h *holder.Client) ([]kernel.WireGuardDevice, error) {
	list, err := h.List(ctx)
	var out []kernel.WireGuardDevice
	for _, d := range list {
		out = append(out, kernel.WireGuardDevice{Tag: d.Tag, NetNS: d.NetNS, Name: d.Name})
	}
	return out, err
}

// name returns the name of the device's configuration socket.
func (u *Userspace) name(tag string) string { return holder.DeviceName(u.socket, tag) }

// SPDX-License-Identifier: Apache-2.0

// Package wireguard makes WireGuard devices: by the kernel's module where it
// exists, by wireguard-go where not.
//
//	backend, err := wireguard.New(ctx, wireguard.Config{Namespaces: table, Socket: dir + "/wireguard.sock"})
//	defer backend.Close()
//	err = backend.Create(ctx, ns, "nsm-1", tag, 1420)
//	err = backend.Configure(ctx, ns, "nsm-1", tag, plan.WireGuard{…})
//
// Either way the device stands in the workload's namespace from the first
// moment, while its UDP socket is in the forwarder's, the underlay: the
// workload sees plain packets only, and needs no route to the other node. The
// kernel remembers the namespace from which a device was created for its
// socket (wireguard.com/netns); wireguard-go runs in a process that is there,
// see package holder. The module's are configured with wgctrl, the holder's by the
// protocol that wireguard-go has for that.
//
// A wire has one peer, which may use any address inside the tunnel: what
// addresses a wire carries is for its addresses and routes to say.
package wireguard

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/openvwire/nsm/forwarder/kernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/forwarder/wireguard/holder"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Backend makes WireGuard devices of one kind.
type Backend interface {
	kernel.WireGuardBackend
	// Close frees what the backend needs in this process. Devices stay.
	Close()
}

// Config configures New.
type Config struct {
	// Namespaces is the forwarder's table; its own namespace is the underlay.
	Namespaces *netns.Table
	// Socket is where the holder of userspace devices serves: the same path
	// after every restart, below the state directory.
	Socket string
	// Userspace makes wireguard-go the choice even where the module exists.
	Userspace bool
	// OnRestart, see holder.ClientConfig. Not used with the kernel's module.
	OnRestart func(context.Context)
	Logger    *slog.Logger // nil = slog.Default()
}

// New returns the kernel's module if it works here, otherwise wireguard-go.
func New(ctx context.Context, cfg Config) (Backend, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if !cfg.Userspace {
		err := Probe()
		if err == nil {
			cfg.Logger.Info("WireGuard is the kernel's")
			return NewModule(cfg.Namespaces.Self(), cfg.Socket), nil
		}
		cfg.Logger.Info("WireGuard is wireguard-go", "error", err)
	}
	return NewUserspace(ctx, holder.ClientConfig{
		Socket:    cfg.Socket,
		Underlay:  cfg.Namespaces.Self(),
		OnRestart: cfg.OnRestart,
		Logger:    cfg.Logger,
	})
}

// configure brings the device that client knows as name to the state wg.
func configure(ctx context.Context, client control, name string, wg plan.WireGuard) error {
	if err := check(wg); err != nil {
		return err
	}
	seen, err := client.Device(ctx, name)
	if err != nil {
		return configError(name, err)
	}
	set, needed := changes(wg, seen, time.Now())
	if !needed {
		return nil
	}
	if err := client.ConfigureDevice(name, set); err != nil {
		return configError(name, err)
	}
	return nil
}

// status reads the device that client knows as name; false means there is none.
func status(ctx context.Context, client control, name string) (kernel.WireGuardStatus, bool, error) {
	dev, err := client.Device(ctx, name)
	if gone(err) {
		return kernel.WireGuardStatus{}, false, nil
	}
	if err != nil {
		return kernel.WireGuardStatus{}, false, configError(name, err)
	}
	return statusOf(dev), true, nil
}

// gone reports whether err says that there is no such device: no link, no
// configuration socket, or one left behind by a holder that was killed.
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}

// configError gives an error of a control its reason.
func configError(name string, err error) error {
	switch {
	case gone(err):
		return nserr.KernelFailed.Errorf("WireGuard device %s does not exist: %w", name, err)
	case errors.Is(err, unix.EADDRINUSE):
		return nserr.AddressInUse.Errorf("UDP port of WireGuard device %s: %w", name, err).
			WithFix("choose another port, or stop the process that has it: ss -ulpn")
	case errors.Is(err, unix.EPERM):
		return nserr.NotPrivileged.Errorf("WireGuard device %s: %w", name, err)
	default:
		return nserr.KernelFailed.Errorf("WireGuard device %s: %w", name, err)
	}
}

// key converts for wgctrl.
func key(k [32]byte) wgtypes.Key { return wgtypes.Key(k) }

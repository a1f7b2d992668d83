// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/openvwire/nsm/forwarder/kernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/forwarder/wireguard/holder"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Module makes devices of the kernel's WireGuard module. They need no process
// of ours and outlive them all.
//
// A device opens its UDP socket when it is switched up: a port that is taken
// is reported then, not by Configure, unless the device is up already.
type Module struct {
	underlay *netns.Handle
	old      *holder.Client // of devices from a time when wireguard-go made them
}

var _ Backend = (*Module)(nil)

// NewModule returns the backend whose devices have their UDP sockets in
// underlay. See Probe for whether it works. At socket a holder may serve that has
// devices of a time when the module was not used; it ends when they are deleted.
func NewModule(underlay *netns.Handle, socket string) *Module {
	return &Module{underlay: underlay, old: holder.Visit(socket)}
}

// Probe returns nil if the kernel's module works here, otherwise why not. It
// makes a device in a namespace of its own, which also loads the module where
// that is allowed.
func Probe() error {
	f, err := netns.New()
	if err != nil {
		return fmt.Errorf("cannot try the kernel's module: %w", err)
	}
	table, err := netns.NewTableAt(f)
	if err != nil {
		return err
	}
	defer table.Close() // deletes the device
	return table.Self().Do(func() error {
		const name = "wg0"
		switch err := netlink.LinkAdd(wgLink(name, 1420)); {
		case errors.Is(err, unix.EOPNOTSUPP):
			return errors.New("the kernel has no WireGuard module (CONFIG_WIREGUARD)")
		case errors.Is(err, unix.EPERM):
			return errors.New("no permission to make a WireGuard device (CAP_NET_ADMIN)")
		case err != nil:
			return fmt.Errorf("making a WireGuard device: %w", err)
		}
		client, err := wgctrl.New()
		if err != nil {
			return fmt.Errorf("configuring a WireGuard device: %w", err)
		}
		defer client.Close()
		if _, err := client.Device(name); err != nil {
			return fmt.Errorf("reading a WireGuard device: %w", err)
		}
		return nil
	})
}

func wgLink(name string, mtu int) *netlink.Wireguard {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	return &netlink.Wireguard{LinkAttrs: attrs}
}

// Kind implements kernel.WireGuardBackend.
func (m *Module) Kind() string { return "wireguard" }

// Close implements Backend.
func (m *Module) Close() {}

// Create implements kernel.WireGuardBackend. The request is sent from the
// underlay and names the workload's namespace: the kernel makes the device
// there and its socket here.
func (m *Module) Create(ctx context.Context, ns *netns.Handle, ifname, tag string, mtu int) error {
	if err := ctx.Err(); err != nil {
		return nserr.TimedOut.Errorf("create WireGuard device %s: %w", ifname, err)
	}
	err := m.createIn(ns, wgLink(ifname, mtu))
	if !errors.Is(err, unix.EEXIST) {
		return linkError(ns, ifname, err)
	}
	if exists, lookErr := linkKind(ns, ifname); lookErr != nil || exists != "" {
		return linkError(ns, ifname, errors.Join(lookErr, err))
	}
	// Kernels before 6.15 refuse the name if it is taken in the namespace that
	// sends the request. Go round it by a name that is not.
	h := fnv.New64a()
	_, _ = h.Write([]byte(tag))
	temporary := fmt.Sprintf("nsm%012x", h.Sum64()&(1<<48-1))
	if err := m.createIn(ns, wgLink(temporary, mtu)); err != nil && !errors.Is(err, unix.EEXIST) {
		return linkError(ns, ifname, err)
	}
	err = ns.Do(func() error {
		link, err := netlink.LinkByName(temporary)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetName(link, ifname); err != nil {
			return errors.Join(err, netlink.LinkDel(link))
		}
		return nil
	})
	return linkError(ns, ifname, err)
}

func (m *Module) createIn(ns *netns.Handle, link *netlink.Wireguard) error {
	return ns.Control(func(fd int) error {
		link.Namespace = netlink.NsFd(fd)
		return m.underlay.Do(func() error { return netlink.LinkAdd(link) })
	})
}

// linkKind returns the rtnetlink kind of an interface, "" if there is none.
func linkKind(ns *netns.Handle, ifname string) (kind string, err error) {
	err = ns.Do(func() error {
		link, err := netlink.LinkByName(ifname)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err == nil {
			kind = link.Type()
		}
		return err
	})
	return kind, err
}

// kernelControl is wgctrl, to which the kernel answers at once.
type kernelControl struct{ *wgctrl.Client }

func (c kernelControl) Device(_ context.Context, name string) (*wgtypes.Device, error) {
	return c.Client.Device(name)
}

// Configure implements kernel.WireGuardBackend.
func (m *Module) Configure(ctx context.Context, ns *netns.Handle, ifname, _ string, wg plan.WireGuard) error {
	return ns.Do(func() error {
		client, err := wgctrl.New()
		if err != nil {
			return configError(ifname, err)
		}
		defer client.Close()
		return configure(ctx, kernelControl{client}, ifname, wg)
	})
}

// Read implements kernel.WireGuardBackend.
func (m *Module) Read(ctx context.Context, ns *netns.Handle, ifname, _ string) (s kernel.WireGuardStatus, found bool, err error) {
	err = ns.Do(func() error {
		client, err := wgctrl.New()
		if err != nil {
			return configError(ifname, err)
		}
		defer client.Close()
		s, found, err = status(ctx, kernelControl{client}, ifname)
		return err
	})
	return s, found, err
}

// Devices implements kernel.WireGuardBackend.
func (m *Module) Devices(ctx context.Context) ([]kernel.WireGuardDevice, error) {
	return devices(ctx, m.old)
}

// Delete implements kernel.WireGuardBackend. An interface of another kind that
// bears the name stays.
func (m *Module) Delete(ctx context.Context, key string, ns *netns.Handle, ifname, tag string) error {
	for _, old := range []string{tag, wireTag(key, tag)} {
		if err := m.old.Delete(ctx, old); err != nil {
			return err
		}
	}
	err := ns.Do(func() error {
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		if link.Type() != m.Kind() {
			return nil
		}
		return netlink.LinkDel(link)
	})
	if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) || errors.Is(err, nserr.NoNetNS) {
		return nil
	}
	return linkError(ns, ifname, err)
}

// linkError gives an error of rtnetlink its reason.
func linkError(ns *netns.Handle, ifname string, err error) error {
	var known *nserr.Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, unix.EEXIST):
		return nserr.NameTaken.Errorf("interface %s exists in namespace %s: %w", ifname, ns.Key(), err)
	case errors.Is(err, unix.EPERM):
		return nserr.NotPrivileged.Errorf("WireGuard device %s: %w", ifname, err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return nserr.KernelFailed.Errorf("WireGuard device %s: %w", ifname, err).
			WithFix("load the module (modprobe wireguard), or let nsm use wireguard-go")
	default:
		return nserr.KernelFailed.Errorf("WireGuard device %s: %w", ifname, err)
	}
}

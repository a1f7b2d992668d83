// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/openvwire/nsm/forwarder/wireguard/mux"
	"github.com/openvwire/nsm/sdk/nserr"
)

// tunnel is a TUN device in another namespace than this process's.
//
// wireguard-go's own polls every device once a second and asks for the MTU in whatever
// namespace it happens to run. Here the socket ctl, opened in the device's
// namespace, asks there, and refresh is called whenever the forwarder
// configures or reads the device.
type tunnel struct {
	*mux.Single
	name string

	mu     sync.Mutex     // guards the rest
	ctl    int            // AF_INET socket in the device's namespace; -1 when closed
	mtu    int            // bytes, last seen
	events chan tun.Event // capacity 1: a pending update covers later ones
}

// createTUN creates the TUN device name, down, in the calling thread's network
// namespace. On failure nothing is left behind.
func createTUN(name string, mtu int, scratch *mux.Scratch) (_ *tunnel, err error) {
	fd, ctl, err := openTUN(name, mtu, unix.IFF_TUN)
	if err != nil {
		return nil, err
	}
	single, err := mux.NewSingle(fd, scratch)
	if err != nil {
		_ = unix.Close(ctl)
		return nil, err
	}
	return &tunnel{Single: single, name: name, ctl: ctl, mtu: mtu, events: make(chan tun.Event, 1)}, nil
}

// openTUN creates the TUN or TAP device name, down, in the calling thread's network
// namespace. It lives as long as the descriptor fd; ctl is a socket in that namespace.
// On failure nothing is left behind.
func openTUN(name string, mtu int, kind uint16) (fd, ctl int, err error) {
	if strings.ContainsAny(name, "/% \t\n") || name == "" || len(name) >= unix.IFNAMSIZ {
		return -1, -1, nserr.BadName.Errorf("interface name %q", name)
	}
	ctl, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, nserr.KernelFailed.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(ctl)
		}
	}()
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, -1, nserr.BadName.Errorf("interface name %q: %w", name, err)
	}
	if unix.IoctlIfreq(ctl, unix.SIOCGIFINDEX, ifr) == nil {
		return -1, -1, nserr.NameTaken.Errorf("interface %s exists", name)
	}

	fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, nserr.KernelFailed.Errorf("open /dev/net/tun: %w", err).
			WithFix("load the tun module (modprobe tun) and give the forwarder access to /dev/net/tun")
	}
	// IFF_VNET_HDR lets segments of up to 64 KiB pass in one read or write:
	// without it TCP through the tunnel is several times slower.
	ifr.SetUint16(kind | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
			return -1, -1, nserr.NameTaken.Errorf("create TUN device %s: %w", name, err)
		}
		return -1, -1, nserr.KernelFailed.Errorf("create TUN device %s: %w", name, err)
	}
	ifr.SetUint32(uint32(mtu))
	if err := unix.IoctlIfreq(ctl, unix.SIOCSIFMTU, ifr); err != nil {
		_ = unix.Close(fd)
		return -1, -1, nserr.KernelFailed.Errorf("set MTU %d on %s: %w", mtu, name, err)
	}
	return fd, ctl, nil
}

// MTU returns the device's MTU in bytes as the kernel has it now.
func (t *tunnel) MTU() (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mtuLocked()
}

func (t *tunnel) mtuLocked() (int, error) {
	if t.ctl < 0 {
		return 0, os.ErrClosed
	}
	ifr, err := unix.NewIfreq(t.name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(t.ctl, unix.SIOCGIFMTU, ifr); err != nil {
		return 0, fmt.Errorf("MTU of %s: %w", t.name, err)
	}
	return int(ifr.Uint32()), nil
}

// Name implements tun.Device.
func (t *tunnel) Name() (string, error) { return t.name, nil }

// Events tells wireguard-go when the MTU has changed. It ends with Close.
func (t *tunnel) Events() <-chan tun.Event { return t.events }

// refresh announces the MTU if it is no longer the one last seen. WireGuard
// pads packets to 16 bytes, but never beyond the MTU: a stale one would make
// full packets too large for the underlay.
func (t *tunnel) refresh() {
	t.mu.Lock()
	defer t.mu.Unlock()
	mtu, err := t.mtuLocked()
	if err != nil || mtu == t.mtu {
		return
	}
	t.mtu = mtu
	select {
	case t.events <- tun.EventMTUUpdate:
	default:
	}
}

// Close deletes the interface. It is idempotent.
func (t *tunnel) Close() error {
	t.mu.Lock()
	if t.ctl >= 0 {
		_ = unix.Close(t.ctl)
		t.ctl = -1
		close(t.events)
	}
	t.mu.Unlock()
	return t.Single.Close()
}

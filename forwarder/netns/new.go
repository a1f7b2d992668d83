// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

// RunDir is where `ip netns` keeps named namespaces.
const RunDir = "/run/netns"

// New makes a network namespace without a name, its loopback device up. It
// lives until the file is closed and no process is left inside.
func New() (*os.File, error) {
	var ns *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			if errors.Is(err, unix.EPERM) {
				return nserr.NotPrivileged.Errorf("make a network namespace: %w", err)
			}
			return nserr.KernelFailed.Errorf("make a network namespace: %w", err)
		}
		if err := loopbackUp(); err != nil {
			return nserr.KernelFailed.Errorf("ip link set lo up: %w", err)
		}
		var err error
		ns, err = Current()
		return err
	})
	return ns, err
}

// loopbackUp switches on lo in the thread's namespace (netdevice(7)).
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, lo); err != nil {
		return err
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo)
}

// NewNamed makes a network namespace that `ip netns` knows under name. It
// lives until [DeleteNamed], whatever becomes of the returned file.
func NewNamed(name string) (*os.File, error) {
	path, err := namedPath(name)
	if err != nil {
		return nil, err
	}
	if err := prepareRunDir(); err != nil {
		return nil, nserr.KernelFailed.Errorf("prepare %s: %w", RunDir, err)
	}
	mountPoint, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0)
	if err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil, nserr.NameTaken.Errorf("network namespace %q exists", name)
		}
		return nil, nserr.KernelFailed.Errorf("make network namespace %q: %w", name, err)
	}
	mountPoint.Close()
	ns, err := New()
	if err != nil {
		os.Remove(path)
		return nil, err
	}
	if err := unix.Mount(procPath(ns), path, "none", unix.MS_BIND, ""); err != nil {
		ns.Close()
		os.Remove(path)
		return nil, nserr.KernelFailed.Errorf("mount network namespace %q: %w", name, err)
	}
	return ns, nil
}

// OpenNamed opens a namespace that NewNamed or `ip netns add` made.
func OpenNamed(name string) (*os.File, error) {
	path, err := namedPath(name)
	if err != nil {
		return nil, err
	}
	return Open(path)
}

// DeleteNamed removes the name; the namespace goes when nobody uses it any
// more. A name that does not exist is not an error.
func DeleteNamed(name string) error {
	path, err := namedPath(name)
	if err != nil {
		return err
	}
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return nserr.KernelFailed.Errorf("unmount network namespace %q: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nserr.KernelFailed.Errorf("delete network namespace %q: %w", name, err)
	}
	return nil
}

func namedPath(name string) (string, error) {
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return "", nserr.NoNetNS.Errorf("%q cannot name a network namespace", name)
	}
	return filepath.Join(RunDir, name), nil
}

// prepareRunDir makes RunDir a shared mount as `ip netns add` does, so that
// names made in one mount namespace show, and can be deleted, in all others.
func prepareRunDir() error {
	if err := os.MkdirAll(RunDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", RunDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if err == unix.EINVAL { // not a mount point yet
		if err := unix.Mount(RunDir, RunDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		err = unix.Mount("", RunDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	return err
}

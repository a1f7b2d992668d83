// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

// socketMode lets workloads of any user connect: who they are is a matter of
// mutual TLS, not of file permissions.
const socketMode = 0o666

// Listen listens on unix:///path or tcp://host:port.
//
// The directory of a Unix socket is created when missing. A socket that a dead
// process left there is removed; a live one, like a port that is taken, is
// nserr.AddressInUse; a place where this user may not listen is
// nserr.NotPrivileged. Two processes that start at the same moment get one
// listener between them: the check and the bind happen under a lock on the
// directory.
func Listen(ctx context.Context, rawURL string) (net.Listener, error) {
	a, err := parseAddress(rawURL)
	if err != nil {
		return nil, err
	}
	if a.network == "unix" {
		return listenUnix(ctx, a.name)
	}
	return bind(ctx, a)
}

func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, cannotListen("directory of socket "+path, err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, cannotListen("directory of socket "+path, err)
	}
	defer unlock()

	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	l, err := bind(ctx, address{"unix", path})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, socketMode); err != nil {
		l.Close()
		return nil, cannotListen("mode of socket "+path, err)
	}
	return l, nil
}

func bind(ctx context.Context, a address) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, a.network, a.name)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, nserr.AddressInUse.Errorf("cannot listen: %w", err)
	case err != nil:
		return nil, cannotListen("cannot listen", err)
	}
	return l, nil
}

func cannotListen(what string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return nserr.NotPrivileged.Errorf("%s: %w", what, err).WithFix("run as root, or listen where this user may")
	}
	return nserr.BadFlag.Errorf("%s: %w", what, err)
}

// lockDir takes an exclusive flock(2) on a directory and leaves nothing in it.
// It is held for the time of one connect and one bind.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return func() { d.Close() }, nil // closing the only descriptor releases the lock
}

// removeStale removes the socket at path if nobody listens on it. Only a refused
// connection proves that; everything else counts as alive.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && info.Mode().Type() != fs.ModeSocket {
		return nserr.AddressInUse.Errorf("%s exists and is not a socket", path)
	}
	c, err := (&net.Dialer{Timeout: probeTimeout}).DialContext(ctx, "unix", path)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return nserr.AddressInUse.Errorf("another process listens on %s", path)
	}
	if err := os.Remove(path); err != nil {
		return cannotListen("stale socket "+path+" cannot be removed", err)
	}
	return nil
}

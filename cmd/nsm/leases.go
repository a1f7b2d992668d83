// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/ipam"
	"github.com/openvwire/nsm/sdk/nserr"
)

const (
	leaseSuffix = ".leases"
	// leasesLast is when a lease file that nobody has written to is of no use to
	// anybody: no token lives that long.
	leasesLast = 48 * time.Hour
)

// openLeases opens the lease file of an endpoint; nil means that there is none. A
// directory that nobody has named need not be usable, and a disk that is full or broken
// keeps nobody from serving.
func openLeases(dir, name string, pool *ipam.Pool) (*endpoint.Leases, error) {
	if dir == "none" {
		return nil, nil
	}
	named := dir != ""
	leases, err := func() (*endpoint.Leases, error) {
		if !named {
			var err error
			if dir, err = stateHome("serve"); err != nil {
				return nil, err
			}
		}
		removeOldLeases(dir, time.Now())
		return endpoint.OpenLeases(filepath.Join(dir, url.PathEscape(name)+leaseSuffix), pool, slog.Default())
	}()
	if err != nil && (!named || broken(err)) {
		slog.Warn("wires may get other addresses after a restart of this endpoint", "error", err)
		return nil, nil
	}
	return leases, err
}

// broken reports whether an error is that of a disk, and not of whoever has named a
// place on it.
func broken(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO) || errors.Is(err, unix.EROFS)
}

// stateHome is where a command keeps what a restart must not lose if nobody names a
// place.
func stateHome(command string) (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "nsm", command), nil
	}
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/nsm", command), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", nserr.StateDir.Errorf("no place for a state directory: %w", err).WithFix("name one with --state-dir")
	}
	return filepath.Join(home, ".local/state/nsm", command), nil
}

// removeOldLeases removes the lease files of endpoints that are long gone. What is in
// use is locked, and stays.
func removeOldLeases(dir string, now time.Time) {
	files, _ := filepath.Glob(filepath.Join(dir, "*"+leaseSuffix))
	for _, path := range files {
		if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() || now.Sub(info.ModTime()) < leasesLast {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				slog.Debug("old lease file stays", "file", path, "error", err)
			}
		}
		_ = f.Close()
	}
}

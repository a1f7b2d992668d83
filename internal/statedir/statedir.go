// SPDX-License-Identifier: Apache-2.0

// Package statedir keeps the few files that a daemon must find again after a
// restart: keys, certificates, small records.
//
// Files are replaced whole and atomically, so a crash or a full disk leaves the
// previous contents; they are readable by their owner alone; and one directory
// belongs to one process at a time.
//
//	dir, err := statedir.Open("/var/lib/networkservicemesh/authority")
//	…
//	defer dir.Close()
//	err = dir.Write("ca.pem", data)
//
// Every error of this package has the reason [nserr.StateDir], but [nserr.NotPrivileged]
// if this user may not have the directory; a file that does not exist is found with errors.Is(err, fs.ErrNotExist).
package statedir

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/openvwire/nsm/sdk/nserr"
)

// lockFile is what the owner of a directory holds locked. The lock is the
// kernel's (flock), so it goes with the process however that ends.
const lockFile = "lock"

// maxFile bounds what Read accepts, bytes. State files are small; anything
// larger is not ours.
const maxFile = 16 << 20

// Dir is an open state directory. Its methods may be called concurrently,
// though not for the same file.
type Dir struct {
	path string
	lock *os.File
}

// Open makes the directory if it is missing (mode 0700) and locks it for this
// process. It refuses a directory in which other users may replace files.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, cannotOpen(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, cannotOpen(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, cannotOpen(err)
	}
	if !info.IsDir() {
		return nil, nserr.StateDir.Errorf("state directory %s is not a directory", path)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, nserr.StateDir.Errorf("state directory %s is writable by others (mode %04o)", path, info.Mode().Perm()).
			WithFix("chmod 700 %s", path)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, cannotOpen(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, nserr.StateDir.Errorf("state directory %s is in use by another process", path).
				WithFix("stop the other process, or choose another directory")
		}
		return nil, nserr.StateDir.Errorf("lock %s: %w", path, err)
	}
	return &Dir{path: path, lock: lock}, nil
}

func cannotOpen(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return nserr.NotPrivileged.Errorf("state directory: %w", err).WithFix("run as root, or name a directory of your own with --state-dir")
	}
	return nserr.StateDir.Errorf("state directory: %w", err)
}

// Path returns where a file of this directory is, for messages.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Close unlocks the directory.
func (d *Dir) Close() error { return d.lock.Close() }

// Read returns the contents of a file. It refuses one that other users may
// read or write, since what is kept here is secret.
func (d *Dir) Read(name string) ([]byte, error) {
	f, err := os.Open(d.Path(name))
	if err != nil {
		return nil, nserr.StateDir.Errorf("%w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nserr.StateDir.Errorf("%w", err)
	}
	if mode := info.Mode(); mode.Perm()&0o077 != 0 || !mode.IsRegular() {
		return nil, nserr.StateDir.Errorf("%s is open to other users (mode %04o)", f.Name(), mode.Perm()).
			WithFix("if nobody else has read it: chmod 600 %s", f.Name())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nserr.StateDir.Errorf("%w", err)
	}
	if len(data) > maxFile {
		return nil, nserr.StateDir.Errorf("%s is larger than %d bytes", f.Name(), maxFile)
	}
	return data, nil
}

// Write replaces a file (mode 0600). When it returns nil the contents survive
// a power cut; when it fails the previous contents are still there.
func (d *Dir) Write(name string, data []byte) (err error) {
	f, err := os.CreateTemp(d.path, "."+name+".*") // CreateTemp's mode is 0600
	if err != nil {
		return nserr.StateDir.Errorf("write %s: %w", d.Path(name), err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), d.Path(name))
	}
	if err == nil {
		err = d.sync()
	}
	if err != nil {
		return nserr.StateDir.Errorf("write %s: %w", d.Path(name), err)
	}
	return nil
}

// sync makes a rename in the directory durable.
func (d *Dir) sync() error {
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// SPDX-License-Identifier: Apache-2.0

// Package netns opens, names, makes and enters network namespaces.
//
// A namespace is known by its key "dev:ino": the device and inode numbers of
// its file, the same two numbers that travel in a mechanism's inodeURL
// (protocol §2.13, §2.14). A key stays unique only while something keeps the
// namespace alive, so whoever works with one holds it open, in a [Table]:
//
//	key, err := table.Add(file) // the table owns file now
//	defer table.Release(key)
//	ns, err := table.Get(key)
//	err = ns.Do(func() error { … }) // runs inside
//
// The package neither creates nor changes links, save for the loopback device
// of a namespace it makes. Package kernel does that.
package netns

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/internal/osthread"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Handle is an open network namespace. It is safe for concurrent use. After the
// last Release of its key Control and Do fail with [nserr.NoNetNS], and so do
// those of a nil Handle.
type Handle struct {
	key   string
	file  *os.File
	notes sync.Map // by owner, see Note
}

// Key returns "dev:ino", both decimal.
func (h *Handle) Key() string { return h.key }

// Note returns what owner has noted about the namespace, or what first returns
// if it has noted nothing. The note goes with the handle: a namespace that gets
// the same key later starts without.
func (h *Handle) Note(owner any, first func() any) any {
	if note, ok := h.notes.Load(owner); ok {
		return note
	}
	note, _ := h.notes.LoadOrStore(owner, first())
	return note
}

// File returns the open namespace. It belongs to the handle: do not close it,
// and prefer [Handle.Control] to its Fd method, which a Release can outrun.
func (h *Handle) File() *os.File { return h.file }

// Control calls f with the namespace's descriptor, which stays open until f
// returns even if the handle is released meanwhile.
func (h *Handle) Control(f func(fd int) error) error {
	if h == nil {
		return nserr.NoNetNS.Errorf("no network namespace")
	}
	raw, err := h.file.SyscallConn()
	if err != nil {
		return nserr.NoNetNS.Errorf("namespace %s: %w", h.key, err)
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return nserr.NoNetNS.Errorf("namespace %s is released: %w", h.key, err)
	}
	return ferr
}

// Do calls f on a thread that is inside the namespace and returns f's error.
// Sockets that f opens stay in the namespace. f must not start goroutines and
// expect them to run there.
//
// f runs on a goroutine and thread of its own. When the thread cannot be
// switched back it is discarded with that goroutine, so that no other
// goroutine ever runs in a foreign namespace.
func (h *Handle) Do(f func() error) error {
	return onThread(func() error {
		err := h.Control(func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) })
		if err != nil {
			return enterError(err)
		}
		return f()
	})
}

// onThread calls f on a thread of its own and restores the thread's network
// namespace afterwards. f may change it.
func onThread(f func() error) error {
	err := fmt.Errorf("netns: the function did not return")
	osthread.Run(func() (clean bool) {
		home, openErr := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if openErr != nil {
			err = nserr.Internal.Errorf("open own network namespace: %w", openErr)
			return true
		}
		defer func() {
			clean = unix.Setns(home, unix.CLONE_NEWNET) == nil
			unix.Close(home)
		}()
		err = f()
		return clean
	})
	return err
}

func enterError(err error) error {
	if coded := (*nserr.Error)(nil); errors.As(err, &coded) {
		return err
	}
	if errors.Is(err, unix.EPERM) {
		return nserr.NotPrivileged.Errorf("enter network namespace: %w", err)
	}
	return nserr.NoNetNS.Errorf("enter network namespace: %w", err)
}

// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Open opens the namespace at path: a bind mount such as /run/netns/blue, or
// /proc/PID/ns/net. Anything else is refused with [nserr.NoNetNS].
func Open(path string) (*os.File, error) {
	// O_PATH has no side effects, whatever path is; reopen looks before it opens.
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			return nil, nserr.NotPrivileged.Errorf("open network namespace %s: %w", path, err)
		}
		return nil, nserr.NoNetNS.Errorf("open network namespace %s: %w", path, err)
	}
	return reopen(os.NewFile(uintptr(fd), path))
}

// Current opens the namespace of the calling thread.
func Current() (*os.File, error) { return Open("/proc/thread-self/ns/net") }

// OfPID opens the namespace of a process.
func OfPID(pid int) (*os.File, error) {
	return Open("/proc/" + strconv.Itoa(pid) + "/ns/net")
}

// IsNetNS reports whether f, which may be an O_PATH descriptor, is a network
// namespace.
func IsNetNS(f *os.File) bool {
	if !onNSFS(f) {
		return false
	}
	g, err := os.Open(procPath(f))
	if err != nil {
		return false
	}
	defer g.Close()
	return isNetNS(g)
}

// Key returns the "dev:ino" of an open namespace.
func Key(f *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", nserr.NoNetNS.Errorf("stat network namespace: %w", err)
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

// reopen returns f if it can be entered, or the same namespace opened for
// reading if f is an O_PATH descriptor; in all other cases f is closed.
func reopen(f *os.File) (*os.File, error) {
	if f == nil {
		return nil, nserr.NoNetNS.Errorf("no network namespace given")
	}
	// Ask for the file system first: opening a stranger's FIFO or device could
	// block or have effects, opening a file of nsfs cannot.
	if !onNSFS(f) {
		f.Close()
		return nil, nserr.NoNetNS.Errorf("%s is not a network namespace", f.Name())
	}
	if isNetNS(f) {
		return f, nil
	}
	g, err := os.Open(procPath(f))
	f.Close()
	if err != nil {
		return nil, nserr.NoNetNS.Errorf("open network namespace: %w", err)
	}
	if !isNetNS(g) {
		g.Close()
		return nil, nserr.NoNetNS.Errorf("%s is a namespace, but not a network namespace", f.Name())
	}
	return g, nil
}

func procPath(f *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
}

func onNSFS(f *os.File) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// isNetNS asks by ioctl (ioctl_ns(2)), which an O_PATH descriptor refuses.
func isNetNS(f *os.File) bool {
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	return err == nil && kind == unix.CLONE_NEWNET
}

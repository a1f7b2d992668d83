// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

// inode identifies an open file across processes of one machine. It is a map key
// and travels as inode://dev/ino, both decimal (§2.14).
type inode struct{ dev, ino uint64 }

const inodeScheme = "inode://"

func (i inode) String() string {
	return inodeScheme + strconv.FormatUint(i.dev, 10) + "/" + strconv.FormatUint(i.ino, 10)
}

// InodeURL returns the name under which f travels in a message: inode://dev/ino.
func InodeURL(f *os.File) (string, error) {
	i, err := inodeOf(f)
	if err != nil {
		return "", err
	}
	return i.String(), nil
}

func inodeOf(f *os.File) (i inode, err error) {
	err = control(f, func(fd int) (err error) {
		i, err = inodeAt(fd)
		return err
	})
	if err != nil {
		return inode{}, nserr.NoDescriptor.Errorf("fstat %s: %w", f.Name(), err)
	}
	return i, nil
}

// inodeAt is inodeOf of a descriptor.
func inodeAt(fd int) (inode, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return inode{}, err
	}
	return inode{uint64(st.Dev), st.Ino}, nil
}

// closesAtOnce reports whether closing fd waits for nobody: it is one of a namespace, or was
// opened with O_PATH, which is no more than a name. Peers have reason to send such ones only.
func closesAtOnce(fd int, i inode) bool {
	if i.dev == namespaces() {
		return true
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_PATH != 0
}

// namespaces is the device of namespaces (namespaces(7)), which is none that can be mounted.
var namespaces = sync.OnceValue(func() uint64 {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0 // no file's
	}
	return uint64(st.Dev)
})

// control runs do with f's descriptor, which stays open meanwhile.
func control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	if err := raw.Control(func(fd uintptr) { doErr = do(int(fd)) }); err != nil {
		return err
	}
	return doErr
}

// parseInodeURL is the inverse of inode.String.
func parseInodeURL(s string) (inode, error) {
	rest, ok := strings.CutPrefix(s, inodeScheme)
	if !ok {
		return inode{}, nserr.NoDescriptor.Errorf("%q does not name a file descriptor", s).WithFix("write inode://DEV/INO")
	}
	devText, inoText, _ := strings.Cut(rest, "/")
	dev, devErr := strconv.ParseUint(devText, 10, 64)
	ino, inoErr := strconv.ParseUint(inoText, 10, 64)
	if devErr != nil || inoErr != nil {
		return inode{}, nserr.NoDescriptor.Errorf("%q does not name a file descriptor", s).WithFix("write inode://DEV/INO")
	}
	return inode{dev, ino}, nil
}

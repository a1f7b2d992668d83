// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Only an address at which nobody listens is refused.
func TestRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as a process that is killed leaves it
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	inode, err := InodeURL(file)
	if err != nil {
		t.Fatal(err)
	}
	s := NewSockets()
	defer s.Hold(inode, file)()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	urls := []string{inode, "unix://" + path, "tcp://" + tcp.Addr().String()}
	for _, url := range urls {
		if s.Refused(t.Context(), url) {
			t.Errorf("%s is refused, and somebody listens", url)
		}
	}
	for _, url := range []string{"inode://1/2", "inproc://x", "", "http://x"} {
		if s.Refused(t.Context(), url) {
			t.Errorf("%q is refused; nobody can know", url)
		}
	}
	l.Close()
	tcp.Close()
	for _, url := range append(urls, "unix://"+path+".gone") {
		if !s.Refused(t.Context(), url) {
			t.Errorf("%s is not refused, and nobody listens", url)
		}
	}
	if _, err := s.connect(t.Context(), inode); err == nil || !strings.Contains(err.Error(), inode) || strings.Contains(err.Error(), "/proc") {
		t.Errorf("whoever is refused reads %v", err)
	}
}

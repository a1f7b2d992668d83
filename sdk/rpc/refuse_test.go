// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

// What nobody has reason to send is closed, and whoever waits for it is told why.
func TestUnfitDescriptors(t *testing.T) {
	a, b := socketPair(t)
	receiver := fileConnOf(t, b)
	defer receiver.Close()
	file, err := os.Open(tempFile(t, "").Name())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	socket, other := socketPair(t)
	defer socket.Close()
	defer other.Close()
	socketFile, err := socket.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socketFile.Close()
	for what, f := range map[string]*os.File{"a file that is open": file, "a socket": socketFile} {
		if _, _, err := a.WriteMsgUnix([]byte("x"), unix.UnixRights(int(f.Fd())), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := receiver.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		i, err := inodeOf(f)
		if err != nil {
			t.Fatal(err)
		}
		_, err = receiver.inbox.claim(t.Context(), i)
		if !errors.Is(err, nserr.NoDescriptor) || !strings.Contains(err.Error(), "O_PATH") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Descriptors whose close takes as long as their sender likes hold a few threads, and its own
// connection; others' are received as ever.
func TestLingeringDescriptors(t *testing.T) {
	a, b := socketPair(t)
	receiver := fileConnOf(t, b)
	defer receiver.Close()
	closing := receiver.inbox.refusal
	number := 2 * cap(closing)
	var ends []func()
	for range number {
		fd, end := lingering(t)
		ends = append(ends, end)
		if _, _, err := a.WriteMsgUnix([]byte("x"), unix.UnixRights(fd), nil); err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd) // the last one is under way
	}
	read := make(chan error, 1)
	go func() {
		for range number {
			if _, err := receiver.Read(make([]byte, 1)); err != nil {
				read <- err
				return
			}
		}
		read <- nil
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for len(closing) < cap(closing) {
		select {
		case err := <-read:
			t.Fatalf("all are read, with %d that close: %v", len(closing), err)
		case <-tick.C:
		}
	}

	c, d := socketPair(t)
	sender, other := fileConnOf(t, c), fileConnOf(t, d)
	defer sender.Close()
	defer other.Close()
	f := tempFile(t, "")
	if err := sender.send([]*os.File{f}); err != nil {
		t.Fatal(err)
	}
	if _, err := sender.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	i, _ := inodeOf(f)
	got, err := other.inbox.claim(t.Context(), i)
	if err != nil {
		t.Fatal(err)
	}
	got.Close()
	if n := len(closing); n != cap(closing) {
		t.Errorf("%d close meanwhile, want %d", n, cap(closing))
	}
	for _, end := range ends {
		end()
	}
	if err := <-read; err != nil {
		t.Error(err)
	}
}

// lingering returns a socket whose last close waits for the other end, which does not read what
// it was sent, until end resets the connection.
func lingering(t *testing.T) (fd int, end func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() { far.Close() }) // with unread bytes: a reset
	t.Cleanup(end)
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err = unix.Dup(int(f.Fd()))
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	for err == nil {
		_, err = unix.Write(fd, make([]byte, 1<<16))
	}
	if err != unix.EAGAIN {
		t.Fatal(err)
	}
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 3600}); err != nil {
		t.Fatal(err)
	}
	return fd, end
}

// SPDX-License-Identifier: Apache-2.0

// Package echo asks addresses for a sign of life with ICMP echo requests, which
// needs no privilege: Linux has sockets for just that (icmp(7), "ping sockets"),
// wherever net.ipv4.ping_group_range lets them be opened.
//
//	s, err := echo.Open(netns, from, to)
//	…
//	err = s.Send(1)
//	…
//	seq, ok := s.Receive() // an answer that has come meanwhile
//
// Nothing here waits: whoever watches a thousand addresses needs one goroutine.
// Package memecho is the same in memory.
package echo

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/internal/osthread"
)

// ErrNotSent is what Send fails with when this machine was too busy: nothing has
// left it, so that no answer means nothing. Any other error says that the way to
// the far end is gone.
var ErrNotSent = errors.New("echo request not sent")

// Socket is an ICMP echo socket from one address to another. The kernel gives it
// the answers to its own requests only. It is for one goroutine at a time.
type Socket struct {
	fd int // -1 when closed
	v4 bool
}

// Open opens a socket in a network namespace.
func Open(netns *os.File, from, to netip.Addr) (*Socket, error) {
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if !to.Is4() {
		domain, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := socketIn(netns, domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(unix.Bind(fd, sockaddr(from)), unix.Connect(fd, sockaddr(to))); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &Socket{fd: fd, v4: to.Is4()}, nil
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// socketIn makes a socket in a network namespace. A socket stays in the namespace
// it was made in; a thread that went there is not used for anything else.
func socketIn(netns *os.File, domain, typ, proto int) (fd int, err error) {
	raw, err := netns.SyscallConn()
	if err != nil {
		return -1, err
	}
	osthread.Run(func() (clean bool) {
		clean = true
		if ctlErr := raw.Control(func(ns uintptr) {
			if !sameNamespace(int(ns)) {
				clean = false
				if err = unix.Setns(int(ns), unix.CLONE_NEWNET); err != nil {
					return
				}
			}
			fd, err = unix.Socket(domain, typ, proto)
		}); ctlErr != nil {
			err = ctlErr
		}
		return clean
	})
	return fd, err
}

// sameNamespace reports whether the calling thread is in the namespace already,
// which it needs no privilege for.
func sameNamespace(ns int) bool {
	var there, here unix.Stat_t
	return unix.Fstat(ns, &there) == nil && unix.Stat("/proc/thread-self/ns/net", &here) == nil &&
		there.Dev == here.Dev && there.Ino == here.Ino
}

// Messages (RFC 792, RFC 4443): type, code, checksum, identifier, sequence number.
// The kernel fills in checksum and identifier.
const (
	headerLength = 8
	askV4        = 8
	answerV4     = 0
	askV6        = 128
	answerV6     = 129
)

// Send asks once.
func (s *Socket) Send(seq uint16) error {
	b := [headerLength]byte{askV4}
	if !s.v4 {
		b[0] = askV6
	}
	binary.BigEndian.PutUint16(b[6:], seq)
	_, err := unix.Write(s.fd, b[:])
	if isPending(err) {
		_, err = unix.Write(s.fd, b[:]) // what the kernel had to say is said now
	}
	switch err {
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM, unix.EINTR:
		return ErrNotSent
	}
	return err
}

// isPending reports whether err may be what an ICMP error has left on the socket,
// such as host unreachable. Such errors come once each.
func isPending(err error) bool {
	switch err {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.EPROTO, unix.EMSGSIZE:
		return true
	}
	return false
}

// maxPending bounds how many errors Receive reads past.
const maxPending = 8

// Receive returns the sequence number of an answer that has come. It does not wait
// for one: ok is false when there is none.
func (s *Socket) Receive() (seq uint16, ok bool) {
	var b [headerLength]byte // the rest, if there is any, is of no interest
	for failed := 0; failed < maxPending; {
		n, err := unix.Read(s.fd, b[:])
		switch {
		case err == unix.EAGAIN || err == unix.EBADF:
			return 0, false
		case err != nil:
			failed++
		case n == headerLength && (s.v4 && b[0] == answerV4 || !s.v4 && b[0] == answerV6):
			return binary.BigEndian.Uint16(b[6:]), true
		}
	}
	return 0, false
}

// Close closes the socket. It may be called more than once.
func (s *Socket) Close() error {
	if s.fd < 0 {
		return nil
	}
	fd := s.fd
	s.fd = -1
	return unix.Close(fd)
}

// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const datagramHeader = 1 + 8 // kind, sequence number

type ack struct {
	seq     uint64 // of the packet that is answered
	packets uint64 // that have arrived from this address
}

func (a ack) encode() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, a.seq), a.packets)
}

func readAck(s int) (ack, error) {
	var buf [16]byte
	n, err := retry(func() (int, error) { return unix.Read(s, buf[:]) })
	if err != nil {
		return ack{}, err
	}
	if n != len(buf) {
		return ack{}, fmt.Errorf("an answer of %d bytes", n)
	}
	return ack{binary.BigEndian.Uint64(buf[:]), binary.BigEndian.Uint64(buf[8:])}, nil
}

// Serve answers probes at address for ever: it is the whole of a process, which
// ends by a signal. ready is called when it listens.
func Serve(address netip.AddrPort, ready func()) error {
	tcp, err := listen(unix.SOCK_STREAM, address)
	if err != nil {
		return err
	}
	udp, err := listen(unix.SOCK_DGRAM, address)
	if err != nil {
		return err
	}
	if err := unix.Listen(tcp, 64); err != nil {
		return os.NewSyscallError("listen", err)
	}
	ready()
	failed := make(chan error)
	go func() { failed <- serveDatagrams(udp) }()
	go func() { failed <- serveStreams(tcp) }()
	return <-failed
}

func serveStreams(l int) error {
	for {
		s, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		} else if err != nil {
			return os.NewSyscallError("accept", err)
		}
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the connection
			defer unix.Close(s)
			serveStream(s)
		}()
	}
}

// serveStream serves one connection until it ends, one way or the other: a client
// that fails reports it.
func serveStream(s int) {
	var kind [1]byte
	if n, err := retry(func() (int, error) { return unix.Read(s, kind[:]) }); n != 1 || err != nil {
		return
	}
	if kind[0] != 'S' && settle(lastProcessor) != nil {
		return
	}
	switch kind[0] {
	case 's', 'S':
		buf := make([]byte, chunk)
		var count uint64
		for {
			n, err := retry(func() (int, error) { return unix.Read(s, buf) })
			if err != nil {
				return
			}
			if n == 0 {
				_, _ = unix.Write(s, binary.BigEndian.AppendUint64(nil, count))
				return
			}
			count += uint64(n)
		}
	case 'p':
		_ = unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		for {
			n, err := retry(func() (int, error) { return unix.Read(s, kind[:]) })
			if err != nil || n == 0 {
				return
			}
			if _, err := retry(func() (int, error) { return unix.Write(s, kind[:]) }); err != nil {
				return
			}
		}
	}
}

func serveDatagrams(s int) error {
	runtime.LockOSThread()
	if err := settle(lastProcessor); err != nil {
		return err
	}
	var from unix.Sockaddr // of the sender that arrived counts for
	var arrived uint64
	buf := make([]byte, 64<<10)
	for {
		n, peer, err := unix.Recvfrom(s, buf, 0)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNREFUSED) {
			continue
		} else if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		switch {
		case n > 0 && buf[0] == 'p':
			_ = unix.Sendto(s, buf[:n], 0, peer) // who gets no answer asks again
		case n >= datagramHeader && buf[0] == 'd':
			seq := binary.BigEndian.Uint64(buf[1:])
			if from == nil || !sameSockaddr(from, peer) {
				from, arrived = peer, 0
			}
			arrived++
			if seq%ackEvery == 0 {
				_ = unix.Sendto(s, ack{seq, arrived}.encode(), 0, peer)
			}
		}
	}
}

func sameSockaddr(a, b unix.Sockaddr) bool {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		b, ok := b.(*unix.SockaddrInet4)
		return ok && a.Port == b.Port && a.Addr == b.Addr
	case *unix.SockaddrInet6:
		b, ok := b.(*unix.SockaddrInet6)
		return ok && a.Port == b.Port && a.Addr == b.Addr
	}
	return false
}

func listen(kind int, address netip.AddrPort) (int, error) {
	at, family := sockaddr(address)
	s, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, os.NewSyscallError("SO_REUSEADDR", err)
	}
	if kind == unix.SOCK_DGRAM {
		// A whole window of packets must fit, with what the kernel adds to each.
		_ = unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	}
	if err := unix.Bind(s, at); err != nil {
		return -1, fmt.Errorf("bind %v: %w", address, err)
	}
	return s, nil
}

// dial connects to dst and sends hello, unless that is 0.
func dial(kind int, dst netip.AddrPort, hello byte) (int, error) {
	to, family := sockaddr(dst)
	s, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = errors.Join(timeout(s, unix.SO_SNDTIMEO, patience), timeout(s, unix.SO_RCVTIMEO, patience))
	if err == nil {
		// Asked again, the kernel goes on waiting for the same connection.
		_, err = retry(func() (int, error) { return s, unix.Connect(s, to) })
	}
	if err == nil && hello != 0 {
		_, err = unix.Write(s, []byte{hello})
	}
	if err != nil {
		_ = unix.Close(s)
		return -1, fmt.Errorf("connect to %v: %w", dst, err)
	}
	return s, nil
}

// Datagram opens a UDP socket of family, unix.AF_INET or unix.AF_INET6, in the
// calling thread's network namespace.
func Datagram(family int) (int, error) {
	s, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	return s, os.NewSyscallError("socket", err)
}

func timeout(s, option int, d time.Duration) error {
	tv := unix.NsecToTimeval(d.Nanoseconds())
	return os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(s, unix.SOL_SOCKET, option, &tv))
}

func sockaddr(a netip.AddrPort) (unix.Sockaddr, int) {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}, unix.AF_INET6
}

// retry repeats a system call that a signal has interrupted.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"cmp"
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Single is what a WireGuard device with one wire reads packets from and writes them
// to: a TUN interface whose packets travel as they are, as peers expect that know of no
// others' wires. It splits and joins as a Device does, and keeps no memory for it: what
// it needs while packets pass is of a Scratch. wireguard-go's own keeps 1.8 MiB, in which
// it joins packets of several flows at a time; here packets are joined that follow each
// other, as those of a segment do. What makes no sense, and what is longer than any MTU, is
// dropped. It is safe for concurrent use.
type Single struct {
	file    *os.File
	raw     syscall.RawConn
	udp     bool // the kernel takes UDP in segments
	scratch *Scratch

	mu   sync.Mutex // held by Read, guards the rest
	pull func(fd uintptr) bool
	wait bool           // for the next unit; else pull only looks whether there is one
	dry  bool           // this Read has found none, and looks for no more once it has some
	err  error          // of pull; it stays
	unit unit           // what is left of it comes next
	buf  *[maxUnit]byte // where unit is, of scratch; nil: unit is empty
}

// NewSingle returns the TUN device with this descriptor, which has been opened with
// IFF_NO_PI and IFF_VNET_HDR and belongs to the Single from now on. It fails with
// nserr.BadMechanism if it is something else; the descriptor is closed then.
func NewSingle(fd int, scratch *Scratch) (*Single, error) {
	udp, err := prepare(fd, false)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	s := &Single{file: os.NewFile(uintptr(fd), "tun"), udp: udp, scratch: scratch}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		_ = s.file.Close()
		return nil, nserr.KernelFailed.Errorf("TUN device: %w", err)
	}
	s.pull = s.pullUnit // made once: one for each call would be garbage
	return s, nil
}

// Read implements tun.Device: it waits for packets and returns those that are there, as
// many as there are bufs; the others come next. As with a Device the first unit after a
// pause is not kept waiting for a look at whether there are more.
func (s *Single) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.idle()
	s.dry = false
	for n < len(bufs) {
		if s.unit.empty() {
			if n > 0 && s.dry {
				break
			}
			s.wait = n == 0
			if s.raw.Read(s.pull) != nil {
				return n, os.ErrClosed
			}
			if s.err != nil {
				return n, s.err
			}
			continue
		}
		b := bufs[n][offset:]
		length := s.unit.next()
		if length > min(len(b), maxPacket) {
			s.unit = unit{}
			continue
		}
		s.unit.take(b)
		sizes[n] = length
		n++
	}
	return n, nil
}

// idle gives back what is not needed until there is something to read.
func (s *Single) idle() {
	if s.unit.empty() && s.buf != nil {
		s.scratch.putUnit(s.buf)
		s.buf, s.unit = nil, unit{} // which would keep it from the collector
	}
}

// pullUnit reads the next unit. It follows the rules of the network poller: false lets it
// wait until there is one. With mu held, by Read.
func (s *Single) pullUnit(fd uintptr) bool {
	if s.buf == nil {
		s.buf = s.scratch.unit()
	}
	n, err := unix.Read(int(fd), s.buf[:])
	for err == unix.EINTR {
		n, err = unix.Read(int(fd), s.buf[:])
	}
	switch err {
	case nil:
		s.unit.parse(s.buf[:n], false) // it is empty if that makes no sense
	case unix.EAGAIN:
		s.dry = true
		s.idle()
		return !s.wait
	default:
		s.err = closed(err)
	}
	return true
}

// Write implements tun.Device: it gives the packets to the interface, those together
// that follow each other. It returns the first error after it has tried them all.
func (s *Single) Write(bufs [][]byte, offset int) (int, error) {
	t := s.scratch.train(true)
	defer s.scratch.putTrain(t)
	var failed error
	for _, buf := range bufs {
		if t.packets > 0 {
			if t.join(buf[offset:], false) {
				continue
			}
			failed = cmp.Or(failed, s.deliver(t))
		}
		t.start(buf[offset-vnetLen:], false, false, s.udp) // before a packet WireGuard leaves 16 bytes
	}
	if t.packets > 0 {
		failed = cmp.Or(failed, s.deliver(t))
	}
	return len(bufs), failed
}

func (s *Single) deliver(t *train) error {
	_, err := s.file.Write(t.finish())
	return closed(err)
}

// closed makes of the error by which the kernel says that somebody has deleted the
// interface the one by which wireguard-go knows that it is over.
func closed(err error) error {
	if errors.Is(err, unix.EBADFD) {
		return os.ErrClosed
	}
	return err
}

// BatchSize implements tun.Device: how many packets one Read or Write takes.
func (s *Single) BatchSize() int { return conn.IdealBatchSize }

// File implements tun.Device.
func (s *Single) File() *os.File { return s.file }

// Close deletes the interface, unless it is persistent, and ends Read. It is idempotent.
func (s *Single) Close() error {
	if err := s.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxPacket is the largest packet that fits, with padding, into one UDP packet of
// WireGuard, in bytes: header, tag and at most 15 bytes of padding come to it.
const maxPacket = maxLength - ipv4Len - udpLen - 32 - 15

// reader is the state of Read.
type reader struct {
	mu    sync.Mutex // held by Read
	raw   syscall.RawConn
	wait  func(epoll uintptr) bool // made once: one for each call would be garbage
	found [64]unix.EpollEvent      // by wait
	n     int                      // how many of them

	ready []*wire // have something to read, or had when last seen
	turn  int     // index in ready of the one that is next
	fresh bool    // since ready was empty each wire in it has had one turn
	gone  []*wire // their interfaces have been deleted

	unit unit  // what is left of it comes next
	from *wire // where unit comes from
	buf  [maxUnit]byte
}

func (r *reader) init(raw syscall.RawConn) {
	r.raw = raw
	// Called by the network poller's rules: false lets it wait until a descriptor in
	// the set becomes readable after the call. It says so once, so false must mean
	// that there is nothing at all; the set itself tells of a wire as long as it has
	// something.
	r.wait = func(epoll uintptr) bool {
		r.n = 0
		if len(r.ready) > 0 && r.fresh {
			return true
		}
		n, err := unix.EpollWait(int(epoll), r.found[:], 0)
		r.n = max(n, 0)
		return r.n > 0 || len(r.ready) > 0 || !r.unit.empty() || err == unix.EINTR
	}
}

// Read implements tun.Device: it waits for packets of any wire. Wires that have some
// have their turns, each with one unit of up to 64 KiB.
//
// A system call to see whether a wire has more is worth its while when it has, and
// keeps a single packet waiting when it has not. So Read takes one unit of each wire
// that has just become readable, and asks for more only in the next call; if there is
// some it goes on until there is none. Who sends units of many packets has more.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	r := &d.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if err := r.raw.Read(r.wait); err != nil {
			return 0, os.ErrClosed
		}
		d.mu.RLock()
		r.fresh = len(r.ready) == 0
		d.enqueue()
		turns := len(bufs)
		if r.fresh {
			turns = len(r.ready)
		}
		n := d.fill(bufs, sizes, offset, turns)
		d.mu.RUnlock()
		d.sweep()
		if n > 0 {
			return n, nil
		}
	}
}

// enqueue gives the wires that wait has found a turn. With mu and reader.mu held, as
// what follows.
func (d *Device) enqueue() {
	r := &d.reader
	for _, e := range r.found[:r.n] {
		if w := d.wires[uint32(e.Fd)]; w != nil && !w.queued {
			w.queued = true
			r.ready = append(r.ready, w)
		}
	}
}

// fill lets wires have that many turns, as many as there are bufs if they send much, and
// ends when bufs are full or no wire has anything left. It returns how many packets
// there are.
func (d *Device) fill(bufs [][]byte, sizes []int, offset, turns int) (n int) {
	r := &d.reader
	for turn := 0; n < len(bufs); {
		if r.unit.empty() {
			if turn >= turns || !d.pull() {
				break
			}
			turn++
			if r.unit.segment > 0 {
				turns = len(bufs)
			}
		}
		n += d.pack(bufs[n:], sizes[n:], offset)
	}
	return n
}

// pull reads the next unit; false means that no wire has one.
func (d *Device) pull() bool {
	r := &d.reader
	for len(r.ready) > 0 {
		r.turn %= len(r.ready)
		w := r.ready[r.turn]
		if d.wires[w.local] == w {
			n, err := unix.Read(w.fd, r.buf[:])
			switch {
			case err == unix.EINTR:
				continue
			case err == nil && n > 0:
				r.turn++
				r.from = w
				if !r.unit.parse(r.buf[:n], w.ethernet) { // it is empty then
					w.malformed.Add(1)
				}
				return true
			case err != unix.EAGAIN: // EBADFD: the interface is gone
				d.cfg.Logger.Info("interface of a wire is gone", "error", err)
				r.gone = append(r.gone, w)
			}
		}
		w.queued = false
		r.ready = slices.Delete(r.ready, r.turn, r.turn+1)
	}
	return false
}

// pack makes packets of the unit until it is empty or bufs are full.
func (d *Device) pack(bufs [][]byte, sizes []int, offset int) (n int) {
	u, w := &d.reader.unit, d.reader.from
	end := w.far.Load()
	h := header{wire: uint32(end), src: d.cfg.NodeID, dst: uint32(end >> 32), summed: u.summed}
	if h.dst == 0 || d.wires[w.local] != w {
		w.noPeer.Add(1)
		*u = unit{}
		return 0
	}
	bytes := 0
	for ; n < len(bufs) && !u.empty(); n++ {
		b := bufs[n][offset:]
		length := u.next()
		if Overhead+length > min(len(b), maxPacket) {
			w.tooLong.Add(1)
			*u = unit{}
			break
		}
		u.take(b[Overhead:])
		h.put(b, length)
		sizes[n] = Overhead + length
		bytes += length
	}
	w.sent.add(n, bytes)
	return n
}

// sweep removes the wires whose interfaces have been deleted.
func (d *Device) sweep() {
	r := &d.reader
	for _, w := range r.gone {
		if mine, _ := d.remove(w); mine && d.cfg.Gone != nil {
			d.cfg.Gone(w.local)
		}
	}
	clear(r.gone)
	r.gone = r.gone[:0]
}

// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Write implements tun.Device: it gives each packet to its wire. What cannot be
// delivered is dropped and counted.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	t := d.scratch.train(false)
	defer d.scratch.putTrain(t)
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.wires == nil {
		return 0, os.ErrClosed
	}
	now := time.Now().UnixNano()
	var to *wire // of the packets in t
	for _, buf := range bufs {
		w, summed := d.receiver(buf, offset)
		if w == nil {
			continue
		}
		packet := buf[offset+Overhead:]
		if w == to && summed && t.join(packet, w.ethernet) {
			continue
		}
		to.deliver(t)
		// The header has been read: its last bytes are room for what the kernel wants there.
		t.start(buf[offset+Overhead-vnetLen:], w.ethernet, summed, w.udp)
		w.last.Store(now)
		to = w
	}
	to.deliver(t)
	return len(bufs), nil
}

// receiver returns the wire that the packet in buf is for, or nil, and whether its
// checksum is right.
func (d *Device) receiver(buf []byte, offset int) (w *wire, summed bool) {
	if offset < 0 || offset > len(buf) {
		d.strays.Add(1)
		return nil, false
	}
	h, ok := parseHeader(buf[offset:])
	if ok && h.dst == d.cfg.NodeID {
		w = d.wires[h.wire]
	}
	if w == nil {
		d.strays.Add(1)
		return nil, false
	}
	if h.src != uint32(w.far.Load()>>32) {
		w.foreign.Add(1)
		return nil, false
	}
	return w, h.summed
}

// deliver writes the packets of t to the interface. Without a wire there are none.
func (w *wire) deliver(t *train) {
	if w == nil {
		return
	}
	raw := t.finish()
	_, err := unix.Write(w.fd, raw)
	for err == unix.EINTR {
		_, err = unix.Write(w.fd, raw)
	}
	if err != nil {
		w.isRefused.Add(uint64(t.packets))
		return
	}
	w.received.add(t.packets, t.bytes)
}

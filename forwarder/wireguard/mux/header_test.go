// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The header is a wire format: nodes of other versions read it.
func TestHeaderStays(t *testing.T) {
	b := append(make([]byte, Overhead), "packet"...)
	h := header{wire: 0x01020304, src: 0x0a0b0c0d, dst: 0x1a1b1c1d, summed: true}
	h.put(b, 6)
	want := append([]byte{
		0x45, 0x11, 0, 26,
		1, 2, 3, 4,
		0, 0, 0, 0,
		0x0a, 0x0b, 0x0c, 0x0d,
		0x1a, 0x1b, 0x1c, 0x1d,
	}, "packet"...)
	if !bytes.Equal(b, want) {
		t.Errorf("% x, want\n% x", b, want)
	}
	if got, ok := parseHeader(b); !ok || got != h {
		t.Errorf("read back as %+v, %v", got, ok)
	}
	h.summed = false
	if h.put(b, 6); b[1] != 0x10 {
		t.Errorf("without flags the second byte is %#x", b[1])
	}
}

// What is for later versions is passed over where it may be, and refused where not.
func TestHeaderOfOthers(t *testing.T) {
	good := append(make([]byte, Overhead), "packet"...)
	header{wire: 1, src: 2, dst: 3}.put(good, 6)
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		ok     bool
	}{
		{"as it is", func(b []byte) []byte { return b }, true},
		{"unknown flags", func(b []byte) []byte { b[1] |= 0x0e; return b }, true},
		{"what is ignored", func(b []byte) []byte { copy(b[8:12], "abcd"); return b }, true},
		{"another version", func(b []byte) []byte { b[1] += 0x10; return b }, false},
		{"IPv6", func(b []byte) []byte { b[0] = 0x65; return b }, false},
		{"options", func(b []byte) []byte { b[0] = 0x46; return b }, false},
		{"longer than it says", func(b []byte) []byte { return append(b, 0) }, false},
		{"shorter than it says", func(b []byte) []byte { return b[:25] }, false},
		{"half a header", func(b []byte) []byte { return b[:19] }, false},
		{"nothing", func(b []byte) []byte { return nil }, false},
		{"no packet", func(b []byte) []byte { b[3] = Overhead; return b[:Overhead] }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, ok := parseHeader(c.change(bytes.Clone(good)))
			if ok != c.ok || ok && h != (header{wire: 1, src: 2, dst: 3}) {
				t.Errorf("%+v, %v", h, ok)
			}
		})
	}
}

// Whatever a peer sends, each packet is delivered once or counted as dropped.
func FuzzWrite(f *testing.F) {
	s := shape{ports: 1, flags: tcpACK, payload: make([]byte, 300), uncomputed: true}
	packets, _ := split(f, s.unit(100), false)
	for i, p := range packets {
		packets[i] = append(make([]byte, Overhead), p...)
		header{wire: 1, src: nodeB, dst: nodeA, summed: true}.put(packets[i], len(p))
	}
	foreign := bytes.Clone(packets[0])
	header{wire: 1, src: 5, dst: nodeA}.put(foreign, len(foreign)-Overhead)
	f.Add(sequence(packets), uint8(0))
	f.Add(sequence(append(packets, foreign, []byte{0x45})), uint8(16))
	f.Fuzz(func(t *testing.T, data []byte, offset uint8) {
		d, err := New(Config{NodeID: nodeA, MTU: tunnelMTU})
		must(t, err)
		defer d.Close()
		fd, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		w := &wire{fd: fd, local: 1, udp: true} // a TUN device would keep what it gets
		w.far.Store(far(nodeB, 2))
		d.wires[1] = w
		packets := unsequence(data)
		bytes := 0
		for i, p := range packets {
			bytes += len(p)
			packets[i] = append(make([]byte, offset), p...)
		}
		n, err := d.Write(packets, int(offset))
		if n != len(packets) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		st := w.stats()
		if got := st.Received.Packets + st.Dropped.Foreign + st.Dropped.Refused + d.Strays(); got != uint64(len(packets)) {
			t.Errorf("%d packets became %d: %+v, %d strays", len(packets), got, st, d.Strays())
		}
		if st.Received.Bytes > uint64(bytes) {
			t.Errorf("%d bytes became %d", bytes, st.Received.Bytes)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	wg "golang.zx2c4.com/wireguard/device"

	"github.com/openvwire/nsm/forwarder/wireguard/mux"
)

// buffers lends devices the memory for their packets.
//
// A device of wireguard-go takes, when it starts, 128 buffers of 64 KiB for its TUN
// device and as many for each of its two UDP sockets: 24 MiB, of which an idle device
// never touches a page. On Go's heap they cost more than address space all the same:
// where a device has been before they are cleared, which makes them 24 MiB of real
// memory and takes milliseconds of the set-up, and the collector lets garbage grow to
// the size of what it believes to be in use. So they are mapped beside the heap, lent
// to one device after the other, and give their pages back in between.
type buffers struct {
	scratch mux.Scratch // of all that have one wire

	mu   sync.Mutex
	free []returned // guarded by mu; the one that has been free for longest first
}

// arena is the memory of one device.
type arena []byte

// returned is an arena without pages that nobody uses.
type returned struct {
	arena arena
	at    time.Time
}

const (
	// perReader is how many buffers whoever reads packets takes before it does, and one
	// more: the last one that is put into a sync.Pool can be had only on the processor
	// where that was.
	perReader = conn.IdealBatchSize + 1
	// receivers is how many read from UDP: one for each family.
	receivers = 2
	// perDevice is how many buffers a device holds as long as it runs: those of the
	// receivers, and of the one who reads from its link.
	perDevice = (receivers + 1) * perReader
	// bufferSpace is from one buffer to the next, in bytes.
	bufferSpace = 1 << 16
	// rest is how long an arena is left alone before it is lent again. Some of a
	// device's goroutines end shortly after it has closed.
	rest = time.Second
)

// lend gives readers of a device, the first of them and how many, their part of a. They
// must take it at once: what the device's pool has is lost to the collector. Without an
// arena they take buffers from the heap.
func (a arena) lend(d *wg.Device, first, readers int) {
	if a == nil {
		return
	}
	for i := first * perReader; i < (first+readers)*perReader; i++ {
		d.PutMessageBuffer((*[wg.MaxMessageSize]byte)(a[i*bufferSpace:]))
	}
}

// take returns an arena; nil if there is no address space to map.
func (b *buffers) take() arena {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.free) > 0 && time.Since(b.free[0].at) >= rest {
		a := b.free[0].arena
		b.free = b.free[1:]
		return a
	}
	a, err := unix.Mmap(-1, 0, perDevice*bufferSpace, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil
	}
	_ = unix.Madvise(a, unix.MADV_NOHUGEPAGE) // a packet is to touch a page, not 2 MiB
	return a
}

// takeBack takes the buffers of a device that has closed. They stay mapped: nobody
// knows when the last goroutine has looked into them.
func (b *buffers) takeBack(a arena) {
	if a == nil {
		return
	}
	_ = unix.Madvise(a, unix.MADV_DONTNEED)
	b.mu.Lock()
	b.free = append(b.free, returned{arena: a, at: time.Now()})
	b.mu.Unlock()
}

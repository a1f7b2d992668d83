// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	wg "golang.zx2c4.com/wireguard/device"
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
	// perDevice is how many buffers a device holds as long as it runs.
	perDevice = 3 * conn.IdealBatchSize
	// bufferSpace is from one buffer to the next, in bytes.
	bufferSpace = 1 << 16
	// rest is how long an arena is left alone before it is lent again. Some of a
	// device's goroutines end shortly after it has closed.
	rest = time.Second
)

// lend gives a device that is about to start its buffers. Without address space to
// map, which is nil, it takes them from the heap.
func (b *buffers) lend(d *wg.Device) arena {
	a := b.take()
	for i := 0; i < len(a); i += bufferSpace {
		d.PutMessageBuffer((*[wg.MaxMessageSize]byte)(a[i:]))
	}
	return a
}

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

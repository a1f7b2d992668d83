// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	wg "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// BenchmarkFootprint measures what an idle end of a wire takes of a process. Run each
// kind in a process of its own, with -benchtime 1x.
func BenchmarkFootprint(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("makes TUN devices: needs root")
	}
	for name, newTUN := range map[string]func(testing.TB, int) tun.Device{"own": nativeTUN, "single": singleTUN} {
		b.Run(name, func(b *testing.B) {
			const pairs = 50
			ns := newNamespace(b)
			report := footprint(b, 2*pairs)
			for i := range pairs {
				var devices [2]*lentTUN
				for j := range devices {
					fd := openTUN(b, ns, false, fmt.Sprintf("own%d-%d", i, j))
					devices[j] = &lentTUN{Device: newTUN(b, fd), lent: make(chan struct{})}
				}
				join(b, devices[0], devices[1], "0.0.0.0/0", "0.0.0.0/0")
			}
			report()
		})
	}
	b.Run("mux", func(b *testing.B) {
		const pairs = 150
		ns := newNamespace(b)
		report := footprint(b, 2*pairs)
		p := newPair(b)
		for i := range uint32(pairs) {
			must(b, p.a.Add(Wire{FD: openTUN(b, ns, false, fmt.Sprintf("a%d", i)), Local: i, Remote: i, Peer: nodeB}))
			must(b, p.b.Add(Wire{FD: openTUN(b, ns, false, fmt.Sprintf("b%d", i)), Local: i, Remote: i, Peer: nodeA}))
		}
		report()
	})
}

// footprint returns what reports by how much the process has grown since, per end.
func footprint(b *testing.B, ends int) func() {
	take := func() (kib, threads int) {
		debug.FreeOSMemory()
		status, err := os.ReadFile("/proc/self/status")
		must(b, err)
		for line := range lines(string(status)) {
			_, _ = fmt.Sscanf(line, "RssAnon: %d kB", &kib)
			_, _ = fmt.Sscanf(line, "Threads: %d", &threads)
		}
		return kib, threads
	}
	kib, threads := take()
	goroutines := runtime.NumGoroutine()
	return func() {
		kibNow, threadsNow := take()
		b.ReportMetric(float64(kibNow-kib)/float64(ends), "KiB/end")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/float64(ends), "goroutines/end")
		b.ReportMetric(float64(threadsNow-threads)/float64(ends), "threads/end")
		b.ReportMetric(0, "ns/op")
	}
}

// lentTUN is a TUN device whose WireGuard device gets its buffers from memory beside
// Go's heap, as in the holder: of what it does not touch nothing is resident.
type lentTUN struct {
	tun.Device
	lent chan struct{}
}

func (l *lentTUN) BatchSize() int { <-l.lent; return l.Device.BatchSize() }

// lend gives a WireGuard device its buffers.
func (l *lentTUN) lend(b testing.TB, d *wg.Device) {
	const space = 1 << 16
	mem, err := unix.Mmap(-1, 0, 3*conn.IdealBatchSize*space, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	must(b, err)
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	for i := 0; i < len(mem); i += space {
		d.PutMessageBuffer((*[wg.MaxMessageSize]byte)(mem[i:]))
	}
	close(l.lent)
}

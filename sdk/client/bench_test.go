// SPDX-License-Identifier: Apache-2.0

package client

import (
	"container/heap"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/internal/echo/memecho"
	"github.com/openvwire/nsm/internal/osthread"
	"github.com/openvwire/nsm/sdk/conn"
)

// loopback returns a network namespace where lo is up and echo sockets may be
// opened, and skips the benchmark where none can be had.
func loopback(b *testing.B) (netns *os.File) {
	b.Helper()
	var err error
	osthread.Run(func() (clean bool) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return false
		}
		if err = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0o644); err != nil {
			return false
		}
		var fd int
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return false
		}
		defer unix.Close(fd)
		lo, _ := unix.NewIfreq("lo")
		lo.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK | unix.IFF_RUNNING)
		if err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err == nil {
			netns, err = os.Open("/proc/thread-self/ns/net")
		}
		return false
	})
	if err != nil {
		b.Skipf("no network namespace: %v", err)
	}
	b.Cleanup(func() { netns.Close() })
	return netns
}

// cpu is the time that this process has spent on a processor, in the kernel, too.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkProbe is what one ping of one of a thousand wires costs: its turn in the
// queue, the answer to the last ping, the conclusion, the next ping. Five of them
// are made in a second. With sockets of the kernel, the kernel's work at both ends
// is in it.
func BenchmarkProbe(b *testing.B) {
	const wires = 1000
	for _, kind := range []string{"memory", "kernel"} {
		b.Run(kind, func(b *testing.B) {
			var c Config
			var netns *os.File
			if kind == "memory" {
				through(&memecho.Air{})(&c)
			} else {
				netns = loopback(b)
			}
			c.Liveness.fill()
			queue := pacer{closed: true} // driven from here
			for i := range wires {
				p := &prober{config: c.Liveness, netns: netns, pacer: &queue, lost: func() { b.Error("lost") }, back: func() {}, none: func() {}}
				p.follow([]netip.Addr{near}, []netip.Addr{far(i)})
				if len(p.lines) == 0 {
					b.Skip("no echo socket can be opened")
				}
				defer p.end()
				queue.enterLocked(p, time.Now())
			}
			b.ReportAllocs()
			before := cpu(b)
			for b.Loop() {
				p := heap.Pop(&queue.queue).(*prober)
				queue.enterLocked(p, p.tick(p.due))
			}
			spent := cpu(b) - before
			for _, p := range queue.queue {
				if p.pulse.sent > 100 && p.pulse.data(p.due, p.config) != conn.Flowing {
					b.Fatalf("packets are %v", p.pulse.data(p.due, p.config))
				}
			}
			b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "cpu-ns/op")
			b.ReportMetric(float64(spent.Microseconds())/float64(b.N)*float64(time.Second/c.Liveness.Interval), "cpu-µs/wire/s")
		})
	}
}

// near and far(i) are addresses of lo.
var near = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func far(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, byte(1 + i/250), byte(1 + i%250)}) }

// BenchmarkKeep is what it costs to keep a thousand wires for a second while nothing
// happens but pings, as it is: timers, wake-ups and all.
func BenchmarkKeep(b *testing.B) {
	const wires = 1000
	netns := loopback(b)
	m, c := newManager(b, func(c *Config) { c.Liveness.Interval = 200 * time.Millisecond })
	next := 0
	m.amend(func(c *networkservice.Connection) {
		ip := c.Context.IpContext
		ip.SrcIpAddrs, ip.DstIpAddrs = []string{near.String() + "/32"}, []string{far(next).String() + "/32"}
		next++
	})
	goroutines, memory := runtime.NumGoroutine(), heapInUse()
	var all []*Wire
	for range wires {
		w, err := c.Request(b.Context(), Request{Service: "db", NetNS: netns})
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, w)
	}
	<-time.After(2 * time.Second)
	if all[wires-1].prober.data(time.Now()) != conn.Flowing {
		b.Skip("no echo socket can be opened")
	}
	goroutines, memory = runtime.NumGoroutine()-goroutines, heapInUse()-memory
	b.ReportAllocs()
	before := cpu(b)
	for b.Loop() {
		<-time.After(time.Second)
	}
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/wires/float64(b.N), "cpu-µs/wire/s")
	b.ReportMetric(float64(goroutines)/wires, "goroutines/wire")
	b.ReportMetric(float64(memory)/wires, "B/wire") // the manager's side, too
	for _, w := range all {
		if got := w.prober.data(time.Now()); got != conn.Flowing {
			b.Fatalf("packets are %v", got)
		}
	}
}

func heapInUse() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapInuse
}

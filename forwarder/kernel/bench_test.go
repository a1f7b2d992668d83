// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/plan"
)

// Making a wire, and finding that nothing is to be done. The budget for making
// one is about a millisecond, of the few that a Request may take in all
// (docs/performance.md).

func BenchmarkVeth(b *testing.B) {
	for name, families := range map[string][]int{"v4": {4}, "dual": {4, 6}} {
		b.Run(name, func(b *testing.B) {
			n := newNode(b, "fwd")
			client, endpoint := n.workload(), n.workload()
			benchmark(b, n, func(i int) plan.Wire {
				w := vethWire(fmt.Sprint("u", i), client, endpoint, plan.IP, families...)
				w.Ends[0].Name, w.Ends[1].Name = fmt.Sprint("c", i), fmt.Sprint("e", i)
				return w
			})
		})
	}
}

func BenchmarkVXLAN(b *testing.B) {
	n, m := newNode(b, "fwd"), newNode(b, "fwd")
	connect(b, n, m)
	client := n.workload()
	benchmark(b, n, func(i int) plan.Wire {
		w := vxlanWire(fmt.Sprint("u", i), client, 1, uint32(i+1), "172.16.0.%d")
		w.Ends[0].Name = fmt.Sprint("c", i)
		w.Ends[0].Addrs, w.Ends[0].Routes = w.Ends[0].Addrs[:1], w.Ends[0].Routes[:1]
		return w
	})
}

// manyWires makes so many wires, all between two namespaces.
func manyWires(b *testing.B, many int) (n *node, wires []plan.Wire) {
	b.Helper()
	n = newNode(b, "fwd")
	client, endpoint := n.workload(), n.workload()
	for i := range many {
		wires = append(wires, numberedWire(i, client, endpoint))
		mustApply(b, n, wires[i])
	}
	return n, wires
}

// BenchmarkNothingToDo is what Apply costs of a wire that is as it should be: alone in its
// namespaces, and one of 100.
func BenchmarkNothingToDo(b *testing.B) {
	for _, many := range []int{1, 100} {
		b.Run(fmt.Sprint("of=", many), func(b *testing.B) {
			n, wires := manyWires(b, many)
			last := wires[many-1]
			begun := cpu()
			for b.Loop() {
				mustApply(b, n, last)
			}
			b.ReportMetric(float64((cpu()-begun).Microseconds())/float64(b.N), "CPU-µs/op")
		})
	}
}

// BenchmarkLook is what it costs for each wire to see that many are as they should be.
func BenchmarkLook(b *testing.B) {
	for _, many := range []int{1, 100} {
		b.Run(fmt.Sprint("of=", many), func(b *testing.B) {
			n, wires := manyWires(b, many)
			begun := cpu()
			for b.Loop() {
				intact := n.Look()
				for _, w := range wires {
					if !intact(b.Context(), w) {
						b.Fatal("a wire is not intact")
					}
				}
			}
			b.ReportMetric(float64((cpu()-begun).Microseconds())/float64(b.N*many), "CPU-µs/wire")
		})
	}
}

// cpu is the processor time of the process so far.
func cpu() time.Duration {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// benchmark measures Apply of wires made by wire. It removes them unmeasured,
// a few at a time, so that there are never many.
func benchmark(b *testing.B, n *node, wire func(i int) plan.Wire) {
	const batch = 16
	var wires []plan.Wire
	removeAll := func() {
		var removing sync.WaitGroup
		for _, w := range wires {
			removing.Go(func() {
				if err := n.Remove(b.Context(), w); err != nil {
					b.Error(err)
				}
			})
		}
		removing.Wait()
		wires = wires[:0]
	}
	for i := 0; b.Loop(); i++ {
		if len(wires) == batch {
			b.StopTimer()
			removeAll()
			b.StartTimer()
		}
		w := wire(i)
		mustApply(b, n, w)
		wires = append(wires, w)
	}
	b.StopTimer()
	removeAll()
}

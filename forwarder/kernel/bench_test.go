// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"fmt"
	"sync"
	"testing"

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

func BenchmarkNothingToDo(b *testing.B) {
	n := newNode(b, "fwd")
	w := vethWire("u1", n.workload(), n.workload(), plan.IP, 4, 6)
	mustApply(b, n, w)
	for b.Loop() {
		mustApply(b, n, w)
	}
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

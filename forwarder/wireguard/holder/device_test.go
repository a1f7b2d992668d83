// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/nstest"
)

// Nodes of others have a device for each wire: what one takes counts.
func TestDeviceIsSmall(t *testing.T) {
	const (
		devices        = 20
		maxHeap        = 256 << 10 // bytes that are reachable
		maxDescriptors = 7         // TUN, its control socket, UAPI, UDP of two families; two to spare
	)
	ns := workload(t, underlay(t))
	var bufs buffers
	live := func() (heap uint64, descriptors int) {
		for range collectTimes { // pools let go of what they have only then
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return m.HeapAlloc, len(open)
	}
	heap, descriptors := live()
	// As long as readers have not taken their buffers from the pool the collector can.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for i := range devices {
		name := fmt.Sprintf("nsm-%d", i)
		dev, err := newDevice(ns, Device{Tag: name, Name: name, UAPI: "nsmsmalltest" + name, MTU: 1400}, &bufs, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer dev.close()
		if err := dev.wg.Up(); err != nil {
			t.Fatal(err)
		}
	}
	for began := time.Now(); reading() < devices*(receivers+1); runtime.Gosched() {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("of %d readers %d wait for packets", devices*(receivers+1), reading())
		}
	}
	heapNow, descriptorsNow := live()
	if got := (int64(heapNow) - int64(heap)) / devices; got > maxHeap && !nstest.Race { // with it a sync.Pool drops a quarter
		t.Errorf("a device keeps %d KiB of heap, want at most %d", got>>10, maxHeap>>10)
	} else {
		t.Logf("a device keeps %d KiB of heap", got>>10)
	}
	if got := float64(descriptorsNow-descriptors) / devices; got > maxDescriptors {
		t.Errorf("a device has %v descriptors open, want at most %d", got, maxDescriptors)
	} else {
		t.Logf("a device has %v descriptors open", got)
	}
}

// reading counts who waits for packets.
func reading() int {
	stacks := make([]byte, 4<<20)
	text := string(stacks[:runtime.Stack(stacks, true)])
	return strings.Count(text, "holder.(*bind).Open.func") + strings.Count(text, "mux.(*Single).Read(")
}

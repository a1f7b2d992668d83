// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"log/slog"
	"runtime"
	"slices"
	"testing"
	"time"
)

// Devices take their buffers from the memory that they are lent, not from the heap,
// and one after the other live on the same.
func TestBuffersGoRound(t *testing.T) {
	ns := workload(t, underlay(t))
	var bufs buffers
	device := func() arena {
		dev, err := newDevice(ns, Device{Tag: "t", Name: "nsm-1", UAPI: "nsmbufferstest", MTU: 1400}, &bufs, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := dev.wg.Up(); err != nil {
			t.Fatal(err)
		}
		dev.close()
		return dev.mem
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	first, second := device(), device()
	runtime.ReadMemStats(&after)
	// Of the 48 MiB that both have. With the race detector a sync.Pool drops a quarter.
	if got := after.TotalAlloc - before.TotalAlloc; got > perDevice*bufferSpace {
		t.Errorf("two devices took %d MiB from the heap", got>>20)
	}
	if &first[0] == &second[0] {
		t.Error("memory was lent again at once")
	}
	if len(bufs.free) != 2 {
		t.Fatalf("%d arenas are free, want 2", len(bufs.free))
	}
	for i := range bufs.free {
		bufs.free[i].at = bufs.free[i].at.Add(-rest)
	}
	if third := device(); &third[0] != &first[0] {
		t.Error("memory that has rested was not lent again")
	}
	if len(bufs.free) != 2 {
		t.Errorf("%d arenas are free, want 2", len(bufs.free))
	}
}

// What has been lent comes back empty: nobody finds another wire's packets in it.
func TestBuffersComeBackEmpty(t *testing.T) {
	var bufs buffers
	a := bufs.take()
	a[0], a[len(a)-1] = 1, 1
	bufs.takeBack(a)
	bufs.free[0].at = time.Now().Add(-rest)
	b := bufs.take()
	if &a[0] != &b[0] || slices.Max(b) != 0 {
		t.Error("memory was not emptied")
	}
}

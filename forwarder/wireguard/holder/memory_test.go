// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"math"
	"runtime/debug"
	"testing"
)

// The garbage collector's limit follows the machine and the devices, unless somebody has
// set one.
func TestMemoryLimit(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	const MiB = 1 << 20
	for _, tt := range []struct {
		machine, set int64
		devices      int
		want         int64
	}{
		{16 << 30, math.MaxInt64, 0, 2048 * MiB},
		{8 << 30, math.MaxInt64, 0, 1024 * MiB},
		{1 << 40, math.MaxInt64, 0, 2048 * MiB},
		{512 * MiB, math.MaxInt64, 0, 256 * MiB},
		{0, math.MaxInt64, 0, 256 * MiB},
		{8 << 30, math.MaxInt64, 1, 1056 * MiB},
		{8 << 30, math.MaxInt64, 33, 1088 * MiB},
		{8 << 30, 100 * MiB, 33, 100 * MiB},
	} {
		debug.SetMemoryLimit(tt.set)
		m := newMemory(tt.machine, tt.set)
		m.add(0)
		for range tt.devices + 100 {
			m.add(1)
		}
		for range 100 {
			m.add(-1)
		}
		if got := debug.SetMemoryLimit(-1); got != tt.want {
			t.Errorf("%d MiB of memory, %d devices: the limit is %d MiB, want %d", tt.machine/MiB, tt.devices, got/MiB, tt.want/MiB)
		}
	}
	if got := machineMemory(); got < 64*MiB {
		t.Errorf("this machine has %d bytes of memory", got)
	}
}

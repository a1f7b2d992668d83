// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"math"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// A workload that floods keeps thousands of wireguard-go's packet buffers under way, of
// 64 KiB each, and the garbage collector lets as much garbage be beside what is in use:
// gigabytes within a minute, and the process that ends when there is no more has the
// wires of all workloads. So the collector has a limit, within which it runs no more
// often than it would, and beyond which it collects rather than lets the heap grow.
const (
	memoryShare = 8 // what of the machine's memory the limit is: one in so many
	leastMemory = 256 << 20
	mostMemory  = 2 << 30
	// What devices with a wire of their own need is added, 0.3 MiB each with the stacks
	// of their goroutines and the packets that are under way, by the thirty-two: setting
	// the limit stops the process for a moment.
	deviceMemory  = 1 << 20
	devicesAtOnce = 32
)

// memory is the limit of the garbage collector.
type memory struct {
	base    int64 // 0: there is one that the environment says
	devices int
	limit   int64
}

// newMemory is the limit on a machine with so many bytes. One that somebody has set
// stays.
func newMemory(machine, set int64) memory {
	if set != math.MaxInt64 {
		return memory{}
	}
	return memory{base: min(max(machine/memoryShare, leastMemory), mostMemory)}
}

// machineMemory is how many bytes this machine has; 0 if it does not say.
func machineMemory() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}

// add counts devices that have come or gone, and sets the limit if it changes.
func (m *memory) add(devices int) {
	m.devices += devices
	if m.base == 0 {
		return
	}
	many := (m.devices + devicesAtOnce - 1) / devicesAtOnce * devicesAtOnce
	if limit := m.base + int64(many)*deviceMemory; limit != m.limit {
		m.limit = limit
		debug.SetMemoryLimit(limit)
	}
}

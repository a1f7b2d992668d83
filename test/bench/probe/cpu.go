// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CPU returns the processor time that the processes have used so far, all threads
// and those that have ended included. PID 0 is the calling process.
//
// It reads each process's CPU clock, which counts nanoseconds where
// /proc/PID/stat counts hundredths of a second. The clock's number is made of the
// PID as clock_getcpuclockid(3) does it (MAKE_PROCESS_CPUCLOCK with
// CPUCLOCK_SCHED in linux/posix-timers_types.h).
func CPU(pids []int) (sum time.Duration, err error) {
	const sched = 2
	for _, pid := range pids {
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid)<<3|sched, &t); err != nil {
			return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

// Resident returns how many KiB of a process are in memory.
func Resident(pid int) (kib int, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			return kib, nil
		}
	}
	return 0, fmt.Errorf("memory of process %d: not told", pid)
}

// Where a thread runs. Left to the scheduler the two ends of a probe now share a
// processor and now do not, for seconds at a time, which changes a round trip by
// a factor of two.
type place int

const (
	anywhere       place = iota
	firstProcessor       // of those that the process may use
	lastProcessor
)

// on runs f on a thread of its own at a place, and waits for it.
func on[T any](p place, f func() (T, error)) (T, error) {
	type end struct {
		t   T
		err error
	}
	done := make(chan end)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var e end
		if e.err = settle(p); e.err == nil {
			e.t, e.err = f()
		}
		done <- e
	}()
	e := <-done
	return e.t, e.err
}

// settle binds the calling thread to a place.
func settle(p place) error {
	if p == anywhere {
		return nil
	}
	var usable, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &usable); err != nil {
		return fmt.Errorf("processors of the thread: %w", err)
	}
	left := usable.Count()
	for cpu := 0; left > 0; cpu++ {
		if !usable.IsSet(cpu) {
			continue
		}
		if left--; p == firstProcessor || left == 0 {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("bind the thread to a processor: %w", err)
	}
	return nil
}

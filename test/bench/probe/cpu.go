// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
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

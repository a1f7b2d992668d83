// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"time"

	"golang.org/x/sys/unix"
)

func (l *Lab) GuardPID() int { return l.guard.cmd.Process.Pid }

// AwaitEnd waits for the end of a process that need not be a child.
func AwaitEnd(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	awaitEnd(fd, 20*time.Second)
}

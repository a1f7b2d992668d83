// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

// process is one that somebody else has started and whose end is waited for. It is
// that very one, whoever gets its number afterwards.
type process struct {
	pid int
	fd  *os.File // pidfd; readable when the process has ended
}

func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: a thread's number, or none at all
		return nil, nserr.NoNetNS.Errorf("there is no process %d", pid).WithFix("see 'ps' for the number of one that runs")
	}
	if err == nil {
		err = unix.SetNonblock(fd, true) // so that wait can be interrupted
	}
	if err != nil {
		return nil, nserr.KernelFailed.Errorf("pidfd of process %d: %w", pid, err)
	}
	return &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// wait waits until ctx ends, which is no error, or the process has.
func (p *process) wait(ctx context.Context) error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.fd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := raw.Read(hasEnded); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return nserr.KernelFailed.Errorf("waiting for process %d: %w", p.pid, err)
	}
	return p.ended()
}

// ended is the error that the process has ended, nil if it runs.
func (p *process) ended() error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	over := false
	if err := raw.Control(func(fd uintptr) { over = hasEnded(fd) }); err != nil || !over {
		return err
	}
	return nserr.NoNetNS.Errorf("process %d has ended", p.pid).WithFix("start it again, then nsm with its new --pid")
}

// hasEnded reports whether the process of a pidfd has.
func hasEnded(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

// maxLog bounds the holder's log in bytes at each start. What a running holder
// adds is limited, see quiet.
const maxLog = 1 << 20

// starter starts holder processes. It is not safe for concurrent use.
type starter struct {
	children []int // started, not yet reaped
}

// start starts a holder and waits until it serves. It also returns nil when
// the new process ended because another holder has the lock: dial and see.
func (st *starter) start(ctx context.Context, cfg *ClientConfig) error {
	st.reap()
	argv := cfg.Command
	if argv == nil {
		argv = []string{os.Args[0], "wireguard-holder", "--socket", cfg.Socket}
	}
	log, err := openLog(cfg.Socket + ".log")
	if err != nil {
		return nserr.StateDir.Errorf("log of the WireGuard holder: %w", err)
	}
	defer log.Close()
	ready, w, err := os.Pipe()
	if err != nil {
		return nserr.KernelFailed.Errorf("pipe: %w", err)
	}
	defer ready.Close()

	cmd := exec.Command(argv[0], argv[1:]...)
	if cfg.Command == nil {
		// This very program, even after an upgrade has replaced the file.
		cmd.Path, cmd.Err = "/proc/self/exe", nil
	}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = w, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // no signal to our group or terminal reaches it
	err = cfg.Underlay.Do(cmd.Start)                  // the child inherits the thread's namespace
	_ = w.Close()
	if err != nil {
		return nserr.KernelFailed.Errorf("start of a WireGuard holder: %w", err)
	}

	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, err := io.ReadAll(ready) // ends when it serves, or when it ends
	if err == nil && !bytes.HasPrefix(said, []byte("ready")) {
		if err := cmd.Wait(); err != nil {
			return nserr.KernelFailed.Errorf("WireGuard holder did not start: %w", err).WithFix("see %s", log.Name())
		}
		return nil
	}
	st.children = append(st.children, cmd.Process.Pid)
	_ = cmd.Process.Release() // reap collects it: a holder outlives its forwarder
	if err != nil {
		return nserr.TimedOut.Errorf("start of a WireGuard holder: %w", err).WithFix("see %s", log.Name())
	}
	return nil
}

// openLog opens the holder's log for appending, emptied when it has grown.
func openLog(path string) (*os.File, error) {
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if info, err := log.Stat(); err == nil && info.Size() > maxLog {
		_ = log.Truncate(0)
	}
	return log, nil
}

// wait collects a child that is ending. Other processes are none of its
// business.
func (st *starter) wait(pid int) {
	if i := slices.Index(st.children, pid); i >= 0 {
		_, err := unix.Wait4(pid, nil, 0, nil)
		for err == unix.EINTR {
			_, err = unix.Wait4(pid, nil, 0, nil)
		}
		st.children = slices.Delete(st.children, i, i+1)
	}
}

// reap collects children that have ended, without waiting for any.
func (st *starter) reap() {
	st.children = slices.DeleteFunc(st.children, func(pid int) bool {
		reaped, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		return reaped == pid || err == unix.ECHILD
	})
}

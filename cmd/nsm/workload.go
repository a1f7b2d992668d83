// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/sdk/nserr"
)

// workloadConfig says whose network namespace gets the wires.
type workloadConfig struct {
	PID   int    `flag:"pid" default:"0" help:"process whose network namespace gets the wires, which end with it; default this one's own"`
	NetNS string `flag:"netns" help:"name (as of 'ip netns') or path of the network namespace that gets the wires"`
}

// workload is the namespace of whoever gets the wires.
type workload struct {
	netns   *os.File // nil: this process's own
	process *process // of --pid, with which the workload ends; nil without
}

// openWorkload opens the namespace that the settings name; for a command it is a
// new one, which lives as long as the workload is open.
func openWorkload(c workloadConfig, command []string) (_ *workload, err error) {
	w := &workload{}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if len(command) > 0 {
		if _, err := exec.LookPath(command[0]); err != nil { // before anything is done for it
			return nil, nserr.BadFlag.Errorf("cannot run %q: %w", command[0], err).WithFix("name a program that exists")
		}
	}
	switch {
	case c.PID != 0 && c.NetNS != "":
		return nil, nserr.BadFlag.Errorf("--pid and --netns both say which namespace")
	case c.PID != 0:
		err = w.openPID(c.PID)
	case c.NetNS != "" && (c.NetNS[0] == '/' || c.NetNS[0] == '.'):
		w.netns, err = netns.Open(c.NetNS)
	case c.NetNS != "":
		w.netns, err = netns.OpenNamed(c.NetNS)
		if errors.Is(err, os.ErrNotExist) {
			err = nserr.NoNetNS.Errorf("there is no network namespace %q", c.NetNS).WithFix("see 'ip netns list'")
		}
	case len(command) > 0:
		w.netns, err = netns.New()
	}
	return w, err
}

// openPID opens a process and its namespace.
func (w *workload) openPID(pid int) (err error) {
	if w.process, err = openProcess(pid); err != nil {
		return err
	}
	if w.netns, err = netns.OfPID(pid); err != nil {
		return errors.Join(w.process.ended(), err)
	}
	return w.process.ended() // else the namespace may be that of another one with its number
}

// wait waits until ctx ends, which is no error, or the process whose workload it is.
func (w *workload) wait(ctx context.Context) error {
	if w.process != nil {
		return w.process.wait(ctx)
	}
	<-ctx.Done()
	return nil
}

// ended is the error that the process whose workload it is has ended, nil if it runs or
// there is none.
func (w *workload) ended() error {
	if w.process == nil {
		return nil
	}
	return w.process.ended()
}

func (w *workload) close() {
	if w.process != nil {
		_ = w.process.fd.Close()
	}
	if w.netns != nil {
		_ = w.netns.Close()
	}
}

// stopGrace is how long a command may take to end after SIGTERM.
const stopGrace = 5 * time.Second

// commandStatus is the exit code of a command that nsm ran.
type commandStatus int

func (e commandStatus) Error() string { return "the command failed" }

// run runs a command in the workload's namespace until it ends. When ctx ends
// the command is told to, which succeeds unless it then exits with a code of its
// own or has to be killed.
func (w *workload) run(ctx context.Context, a *app, command []string) error {
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Stdin, c.Stdout, c.Stderr = a.in, a.out, a.err
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = stopGrace
	if isTerminal(a.in) {
		a.ending.tell(commandBegins)
		defer a.ending.tell(commandEnded)
	}
	if err := w.start(c); err != nil {
		return nserr.BadFlag.Errorf("cannot run %q: %w", command[0], err)
	}
	err := c.Wait()
	told := ctx.Err() != nil
	exit := (*exec.ExitError)(nil)
	if !errors.As(err, &exit) {
		if told {
			return nil
		}
		return err
	}
	if code := exit.ExitCode(); code >= 0 {
		return commandStatus(code)
	}
	by := exit.Sys().(syscall.WaitStatus).Signal()
	if told && by != syscall.SIGKILL {
		return nil
	}
	return commandStatus(128 + int(by))
}

// start starts c in the workload's namespace: a child is born in the namespace of
// the thread that forks it.
func (w *workload) start(c *exec.Cmd) error {
	if w.netns == nil {
		return c.Start()
	}
	table, err := netns.NewTable()
	if err != nil {
		return err
	}
	defer table.Close()
	own, err := netns.Open("/proc/self/fd/" + fdOf(w.netns))
	if err != nil {
		return err
	}
	key, err := table.Add(own)
	if err != nil {
		return err
	}
	return table.Do(key, c.Start)
}

func fdOf(f *os.File) (fd string) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(n uintptr) { fd = strconv.Itoa(int(n)) })
	}
	return fd
}

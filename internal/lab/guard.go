// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
)

// GuardCommand is the hidden subcommand of nsm that calls [Guard].
const GuardCommand = "demo-guard"

// guard is a process that removes the lab when its maker dies, however that
// happens. They share a pipe: a byte says that all is well, its end without one
// that the maker is dead.
type guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

func startGuard(l *Lab) (*guard, error) {
	log, err := os.Create(filepath.Join(l.Dir, "guard.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c := exec.Command(l.program(), GuardCommand, l.Name, l.Dir)
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	g := &guard{cmd: c}
	if g.pipe, err = c.StdinPipe(); err != nil {
		return nil, err
	}
	return g, c.Start()
}

// dismiss ends the guard. A nil guard is none.
func (g *guard) dismiss() error {
	if g == nil || g.cmd.Process == nil {
		return nil
	}
	_, _ = g.pipe.Write([]byte{0})
	_ = g.pipe.Close()
	return g.cmd.Wait()
}

// Guard waits until the maker of a lab dismisses it, and removes the lab if the
// maker dies before.
func Guard(maker io.Reader, name, dir string) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if n, _ := maker.Read(make([]byte, 1)); n > 0 {
		return nil
	}
	return Remove(name, dir)
}

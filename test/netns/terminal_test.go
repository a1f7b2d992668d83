// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/nstest"
)

// atTerminalArg is the name under which this test binary leads the session at a terminal.
const atTerminalArg = "leader of a session"

// terminal is one at which nsm runs, as seen from outside (pty(7)).
type terminal struct {
	t      *testing.T
	master *os.File
	ended  string // how nsm has ended, as os/exec says it; set when lines ends
}

// leaderSays begins the line with which the leader says how nsm has ended.
const leaderSays = "ended with: "

// atTerminal starts nsm on a node at a terminal of its own. As with users, the session's leader
// is another process and outlives it: when a leader ends the kernel hangs its terminal up and
// throws away what nobody has read yet (disassociate_ctty, pty_flush_buffer).
func atTerminal(t *testing.T, n *lab.Node, args ...string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	leader := exec.Command("/proc/self/exe")
	leader.Args = append([]string{atTerminalArg, nstest.Program()}, args...)
	leader.Env = append(os.Environ(), append(n.Env(), "GORACE=atexit_sleep_ms=0")...)
	leader.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	number, err := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = startAt(n.NetNS, leader, fmt.Sprintf("/dev/pts/%d", number))
	}
	if err != nil {
		master.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		master.Close() // hangs up: SIGHUP for all that are left
		_ = leader.Wait()
	})
	return &terminal{t: t, master: master}
}

func startAt(ns *lab.NetNS, c *exec.Cmd, terminal string) error {
	tty, err := os.OpenFile(terminal, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer tty.Close()
	c.Stdin, c.Stdout, c.Stderr = tty, tty, tty
	return ns.Do(c.Start)
}

// lead runs a command at the terminal, says how it ended, and stays until it is hung up.
func lead(args []string) {
	signal.Notify(make(chan os.Signal, 1), os.Interrupt) // not ignored: the command would inherit that
	c := exec.Command(args[0], args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := c.Run()
	if c.ProcessState != nil {
		err = errors.New(c.ProcessState.String())
	}
	fmt.Printf("%s%v\n", leaderSays, err)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// lines are all that is written at the terminal, what is pressed included, until nsm has ended.
func (m *terminal) lines(yield func(string) bool) {
	for lines := bufio.NewScanner(m.master); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		m.t.Log(line)
		if _, how, ended := strings.Cut(line, leaderSays); ended { // behind a ^C, maybe
			m.ended = how
			return
		}
		if !yield(line) {
			return
		}
	}
	m.t.Error("the terminal was hung up before nsm had ended")
}

func (m *terminal) press(keys string) {
	if _, err := io.WriteString(m.master, keys); err != nil {
		m.t.Error(err)
	}
}

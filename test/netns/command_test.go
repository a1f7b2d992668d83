// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/nstest"
)

// A client whose ssh session is dropped closes its wires before it ends.
func TestConnectHangup(t *testing.T) {
	l := newMesh(t, lab.Config{})
	a := l.Node("a")
	serve(t, workload(t, a, "db"), "db", "--cidr", "10.60.0.0/24")
	unchanged(t, l)
	w := connect(t, workload(t, a, "web"), "kernel://db/nsm-1", "--name", "web")
	if err := w.client.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	<-w.client.Done()
	if code := w.client.ExitCode(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, w.client.Output())
	}
	eventually(t, 5*time.Second, func() error {
		links, err := l.WireLinks()
		if len(links) > 0 {
			return fmt.Errorf("ends of wires left: %v", links)
		}
		return err
	})
}

// Ctrl-C at a terminal is for the command that 'nsm connect' runs, whose exit code
// is the whole's.
func TestConnectAtTerminal(t *testing.T) {
	l := newMesh(t, lab.Config{})
	a := l.Node("a")
	serve(t, workload(t, a, "db"), "db", "--cidr", "10.60.0.0/24")
	unchanged(t, l)
	const script = `trap 'echo interrupted; n=$((n+1)); [ $n -lt 2 ] || exit 7' INT; echo at work; while :; do sleep 0.05; done`
	c := exec.Command(nstest.Program(), "connect", "kernel://db/nsm-1", "--", "sh", "-c", script)
	c.Env = append(os.Environ(), append(a.Env(), "GORACE=atexit_sleep_ms=0")...)
	terminal, err := startAtTerminal(a.NetNS, c)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	lines := bufio.NewScanner(terminal)
	presses := 0       // a third one would be for nsm, which is cleaning up by then
	for lines.Scan() { // until the last process at the terminal has ended
		t.Log(lines.Text())
		if said := lines.Text(); presses < 2 && (strings.HasSuffix(said, "at work") || strings.HasSuffix(said, "interrupted")) {
			presses++
			if _, err := io.WriteString(terminal, "\x03"); err != nil {
				t.Error(err)
			}
		}
	}
	if _ = c.Wait(); c.ProcessState.ExitCode() != 7 {
		t.Errorf("ended with %v, want exit code 7", c.ProcessState)
	}
}

// startAtTerminal starts a command in a namespace at a terminal of its own and
// returns the other side of it (pty(7)).
func startAtTerminal(ns *lab.NetNS, c *exec.Cmd) (*os.File, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	number, err := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = startAt(ns, c, fmt.Sprintf("/dev/pts/%d", number))
	}
	if err != nil {
		master.Close()
		return nil, err
	}
	return master, nil
}

func startAt(ns *lab.NetNS, c *exec.Cmd, terminal string) error {
	tty, err := os.OpenFile(terminal, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer tty.Close()
	c.Stdin, c.Stdout, c.Stderr = tty, tty, tty
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return ns.Do(c.Start)
}

// An endpoint is reached over a Unix socket, but has no file that could be left
// when it is killed. Also a manager that starts later gets it.
func TestServeHasNoFiles(t *testing.T) {
	tmp := t.TempDir()
	l := newMesh(t, lab.Config{Env: []string{"TMPDIR=" + tmp}})
	a := l.Node("a")
	p := serve(t, workload(t, a, "db"), "db", "--cidr", "10.60.0.0/24")
	files := func(when string) {
		t.Helper()
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("%s: %v, %v", when, left, err)
		}
	}
	files("while it serves")
	unchanged(t, l)
	connect(t, workload(t, a, "web"), "kernel://db/nsm-1")
	for _, d := range l.Daemons() {
		if d.Node == "a" && strings.Contains(d.Command, "nsm manager ") {
			d.Kill()
		}
	}
	if _, err := a.Start(t.Context(), "manager"); err != nil {
		t.Fatal(err)
	}
	connect(t, workload(t, a, "shop"), "kernel://db/nsm-1", "--wait", "20s")
	p.Kill()
	files("when it has been killed")
}

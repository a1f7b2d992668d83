// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
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
	presses := 0
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

// When the command has ended, the first Ctrl-C is no reason not to close the wires; the
// second one is.
func TestConnectInterruptedWhileClosing(t *testing.T) {
	for _, tt := range []struct {
		name     string
		presses  int
		lifetime string // of the wire, which goes with the test
		ends     string
	}{
		{"once", 1, "10m", "exit status 7"},
		{"twice", 2, "8s", "signal: interrupt"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newMesh(t, lab.Config{})
			a := l.Node("a")
			serve(t, workload(t, a, "db"), "db", "--cidr", "10.60.0.0/24")
			unchanged(t, l)
			manager := l.Daemon("a", "manager")
			c := exec.Command(nstest.Program(), "connect", "--max-token-lifetime="+tt.lifetime, "kernel://db/nsm-1", "--", "sh", "-c", "echo at work; read line; exit 7")
			c.Env = append(os.Environ(), append(a.Env(), "GORACE=atexit_sleep_ms=0")...)
			terminal, err := startAtTerminal(a.NetNS, c)
			if err != nil {
				t.Fatal(err)
			}
			defer terminal.Close()
			press := func(key string) {
				if _, err := io.WriteString(terminal, key); err != nil {
					t.Error(err)
				}
			}
			var said []string
			for lines := bufio.NewScanner(terminal); lines.Scan(); { // until the last process at the terminal has ended
				line := strings.TrimSpace(lines.Text())
				t.Log(line)
				said = append(said, line)
				switch {
				case strings.HasSuffix(line, "at work"):
					if err := manager.Freeze(); err != nil { // so that closing takes a while
						t.Fatal(err)
					}
					defer manager.Thaw()
					press("\n")
				case line == "nsm: closing the wires":
					press("\x03")
				case strings.Contains(line, "nsm: closing the wires first") && tt.presses == 1:
					if err := manager.Thaw(); err != nil {
						t.Fatal(err)
					}
				case strings.Contains(line, "nsm: closing the wires first"):
					press("\x03")
				}
			}
			if err := c.Wait(); err == nil || err.Error() != tt.ends {
				t.Errorf("ended with %v, want %s", err, tt.ends)
			}
			left := slices.ContainsFunc(said, func(s string) bool { return strings.Contains(s, "expires by itself: db on nsm-1 in ") })
			if left != (tt.presses > 1) {
				t.Errorf("said what is left: %v", left)
			}
			if tt.presses > 1 {
				return // it expires soon
			}
			if links, err := l.WireLinks(); err != nil || len(links) > 0 {
				t.Errorf("ends of wires left: %v, %v", links, err)
			}
		})
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

// What is done for a process ends with it: its endpoint is taken from the registry,
// its wires are closed, also those that were to be left.
func TestProcessEnds(t *testing.T) {
	l := newMesh(t, lab.Config{})
	a := l.Node("a")
	server, client := workload(t, a, "db"), workload(t, a, "web")
	sleep := func(ns *lab.NetNS) *lab.Process {
		p, err := ns.Start(t.Context(), "", "sleep", "1000")
		if err != nil {
			t.Fatal(err)
		}
		stopAtEnd(t, p)
		return p
	}
	postgres, web := sleep(server), sleep(client)
	endpoint := serve(t, server, "db", "--name", "db", "--cidr", "10.60.0.0/24", "--pid", fmt.Sprint(postgres.PID))
	unchanged(t, l)
	w := connect(t, client, "kernel://db/nsm-1", "--name", "web", "--leave", "--pid", fmt.Sprint(web.PID))
	ends := func(of, with *lab.Process, says string) {
		t.Helper()
		if err := of.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-with.Done()
		if code := with.ExitCode(); code != 1 || !strings.Contains(with.Output(), says) {
			t.Errorf("exit code %d, want 1 and %q:\n%s", code, says, with.Output())
		}
	}
	ends(web, w.client, fmt.Sprintf("process %d has ended", web.PID))
	ends(postgres, endpoint, fmt.Sprintf("process %d has ended", postgres.PID))
	if _, err := a.Nsm(t.Context(), "get", "endpoint", "db"); exitCode(err) != 3 {
		t.Errorf("the endpoint after its process: %v, want exit code 3", err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/lab"
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
	terminal := atTerminal(t, a, "connect", "kernel://db/nsm-1", "--", "sh", "-c", script)
	presses := 0
	for said := range terminal.lines {
		if presses < 2 && (strings.HasSuffix(said, "at work") || strings.HasSuffix(said, "interrupted")) {
			presses++
			terminal.press("\x03")
		}
	}
	if terminal.ended != "exit status 7" {
		t.Errorf("ended with %s, want exit code 7", terminal.ended)
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
			terminal := atTerminal(t, a, "connect", "--max-token-lifetime="+tt.lifetime, "kernel://db/nsm-1", "--", "sh", "-c", "echo at work; read line; exit 7")
			var said []string
			for line := range terminal.lines {
				said = append(said, line)
				switch {
				case strings.HasSuffix(line, "at work"):
					if err := manager.Freeze(); err != nil { // so that closing takes a while
						t.Fatal(err)
					}
					defer manager.Thaw()
					terminal.press("\n")
				case line == "nsm: closing the wires":
					terminal.press("\x03")
				case strings.Contains(line, "nsm: closing the wires first") && tt.presses == 1:
					if err := manager.Thaw(); err != nil {
						t.Fatal(err)
					}
				case strings.Contains(line, "nsm: closing the wires first"):
					terminal.press("\x03")
				}
			}
			if terminal.ended != tt.ends {
				t.Errorf("ended with %q, want %s", terminal.ended, tt.ends)
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

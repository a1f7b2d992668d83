// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// startDaemon starts a daemon in a process of its own and returns when it is
// ready: an authority, which needs nothing but the test's folder.
func startDaemon(t *testing.T, shell string) (c *exec.Cmd, rest *bufio.Reader) {
	t.Helper()
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "nsm") // by that name the test binary is nsm
	if err := os.Symlink(exe, bin); err != nil {
		t.Fatal(err)
	}
	c = exec.Command("sh", "-c", shell+` exec "$@"`, "sh", bin, "authority", "--authority-listen-on=tcp://127.0.0.1:0",
		"--socket=unix://"+filepath.Join(dir, "s"), "--state-dir="+filepath.Join(dir, "state"))
	c.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	both, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { both.Close() })
	c.Stdout, c.Stderr = w, w
	err = c.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	rest = bufio.NewReader(both)
	for {
		line, err := rest.ReadString('\n')
		if err != nil {
			t.Fatalf("not ready: %v", err)
		}
		if strings.Contains(line, " listens on ") {
			return c, rest
		}
	}
}

// A terminal that goes ends a process as SIGTERM does, also when it is told so
// more than once.
func TestHangup(t *testing.T) {
	c, rest := startDaemon(t, "")
	for range 3 {
		if err := c.Process.Signal(syscall.SIGHUP); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
	}
	said, err := io.ReadAll(rest)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil || !strings.Contains(string(said), "stopped") {
		t.Errorf("ended with %v, saying %q", err, said)
	}
}

// nohup is respected.
func TestHangupIgnored(t *testing.T) {
	for _, tt := range []struct {
		shell   string
		ignores bool
	}{{"", false}, {"trap '' HUP;", true}} {
		c, _ := startDaemon(t, tt.shell)
		if got := ignored(t, c.Process.Pid, syscall.SIGHUP); got != tt.ignores {
			t.Errorf("after %q: ignores SIGHUP: %v, want %v", tt.shell, got, tt.ignores)
		}
	}
}

// ignored reads which signals a process ignores from proc(5).
func ignored(t *testing.T, pid int, s syscall.Signal) bool {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(status), "\nSigIgn:\t")
	if !ok {
		t.Fatalf("no SigIgn in %s", status)
	}
	mask, err := strconv.ParseUint(strings.Fields(after)[0], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return mask>>(uint(s)-1)&1 == 1
}

// A command that is told to stop says itself what became of it.
func TestCommandStatusWhenToldToStop(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		want         error
	}{
		{"ends well", "trap 'exit 0' TERM", nil},
		{"has a code of its own", "trap 'exit 7' TERM", commandStatus(7)},
		{"dies of it", ":", nil},
		{"is killed", "trap 'kill -KILL $$' TERM", commandStatus(137)},
		{"ends by itself", "exit 3", commandStatus(3)},
		{"dies by itself", "kill -USR1 $$", commandStatus(128 + int(syscall.SIGUSR1))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			a := newApp()
			a.in, a.out, a.err = nil, w, w
			done := make(chan error, 1)
			go func() {
				done <- (&workload{}).run(ctx, a, []string{"sh", "-c", tt.script + "; echo ready; while :; do sleep 0.05; done"})
				w.Close()
			}()
			if _, err := r.Read(make([]byte, 6)); err == nil { // else it has ended before
				cancel()
			}
			if got := <-done; !errors.Is(got, tt.want) {
				t.Errorf("got %v (%#v), want %#v", got, got, tt.want)
			}
		})
	}
}

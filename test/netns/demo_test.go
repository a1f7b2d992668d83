// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/nstest"
)

// demo is 'nsm demo' with a folder for temporary files of its own.
func demo(t *testing.T, args ...string) *exec.Cmd {
	c := exec.Command(nstest.Program(), append([]string{"demo"}, args...)...)
	c.Env = append(os.Environ(), "TMPDIR="+t.TempDir(), "GORACE=atexit_sleep_ms=0")
	return c
}

// The demo shows what it promises, also when two run at once, and leaves nothing.
func TestDemo(t *testing.T) {
	t.Parallel() // it mostly waits
	var wg sync.WaitGroup
	for range 2 {
		c := demo(t)
		wg.Go(func() {
			out, err := c.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "checks hold") {
				t.Errorf("%v:\n%s", err, out)
			}
			if bytes.Contains(out, []byte("\x1b")) {
				t.Error("colours, but not on a terminal")
			}
			if left, err := os.ReadDir(tmpOf(c)); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
	wg.Wait()
}

// A demo that is interrupted in the middle leaves nothing.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel() // it mostly waits
	c := demo(t)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "4. ") {
	}
	name, dir := labOf(t, c)
	if there := lab.Find(name, dir); len(there.Processes) < 7 {
		t.Errorf("in the middle there is only %+v", there)
	}
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Error(err)
	}
	_ = c.Wait()
	if code := c.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	if left := lab.Find(name, dir); !left.Empty() {
		t.Errorf("left behind: %+v", left)
	}
}

// A demo that is kept goes on until it is stopped.
func TestDemoKept(t *testing.T) {
	t.Parallel() // it mostly waits
	c := demo(t, "--keep")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	name, dir := labOf(t, c)
	get := exec.Command(nstest.Program(), "get", "wires", "web-0")
	get.Env = append(os.Environ(), "NSM_CONNECT_TO=unix://"+dir+"/a/nsm.io.sock", "SPIFFE_ENDPOINT_SOCKET=unix://"+dir+"/a/identity.sock")
	if out, err := get.CombinedOutput(); err != nil || !strings.Contains(string(out), "UP") {
		t.Errorf("%v:\n%s", err, out)
	}
	stop := exec.Command(nstest.Program(), "demo", "--stop")
	stop.Env = c.Env
	if out, err := stop.CombinedOutput(); err != nil || !strings.Contains(string(out), "stopped "+name) {
		t.Errorf("%v:\n%s", err, out)
	}
	if left := lab.Find(name, dir); !left.Empty() {
		t.Errorf("left behind: %+v", left)
	}
}

// labOf returns the name and the folder of a demo's lab.
func labOf(t *testing.T, c *exec.Cmd) (name, dir string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(tmpOf(c), "nsm-demo-*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("labs %v, %v, want one", found, err)
	}
	return filepath.Base(found[0]), found[0]
}

func tmpOf(c *exec.Cmd) (dir string) {
	for _, v := range c.Env {
		if tmp, ok := strings.CutPrefix(v, "TMPDIR="); ok {
			dir = tmp
		}
	}
	return dir
}

// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
			start := time.Now()
			out, err := c.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "checks hold") {
				t.Errorf("%v:\n%s", err, out)
			}
			took(t, "the demo", start, time.Minute)
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

// A demo that is kept goes on until it is stopped, however it came to its rights,
// and what it prints can be typed as it is printed.
func TestDemoKept(t *testing.T) {
	for _, tt := range []struct {
		rights string
		as     func(t *testing.T, c *exec.Cmd)
		named  bool // by whoever starts it
	}{
		{"", func(*testing.T, *exec.Cmd) {}, false},
		{"a user namespace", asUserWithNamespaces, false},
		{"sudo", asUserWithSudo, true},
	} {
		t.Run("by "+tt.rights, func(t *testing.T) {
			t.Parallel() // it mostly waits
			c := demo(t, "--keep")
			tt.as(t, c)
			own := fmt.Sprintf("own%d", os.Getpid())
			if tt.named {
				c.Env = append(c.Env, "NSM_DEMO_NAME="+own)
			}
			out, err := c.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "rights: "+tt.rights) {
				t.Fatalf("%v:\n%s", err, out)
			}
			name, dir := labOf(t, c)
			t.Cleanup(func() { _ = lab.Remove(name, dir) })
			if (name == "nsm-demo-"+own) != tt.named {
				t.Errorf("it is called %s", name)
			}
			if c.SysProcAttr != nil { // nobody else can end it
				refused := exec.Command(nstest.Program(), "demo", "--stop")
				refused.Env, refused.SysProcAttr = c.Env, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}}
				if out, err := refused.CombinedOutput(); refused.ProcessState.ExitCode() != 4 || !strings.Contains(string(out), "somebody else has started that") {
					t.Errorf("somebody else stops it: %v:\n%s", err, out)
				}
			}

			_, after, _ := strings.Cut(string(out), "Left running")
			outside, inside := typed(after, "$"), typed(after, "a#")
			if len(outside) < 3 || len(inside) < 4 {
				t.Fatalf("it says too little:\n%s", after)
			}
			// Of two one has to be named, as all that it prints does.
			c.Env = slices.DeleteFunc(c.Env, func(v string) bool { return strings.HasPrefix(v, "NSM_DEMO_NAME=") })
			asSame := func(args ...string) (string, int) {
				same := exec.Command(nstest.Program(), append([]string{"demo"}, args...)...)
				same.Env, same.SysProcAttr, same.Dir = c.Env, c.SysProcAttr, "/"
				out, _ := same.CombinedOutput()
				return string(out), same.ProcessState.ExitCode()
			}
			another := filepath.Join(filepath.Dir(dir), "nsm-demo-another")
			if out, err := exec.Command("sh", "-ec", `mkdir "$2"; cp -p "$1/kept" "$2"; chown --reference="$1" "$2"`, "sh", dir, another).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for _, args := range [][]string{{"--on", "a", "--", "true"}, {"--stop"}} {
				if said, code := asSame(args...); code != 2 || !strings.Contains(said, "2 demos of yours are kept") || !strings.Contains(said, "another (since") {
					t.Errorf("demo %q with two: exit code %d:\n%s", args, code, said)
				}
			}
			// Nor may there be two of a name, wherever they are.
			if tt.rights == "" {
				second := demo(t, "--name", name)
				if out, _ := second.CombinedOutput(); second.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "there is a demo of that name") {
					t.Errorf("a second one of that name:\n%s", out)
				}
			}

			// What somebody starts there ends with the rest, also in the background.
			left := exec.Command("sh", "-c", outside[0]+" -- sh -c 'sleep 300 >/dev/null 2>&1 &'")
			left.Env, left.SysProcAttr, left.Dir = c.Env, c.SysProcAttr, "/"
			if out, err := left.CombinedOutput(); err != nil || !slices.ContainsFunc(lab.Find(name, dir).Processes, func(p string) bool { return strings.HasSuffix(p, " sleep 300") }) {
				t.Errorf("left there: %v:\n%s", err, out)
			}
			// What a node has can be asked for a profile there, without being told where it is.
			parts := []string{"daemon", "authority"}
			if slices.ContainsFunc(lab.Find(name, dir).Processes, func(p string) bool { return strings.Contains(p, "wireguard-holder") }) {
				parts = append(parts, "holder")
			}
			for _, of := range parts {
				profile := exec.Command("sh", "-c", outside[0]+" -- nsm profile goroutine -o - --of "+of)
				profile.Env, profile.SysProcAttr, profile.Dir = c.Env, c.SysProcAttr, "/"
				if out, err := profile.CombinedOutput(); err != nil || !bytes.HasPrefix(out, []byte("\x1f\x8b")) {
					t.Errorf("profile of the %s: %v: %.200q", of, err, out)
				}
			}
			said := ""
			for _, line := range outside {
				sh := exec.Command("sh", "-c", line)
				sh.Env, sh.SysProcAttr, sh.Dir = c.Env, c.SysProcAttr, "/"
				if strings.HasSuffix(line, " --on a") {
					// The last line inside opens a shell, which gets what follows.
					sh.Stdin = strings.NewReader(strings.Join(inside, "\n") + "\ncat /proc/net/dev\n")
				}
				out, err := sh.CombinedOutput()
				if err != nil {
					t.Errorf("%s: %v:\n%s", line, err, out)
				}
				said += fmt.Sprintf("%s\n%s\n", line, out)
			}
			for _, part := range []string{
				"web-0 ", "ENDPOINT-NODE", "hello-a ", "Wire         ", "nsm-1:", name + "-a-web", "stopped " + name,
			} {
				if !strings.Contains(said, part) {
					t.Errorf("%q is not in\n%s", part, said)
				}
			}
			if left := lab.Find(name, dir); !left.Empty() {
				t.Errorf("left behind: %+v", left)
			}
			if said, code := asSame("--stop"); code != 0 || said != "stopped nsm-demo-another\n" {
				t.Errorf("the other one: exit code %d:\n%s", code, said)
			}
			if said, code := asSame("--on", "a"); code != 3 || !strings.Contains(said, "no demo of yours is running") {
				t.Errorf("afterwards: exit code %d:\n%s", code, said)
			}
		})
	}
}

// typed returns the lines that are printed behind a prompt.
func typed(text, prompt string) (lines []string) {
	for line := range strings.Lines(text) {
		if line, ok := strings.CutPrefix(strings.TrimSpace(line), prompt+" "); ok {
			lines = append(lines, line)
		}
	}
	return lines
}

// asUser makes c a command of a user without rights.
func asUser(t *testing.T, c *exec.Cmd) {
	t.Helper()
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	try := exec.Command("true")
	try.SysProcAttr = nobody
	if err := try.Run(); err != nil {
		t.Skipf("it needs root, to be another user: %v", err)
	}
	c.SysProcAttr, c.Dir = nobody, "/"
	if err := errors.Join(os.Chmod(filepath.Dir(tmpOf(c)), 0o755), os.Chown(tmpOf(c), 65534, 65534)); err != nil {
		t.Fatal(err)
	}
}

// asUserWithNamespaces makes c a command of a user who has nothing but user
// namespaces, as most do, and the TUN device, as most do.
func asUserWithNamespaces(t *testing.T, c *exec.Cmd) {
	asUser(t, c)
	try := exec.Command("unshare", "-Urnm", "mount", "-t", "tmpfs", "none", "/run")
	try.SysProcAttr, try.Dir = c.SysProcAttr, c.Dir
	if out, err := try.CombinedOutput(); err != nil {
		t.Skipf("users may have no namespaces here: %v: %s", err, bytes.TrimSpace(out))
	}
	if _, err := exec.LookPath("sudo"); err == nil {
		try := exec.Command("sudo", "-n", "true")
		try.SysProcAttr = c.SysProcAttr
		if try.Run() == nil {
			t.Skip("nobody has sudo here")
		}
	}
	const tun = "/dev/net/tun" // of this mount namespace
	free := filepath.Join("/run", "tun")
	err := unix.Mknod(free, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200)))
	if err == nil {
		err = errors.Join(os.Chmod(free, 0o666), unix.Mount(free, tun, "", unix.MS_BIND, ""))
	}
	if err != nil {
		t.Logf("without the TUN device: %v", err)
		return
	}
	t.Cleanup(func() {
		if err := unix.Unmount(tun, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// asUserWithSudo makes c a command of a user who can become root by sudo: by this
// test binary, in a folder that only this mount namespace has, so that it is
// nobody else's.
func asUserWithSudo(t *testing.T, c *exec.Cmd) {
	asUser(t, c)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/run", "sudo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "sudo")
	err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, self, 0o755), os.Chmod(path, 0o755|os.ModeSetuid))
	if err != nil {
		t.Fatal(err)
	}
	c.Env = append(c.Env, "PATH="+dir+":"+os.Getenv("PATH"))
}

// sudo is what sudo(8) does with "[-n] [VAR=value…] COMMAND [ARG…]".
func sudo(args []string) error {
	uid := os.Getuid()
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=/root", "SHELL=/bin/sh", fmt.Sprintf("SUDO_UID=%d", uid)}
	for len(args) > 0 && args[0] == "-n" {
		args = args[1:]
	}
	for len(args) > 0 && strings.Contains(args[0], "=") {
		env, args = append(env, args[0]), args[1:]
	}
	if uid == 0 || len(args) == 0 {
		return errors.New("nothing to do")
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(0, 0, 0), syscall.Setresuid(0, 0, 0)); err != nil {
		return err
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, args, env)
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

// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/internal/nstest"
	"github.com/openvwire/nsm/sdk/nserr"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func newTable(t *testing.T) *netns.Table {
	table, err := netns.NewTable()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.Close)
	return table
}

func newNS(t *testing.T) *os.File {
	f, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func keyOf(t *testing.T, f *os.File) string {
	key, err := netns.Key(f)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// inside returns the key of the namespace that the calling thread is in.
func inside() (string, error) {
	f, err := netns.Current()
	if err != nil {
		return "", err
	}
	defer f.Close()
	return netns.Key(f)
}

func TestTableHoldsOneHandlePerNamespace(t *testing.T) {
	table := newTable(t)
	f := newNS(t)
	again, err := netns.Open(procPath(f))
	if err != nil {
		t.Fatal(err)
	}
	before := len(nstest.Descriptors())
	key, err := table.Add(f)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := table.Add(again); err != nil || second != key {
		t.Fatalf("the same namespace again: %q, %v; want %q", second, err, key)
	}
	if err := table.Hold(key); err != nil {
		t.Fatal(err)
	}
	if n := len(nstest.Descriptors()); n != before-1 {
		t.Errorf("%d descriptors for one namespace, want the second one closed", n-before)
	}
	h, err := table.Get(key)
	if err != nil || h.Key() != key {
		t.Fatal(h, err)
	}
	for range 2 {
		table.Release(key)
		if err := h.Do(func() error { return nil }); err != nil {
			t.Fatalf("released too early: %v", err)
		}
	}
	table.Release(key)
	table.Release(key) // of an unknown key: ignored
	if n := len(nstest.Descriptors()); n != before-2 {
		t.Errorf("%d descriptors left after the last release", n-before+2)
	}
	for what, err := range map[string]error{
		"Do":      h.Do(func() error { return nil }),
		"Control": h.Control(func(int) error { return nil }),
		"Hold":    table.Hold(key),
	} {
		if !errors.Is(err, nserr.NoNetNS) {
			t.Errorf("%s after the last release: %v, want NoNetNS", what, err)
		}
	}
	if err := (*netns.Handle)(nil).Do(func() error { return nil }); !errors.Is(err, nserr.NoNetNS) {
		t.Errorf("Do of no handle: %v, want NoNetNS", err)
	}
	if _, err := table.Get(key); !errors.Is(err, nserr.NoNetNS) {
		t.Errorf("Get after the last release: %v, want NoNetNS", err)
	}
}

func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

func TestDoRunsInside(t *testing.T) {
	table := newTable(t)
	f := newNS(t)
	want := keyOf(t, f)
	key, err := table.Add(f)
	if err != nil {
		t.Fatal(err)
	}
	var inner sync.WaitGroup
	for range 20 {
		inner.Go(func() {
			err := table.Do(key, func() error {
				got, err := inside()
				if got != want {
					t.Errorf("inside %s, want %s", got, want)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	inner.Wait()
	own, err := inside()
	if err != nil || own != table.Self().Key() {
		t.Errorf("the caller is in %s, want %s: %v", own, table.Self().Key(), err)
	}
	want2 := errors.New("of the function")
	if err := table.Do(key, func() error { return want2 }); err != want2 {
		t.Errorf("Do returned %v", err)
	}
	// A function that never returns (t.FailNow does this) must not hang Do.
	if err := table.Do(key, func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error from a function that did not return")
	}
}

// A socket stays where it was made.
func TestSocketStaysInside(t *testing.T) {
	table := newTable(t)
	key, err := table.Add(newNS(t))
	if err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	err = table.Do(key, func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:80")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err := net.Dial("tcp", "127.0.0.1:80"); err == nil {
		c.Close()
		t.Error("reached the listener from outside")
	}
	err = table.Do(key, func() error {
		c, err := net.Dial("tcp", "127.0.0.1:80")
		if err == nil {
			c.Close()
		}
		return err
	})
	if err != nil {
		t.Errorf("from inside: %v", err)
	}
}

func TestAddRefusesWhatIsNoNetworkNamespace(t *testing.T) {
	table := newTable(t)
	fifo := filepath.Join(t.TempDir(), "fifo") // opening one for reading would block
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/etc/passwd", "/proc/self/ns/mnt", "/", fifo, "/proc/self/exe"} {
		for _, flags := range []int{unix.O_PATH, unix.O_RDONLY | unix.O_NONBLOCK} {
			fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(fd), path)
			if netns.IsNetNS(f) {
				t.Errorf("IsNetNS(%s) is true", path)
			}
			if _, err := table.Add(f); !errors.Is(err, nserr.NoNetNS) {
				t.Errorf("Add(%s): %v, want NoNetNS", path, err)
			}
			if f.Close() == nil {
				t.Errorf("Add(%s) left the file open", path)
			}
		}
		if _, err := netns.Open(path); !errors.Is(err, nserr.NoNetNS) {
			t.Errorf("Open(%s): %v, want NoNetNS", path, err)
		}
	}
	if _, err := table.Add(nil); !errors.Is(err, nserr.NoNetNS) {
		t.Errorf("Add(nil): %v, want NoNetNS", err)
	}
	if _, err := netns.Open("/run/netns/none"); !errors.Is(err, nserr.NoNetNS) {
		t.Errorf("Open of nothing: %v, want NoNetNS", err)
	}
}

// Peers send namespaces as O_PATH descriptors (protocol §2.14).
func TestAddTakesPathDescriptors(t *testing.T) {
	table := newTable(t)
	ns := newNS(t)
	defer ns.Close()
	fd, err := unix.Open(procPath(ns), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "from a peer")
	if !netns.IsNetNS(f) {
		t.Error("IsNetNS is false for an O_PATH descriptor of a namespace")
	}
	key, err := table.Add(f)
	if err != nil {
		t.Fatal(err)
	}
	if key != keyOf(t, ns) {
		t.Errorf("key is %s, want %s", key, keyOf(t, ns))
	}
	if err := table.Do(key, func() error { return nil }); err != nil {
		t.Error(err)
	}
}

func TestNamed(t *testing.T) {
	f, err := netns.NewNamed("blue")
	if err != nil {
		t.Fatal(err)
	}
	key := keyOf(t, f)
	f.Close()
	if _, err := netns.NewNamed("blue"); !errors.Is(err, nserr.NameTaken) {
		t.Errorf("the same name again: %v, want NameTaken", err)
	}
	g, err := netns.OpenNamed("blue")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if keyOf(t, g) != key {
		t.Error("another namespace under the same name")
	}
	if name := netns.Names()[key]; name != "blue" {
		t.Errorf("the namespace's name is %q", name)
	}
	if pid, ok := netns.Processes()[key]; ok {
		t.Errorf("process %d is in a namespace that is empty", pid)
	}
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if pid := netns.Processes()[keyOf(t, own)]; pid == 0 || pid > os.Getpid() {
		t.Errorf("process %d is the first in the own namespace, of process %d", pid, os.Getpid())
	}
	for range 2 { // idempotent
		if err := netns.DeleteNamed("blue"); err != nil {
			t.Fatal(err)
		}
	}
	if name, ok := netns.Names()[key]; ok {
		t.Errorf("deleted, and still named %q", name)
	}
	for _, bad := range []string{"", ".", "..", "../netns2", "a/b", strings.Repeat("x", 256)} {
		if _, err := netns.NewNamed(bad); !errors.Is(err, nserr.NoNetNS) {
			t.Errorf("NewNamed(%.10q): %v, want NoNetNS", bad, err)
		}
		if err := netns.DeleteNamed(bad); !errors.Is(err, nserr.NoNetNS) {
			t.Errorf("DeleteNamed(%.10q): %v, want NoNetNS", bad, err)
		}
	}
}

func TestOfPID(t *testing.T) {
	c := exec.Command("cat") // until its input ends
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	input, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	f, err := netns.OfPID(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if own, _ := inside(); keyOf(t, f) == own {
		t.Error("the process is in our own namespace")
	}
	input.Close()
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := netns.OfPID(c.Process.Pid); !errors.Is(err, nserr.NoNetNS) {
		t.Errorf("of a process that ended: %v, want NoNetNS", err)
	}
}

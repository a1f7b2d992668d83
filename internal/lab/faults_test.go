// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/nstest"
)

// What starts again is the same command in the same place, of the build that the
// lab has now.
func TestRestart(t *testing.T) {
	l := open(t, lab.Config{})
	if err := l.StartDaemons(t.Context()); err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(t.TempDir(), "newer")
	if err := os.Link(nstest.Program(), newer); err != nil {
		t.Fatal(err)
	}
	l.Use(newer)
	before := l.Daemons()
	for _, old := range before {
		if old.Part == "manager" {
			old.Kill()
		}
		p, err := old.Restart(t.Context())
		if err != nil {
			t.Fatalf("%s on %s: %v", old.Part, old.Node, err)
		}
		if l.Daemon(old.Node, old.Part) != p || p.PID == old.PID {
			t.Errorf("%s on %s is not the new process", old.Part, old.Node)
		}
		if exe, err := os.Readlink("/proc/" + strconv.Itoa(p.PID) + "/exe"); err != nil || exe != newer {
			t.Errorf("%s on %s runs %s, %v", old.Part, old.Node, exe, err)
		}
		if _, args, _ := strings.Cut(old.Command, " "); p.Command != "newer "+args {
			t.Errorf("%q became %q", old.Command, p.Command)
		}
	}
	if got := len(l.Daemons()); got != len(before) {
		t.Errorf("%d daemons, before %d", got, len(before))
	}
}

// A frozen process does nothing until it is thawed, and stops all the same.
func TestFreeze(t *testing.T) {
	l := open(t, lab.Config{Nodes: []string{"a"}})
	ns := l.Node("a").NetNS
	p, err := ns.Start(t.Context(), "", "sh", "-c", "read -r _; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done() // its standard input is empty
	if p, err = ns.Start(t.Context(), "", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if err := p.Freeze(); err != nil {
		t.Fatal(err)
	}
	stranger := lab.Stranger{PID: p.PID}
	if err := stranger.Freeze(); err != nil { // is frozen: found to be
		t.Error(err)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
		t.Error("a frozen process has ended")
	case <-time.After(100 * time.Millisecond):
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if p, err = ns.Start(t.Context(), "", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if err := (&lab.Stranger{PID: p.PID}).Kill(); err != nil {
		t.Error(err)
	}
	<-p.Done()
}

// A node without its link is reached by nobody, and again when it has it back.
func TestLinkDown(t *testing.T) {
	for _, names := range [][]string{{"a", "b"}, {"a", "b", "c"}} {
		t.Run(strconv.Itoa(len(names)), func(t *testing.T) {
			l := open(t, lab.Config{Nodes: names})
			a, b := l.Node("a"), l.Node("b")
			before, err := l.State()
			if err != nil {
				t.Fatal(err)
			}
			for _, addr := range []netip.Addr{b.Addr, b.Addr6} {
				listener := listen(t, b.NetNS, netip.AddrPortFrom(addr, 0))
				reach := func(limit time.Duration) error {
					return a.NetNS.Do(func() error {
						c, err := net.DialTimeout("tcp", listener.Addr().String(), limit)
						if err == nil {
							c.Close()
						}
						return err
					})
				}
				if err := b.LinkDown(); err != nil {
					t.Fatal(err)
				}
				if reach(200*time.Millisecond) == nil {
					t.Errorf("%s is reached over a link that is down", addr)
				}
				if err := b.LinkUp(); err != nil {
					t.Fatal(err)
				}
				if err := reach(10 * time.Second); err != nil {
					t.Error(err)
				}
			}
			after, err := l.State()
			if err != nil || strings.Join(before, "\n") != strings.Join(after, "\n") {
				t.Errorf("%v: before\n%s\nafter\n%s", err, strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
		})
	}
}

// State directories have their own disk, which can be filled; goroutines and
// descriptors can be counted.
func TestDiskAndCensus(t *testing.T) {
	l := open(t, lab.Config{Nodes: []string{"a"}, Profiles: true, StateSize: 1 << 20})
	if err := l.StartDaemons(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := l.Node("a")
	file := filepath.Join(a.Dir, "registry", "more")
	if err := a.FillDisk("registry"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("x"), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing to a full disk: %v", err)
	}
	if err := a.FreeDisk("registry"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	for _, p := range l.Daemons() {
		n, err := p.Goroutines(t.Context())
		if err != nil || n < 5 {
			t.Errorf("%s: %d goroutines, %v", p.Part, n, err)
		}
		open, err := lab.Descriptors(p.PID)
		if err != nil || open["socket"] < 2 || open["eventpoll"] != 1 {
			t.Errorf("%s: descriptors %v, %v", p.Part, open, err)
		}
	}
}

// The holder is found when there is one.
func TestHolder(t *testing.T) {
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skipf("userspace WireGuard needs TUN devices: %v", err)
	} else {
		f.Close()
	}
	l := open(t, lab.Config{})
	if err := l.StartDaemons(t.Context()); err != nil {
		t.Fatal(err)
	}
	a, b := l.Node("a"), l.Node("b")
	if _, err := a.Holder(); err == nil {
		t.Error("a holder without a wire")
	}
	if _, err := b.NetNS.Serve(t.Context(), "db", "--cidr", "10.60.0.0/24"); err != nil {
		t.Fatal(err)
	}
	client, err := a.Workload("web")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Connect(t.Context(), "kernel://db/nsm-1"); err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes() {
		h, err := n.Holder()
		if err != nil {
			t.Errorf("node %s: %v", n.Name, err)
			continue
		}
		if open, err := lab.Descriptors(h.PID); err != nil || open["tun"] == 0 {
			t.Errorf("node %s: descriptors %v, %v", n.Name, open, err)
		}
		if err := h.Freeze(); err != nil {
			t.Error(err)
		}
		if err := h.Thaw(); err != nil {
			t.Error(err)
		}
	}
}

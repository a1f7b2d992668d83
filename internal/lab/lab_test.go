// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/nstest"
)

func TestMain(m *testing.M) { nstest.MainWith(m, "github.com/openvwire/nsm/cmd/nsm") }

func open(t *testing.T, c lab.Config) *lab.Lab {
	t.Helper()
	c.Binary = nstest.Program()
	l, err := lab.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left := lab.Find(l.Name, l.Dir); !left.Empty() {
			t.Errorf("left behind: %+v", left)
		}
	})
	return l
}

// Every node reaches every other one, over both address families.
func TestUnderlay(t *testing.T) {
	for nodes := range 4 {
		if nodes == 0 {
			continue
		}
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			l := open(t, lab.Config{Nodes: []string{"a", "b", "c"}[:nodes]})
			for _, server := range l.Nodes() {
				for _, addr := range []netip.Addr{server.Addr, server.Addr6} {
					listener := listen(t, server.NetNS, netip.AddrPortFrom(addr, 0))
					for _, client := range l.Nodes() {
						err := client.NetNS.Do(func() error {
							c, err := net.DialTimeout("tcp", listener.Addr().String(), 5*time.Second)
							if err == nil {
								c.Close()
							}
							return err
						})
						if err != nil {
							t.Errorf("from %s to %s: %v", client.Name, server.Name, err)
						}
					}
				}
			}
		})
	}
}

func listen(t *testing.T, ns *lab.NetNS, at netip.AddrPort) (l net.Listener) {
	t.Helper()
	err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// The daemons of two nodes start and stop, with a wire between them.
func TestDaemons(t *testing.T) {
	for name, start := range map[string]func(*lab.Lab) error{
		"separate": func(l *lab.Lab) error { return l.StartDaemons(t.Context()) },
		"up":       func(l *lab.Lab) error { return l.StartUp(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			l := open(t, lab.Config{})
			if err := start(l); err != nil {
				t.Fatal(err)
			}
			b := l.Node("b").NetNS
			if _, err := b.Serve(t.Context(), "db", "--cidr", "10.60.0.0/24", "--", "sleep", "1000"); err != nil {
				t.Fatal(err)
			}
			out, err := l.Node("a").Nsm(t.Context(), "connect", "kernel://db/nsm-1", "--", "cat", "/proc/net/dev")
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out, "nsm-1") {
				t.Errorf("no interface nsm-1 in\n%s", out)
			}
		})
	}
}

// A command's failure comes with its exit code and what it said.
func TestExitCode(t *testing.T) {
	l := open(t, lab.Config{Nodes: []string{"a"}})
	_, err := l.Node("a").Nsm(t.Context(), "get", "wires")
	exit, ok := err.(*lab.ExitError)
	if !ok || exit.Code != 5 || !strings.Contains(exit.Stderr, "no manager") {
		t.Errorf("%v, want exit code 5", err)
	}
	_, err = l.Node("a").NetNS.StartNsm(t.Context(), "never", "get", "wires")
	if exit, ok := err.(*lab.ExitError); !ok || exit.Code != 5 {
		t.Errorf("%v, want exit code 5", err)
	}
}

// The guard removes the lab of a maker that dies, daemons and all.
func TestGuard(t *testing.T) {
	if name := os.Getenv("GUARDED_LAB"); name != "" {
		makeAndHang(t, name)
	}
	const name = "nsm-guarded"
	dir := filepath.Join(os.TempDir(), name)
	maker := exec.Command("/proc/self/exe", "-test.run=^TestGuard$")
	maker.Env = append(os.Environ(), "GUARDED_LAB="+name)
	out, err := maker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := maker.Start(); err != nil {
		t.Fatal(err)
	}
	var guard int
	if _, err := fmt.Fscanf(out, "guard %d\n", &guard); err != nil {
		t.Fatal(err)
	}
	left := lab.Find(name, dir)
	if len(left.Processes) < 2 || len(left.Namespaces) != 2 || len(left.Files) != 1 {
		t.Fatalf("found %+v", left)
	}
	if err := maker.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = maker.Wait()
	lab.AwaitEnd(guard)
	if left := lab.Find(name, dir); !left.Empty() {
		t.Errorf("left behind: %+v", left)
	}
}

// makeAndHang is the maker that TestGuard kills.
func makeAndHang(t *testing.T, name string) {
	l, err := lab.New(t.Context(), lab.Config{Name: name, Binary: nstest.Program()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Node("a").Start(t.Context(), "authority"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Node("b").NetNS.Start(t.Context(), "", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("guard %d\n", l.GuardPID())
	select {}
}

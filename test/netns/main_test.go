// SPDX-License-Identifier: Apache-2.0

// Package netns_test runs the mesh end to end: real daemons and workloads as
// processes of their own, on nodes that are network namespaces, over the real
// kernel. Every test compares all of the kernel's objects before and after.
package netns_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/nstest"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "sudo" { // see asUserWithSudo
		fmt.Fprintln(os.Stderr, "sudo:", sudo(os.Args[1:]))
		os.Exit(1)
	}
	if os.Args[0] == atTerminalArg {
		lead(os.Args[1:])
		return
	}
	if door := os.Getenv(asNobody); door != "" {
		if err := try(door); err != nil {
			fmt.Print(err)
		} else {
			fmt.Print("open")
		}
		return
	}
	nstest.MainWith(m, "github.com/openvwire/nsm/cmd/nsm")
}

// newLab makes a lab whose end leaves nothing.
func newLab(t *testing.T, c lab.Config) *lab.Lab {
	t.Helper()
	c.Binary = nstest.Program()
	c.Env = append(c.Env, "GORACE=atexit_sleep_ms=0", // short-lived commands need not wait for reports
		"NSM_DIAL_TIMEOUT=1m") // load must not fail a test
	l, err := lab.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range l.Daemons() {
				t.Logf("%s on %s:\n%s", p.Command, p.Node, p.Output())
			}
		}
		findRaces(t, l)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left := lab.Find(l.Name, l.Dir); !left.Empty() {
			t.Errorf("left behind: %+v", left)
		}
	})
	return l
}

// findRaces looks for what the race detector has told the logs.
func findRaces(t *testing.T, l *lab.Lab) {
	logs, err := filepath.Glob(filepath.Join(l.Dir, "*.log"))
	if err != nil || len(logs) == 0 {
		t.Errorf("no logs: %v", err)
	}
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		for _, bad := range []string{"DATA RACE", "panic: ", "fatal error: "} {
			if strings.Contains(string(text), bad) {
				t.Errorf("%s:\n%s", filepath.Base(path), text)
			}
		}
	}
}

// newMesh is a lab with its daemons running.
func newMesh(t *testing.T, c lab.Config) *lab.Lab {
	t.Helper()
	l := newLab(t, c)
	if err := l.StartDaemons(t.Context()); err != nil {
		t.Fatal(err)
	}
	unchanged(t, l)
	return l
}

// needTUN skips a test of what a machine without TUN devices cannot have.
func needTUN(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("userspace WireGuard needs TUN devices: %v", err)
	}
	f.Close()
}

// unchanged checks at the end of the test, when what it has started since is
// stopped, that the kernel has what it had at this moment.
func unchanged(t *testing.T, l *lab.Lab) {
	t.Helper()
	before := state(t, l)
	t.Cleanup(func() {
		eventually(t, 10*time.Second, func() error {
			after := state(t, l)
			if slices.Equal(before, after) {
				return nil
			}
			return fmt.Errorf("the kernel's state has changed:\n%s", difference(before, after))
		})
	})
}

func state(t *testing.T, l *lab.Lab) []string {
	t.Helper()
	lines, err := l.State()
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func difference(before, after []string) string {
	var b strings.Builder
	for _, line := range before {
		if !slices.Contains(after, line) {
			b.WriteString("- " + line + "\n")
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			b.WriteString("+ " + line + "\n")
		}
	}
	return b.String()
}

// eventually asks again and again until f is content: for what the kernel and
// other processes do on their own and tell nobody.
func eventually(t *testing.T, limit time.Duration, f func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(limit)
	for err := f(); err != nil; err = f() {
		if time.Now().After(deadline) {
			t.Errorf("after %v: %v", limit, err)
			return
		}
		<-tick.C
	}
}

// workload makes a workload's namespace that goes with the test.
func workload(t *testing.T, n *lab.Node, name string) *lab.NetNS {
	t.Helper()
	ns, err := n.Workload(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Delete(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// serve starts an endpoint in the namespace; it stops with the test.
func serve(t *testing.T, ns *lab.NetNS, args ...string) *lab.Process {
	t.Helper()
	p, err := ns.Serve(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, p)
	return p
}

func stopAtEnd(t *testing.T, p *lab.Process) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s:\n%s", p.Command, p.Output())
		}
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// wire is what 'nsm connect' says about one.
type wire struct {
	client         *lab.Process
	inside         []netip.Addr // of the client
	link, endpoint string
	far            []netip.Addr // of the endpoint
}

var isUp = regexp.MustCompile(`^nsm: \S+ is up: (.*) on (\S+), the endpoint (\S+) has (.*)$`)

// connect starts a client in the namespace; it stops with the test.
func connect(t *testing.T, ns *lab.NetNS, args ...string) wire {
	t.Helper()
	w, err := tryConnect(t, ns, args...)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func tryConnect(t *testing.T, ns *lab.NetNS, args ...string) (w wire, err error) {
	t.Helper()
	p, err := ns.StartNsm(t.Context(), "", append([]string{"connect"}, args...)...)
	if err != nil {
		return w, err
	}
	stopAtEnd(t, p)
	line, err := p.WaitLine(t.Context(), isUp.MatchString)
	if err != nil {
		return w, err
	}
	w = parseWire(t, line)
	w.client = p
	return w, nil
}

func parseWire(t *testing.T, line string) wire {
	t.Helper()
	m := isUp.FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("%q does not describe a wire", line)
	}
	return wire{inside: addresses(t, m[1]), link: m[2], endpoint: m[3], far: addresses(t, m[4])}
}

func addresses(t *testing.T, text string) (list []netip.Addr) {
	t.Helper()
	for a := range strings.SplitSeq(text, " and ") {
		addr, err := netip.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, addr)
	}
	return list
}

// transfer sends a megabyte there and back between two namespaces.
func transfer(from, to *lab.NetNS, at netip.Addr) error {
	var l net.Listener
	err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
		return err
	})
	if err != nil {
		return err
	}
	defer l.Close()
	echoed := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(struct{ io.Writer }{c}, c) // not by splice(2): Go keeps the pipes
			err = errors.Join(err, c.Close())
		}
		echoed <- err
	}()
	c, err := dial(from, l.Addr().String())
	if err != nil {
		l.Close()
		<-echoed
		return err
	}
	defer c.Close()
	const size = 1 << 20
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		sent <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
	}()
	n, err := io.Copy(io.Discard, c)
	err = errors.Join(err, <-sent, <-echoed)
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes of %d came back", n, size)
	}
	return err
}

// stream is a TCP connection over a wire, both ends of it.
type stream struct{ near, far net.Conn }

func openStream(from, to *lab.NetNS, at netip.Addr) (s stream, err error) {
	var l net.Listener
	err = to.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
		return err
	})
	if err != nil {
		return s, err
	}
	defer l.Close()
	if s.near, err = dial(from, l.Addr().String()); err == nil {
		s.far, err = l.Accept()
	}
	return s, err
}

// use sends something there and back.
func (s stream) use() error {
	for _, way := range [][2]net.Conn{{s.near, s.far}, {s.far, s.near}} {
		if err := errors.Join(way[0].SetDeadline(time.Now().Add(10*time.Second)), way[1].SetDeadline(time.Now().Add(10*time.Second))); err != nil {
			return err
		}
		if _, err := way[0].Write([]byte("hello")); err != nil {
			return err
		}
		if _, err := io.ReadFull(way[1], make([]byte, 5)); err != nil {
			return err
		}
	}
	return nil
}

func (s stream) close() {
	s.near.Close()
	s.far.Close()
}

// dial connects from a namespace, within 5 s, which also limits all that follows.
func dial(from *lab.NetNS, address string) (c net.Conn, err error) {
	err = from.Do(func() error {
		c, err = net.DialTimeout("tcp", address, 5*time.Second)
		return err
	})
	if err == nil {
		err = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return c, err
}

// wireInfo is what 'nsm get wires ID -o json' says.
type wireInfo struct {
	ID               string
	State            string
	Expires          time.Time
	Client, Endpoint struct {
		Name, Node, Mechanism, Interface string
		Addresses                        []string
	}
}

func getWire(t *testing.T, n *lab.Node, id string) (w wireInfo) {
	t.Helper()
	out, err := n.Nsm(t.Context(), "get", "wires", id, "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out), &w); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return w
}

// took says how long something has taken since start, and how long it may. It fails
// only if that is beyond what a busy machine explains.
func took(t *testing.T, what string, start time.Time, budget time.Duration) {
	t.Helper()
	d := time.Since(start)
	fmt.Printf("MEASURED: %s took %.2f s; it may take %v, on a machine that has nothing else to do\n", what, d.Seconds(), budget)
	if d > 30*budget {
		t.Errorf("%s took %v, the budget is %v", what, d, budget)
	}
}

// exitCode is that of a command that has run to its end.
func exitCode(err error) int {
	if exit := (*lab.ExitError)(nil); errors.As(err, &exit) {
		return exit.Code
	}
	if err != nil {
		return -1
	}
	return 0
}

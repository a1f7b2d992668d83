// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/sdk/nserr"
)

// TestMain lets the test binary play `nsm wireguard-holder`, and a process of another
// user.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "wireguard-holder" {
		idle, _ := time.ParseDuration(os.Getenv("HOLDER_TEST_IDLE"))
		version, _ := strconv.Atoi(os.Getenv("HOLDER_TEST_VERSION"))
		if err := Main(context.Background(), Config{Socket: os.Args[3], Idle: idle, version: version}); err != nil {
			slog.Error("holder", "error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "stranger" {
		stranger(os.Args[2])
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// underlay returns a fresh namespace to run a holder in.
func underlay(t *testing.T) *netns.Table {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces and TUN devices: needs root")
	}
	f, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	table, err := netns.NewTableAt(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.Close)
	return table
}

// workload adds a fresh namespace to table.
func workload(t *testing.T, table *netns.Table) *netns.Handle {
	t.Helper()
	f, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	key, err := table.Add(f)
	if err != nil {
		t.Fatal(err)
	}
	h, err := table.Get(key)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// newTestClient returns a client; the holder it starts is stopped at the end of the test.
func newTestClient(t *testing.T, table *netns.Table, socket string) *Client {
	t.Helper()
	c, err := NewClient(t.Context(), ClientConfig{Socket: socket, Underlay: table.Self()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stopHolder(t, c)
		c.Close()
	})
	return c
}

// stopHolder ends the running holder, if any, by SIGTERM and waits for its end.
func stopHolder(t *testing.T, c *Client) {
	t.Helper()
	abandon(c)
	st, err := c.Status(context.Background())
	if err != nil {
		return
	}
	killAndWait(t, st.PID, unix.SIGTERM)
}

// abandon makes c not replace a holder that ends.
func abandon(c *Client) {
	c.mu.Lock()
	c.used = false
	c.mu.Unlock()
}

func killAndWait(t *testing.T, pid int, sig unix.Signal) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	}
	if n != 1 {
		t.Fatalf("holder %d did not end after %v: %v", pid, sig, err)
	}
}

// linkExists reports whether namespace ns has an interface of this name.
func linkExists(t *testing.T, ns *netns.Handle, name string) bool {
	t.Helper()
	err := ns.Do(func() error {
		_, err := net.InterfaceByName(name)
		return err
	})
	return err == nil
}

// deleteLink deletes an interface as a workload would.
func deleteLink(t *testing.T, ns *netns.Handle, name string) {
	t.Helper()
	err := ns.Do(func() error { return exec.Command("ip", "link", "del", name).Run() })
	if err != nil {
		t.Fatalf("ip link del %s: %v", name, err)
	}
}

func TestCreateListDelete(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	socket := filepath.Join(t.TempDir(), "wg.sock")
	c := newTestClient(t, table, socket)

	if devices, err := c.List(t.Context()); err != nil || devices != nil {
		t.Fatalf("List without a holder = %v, %v", devices, err)
	}
	if err := c.Delete(t.Context(), "w1"); err != nil {
		t.Fatalf("Delete without a holder: %v", err)
	}

	got, err := c.Create(t.Context(), ns, "w1", "nsm-1", 1400)
	if err != nil {
		t.Fatal(err)
	}
	want := Device{Tag: "w1", Name: "nsm-1", NetNS: ns.Key(), UAPI: DeviceName(socket, "w1"), MTU: 1400}
	if got != want {
		t.Errorf("Create = %+v, want %+v", got, want)
	}
	if err := ns.Do(func() error {
		ifi, err := net.InterfaceByName("nsm-1")
		if err != nil {
			return err
		}
		if ifi.MTU != 1400 || ifi.Flags&net.FlagUp != 0 {
			t.Errorf("interface = %+v, want MTU 1400 and down", ifi)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(ConfigPath(got.UAPI)); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("configuration socket: %v, %v", info, err)
	}
	if again, err := c.Create(t.Context(), ns, "w1", "nsm-1", 1400); err != nil || again != want {
		t.Errorf("second Create = %+v, %v", again, err)
	}
	if devices, err := c.List(t.Context()); err != nil || len(devices) != 1 || devices[0] != want {
		t.Errorf("List = %+v, %v", devices, err)
	}

	if err := c.Delete(t.Context(), "w1"); err != nil {
		t.Fatal(err)
	}
	if linkExists(t, ns, "nsm-1") {
		t.Error("interface is left after Delete")
	}
	if _, err := os.Stat(ConfigPath(got.UAPI)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("configuration socket is left after Delete: %v", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	c := newTestClient(t, table, filepath.Join(t.TempDir(), "wg.sock"))
	if _, err := c.Create(t.Context(), ns, "w1", "nsm-1", 1400); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what, tag, name string
		mtu             int
		want            *nserr.Reason
	}{
		{"name taken", "w2", "nsm-1", 1400, nserr.NameTaken},
		{"name of another kind of device", "w2", "lo", 1400, nserr.NameTaken},
		{"long name", "w2", "0123456789abcdef", 1400, nserr.BadName},
		{"name with slash", "w2", "a/b", 1400, nserr.BadName},
		{"pattern", "w2", "wg%d", 1400, nserr.BadName},
		{"no name", "w2", "", 1400, nserr.BadName},
		{"no tag", "", "nsm-2", 1400, nserr.BadRequest},
		{"MTU", "w2", "nsm-2", 1 << 20, nserr.KernelFailed},
	} {
		_, err := c.Create(t.Context(), ns, tt.tag, tt.name, tt.mtu)
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.what, err, tt.want.Code)
		}
	}
	if devices, err := c.List(t.Context()); err != nil || len(devices) != 1 {
		t.Errorf("List = %+v, %v, want w1 alone", devices, err)
	}
	if linkExists(t, ns, "nsm-2") {
		t.Error("a failed Create left its interface behind")
	}
}

// A tag names one device: asked for elsewhere, it moves there.
func TestCreateReplaces(t *testing.T) {
	table := underlay(t)
	ns, other := workload(t, table), workload(t, table)
	c := newTestClient(t, table, filepath.Join(t.TempDir(), "wg.sock"))
	for _, at := range []*netns.Handle{ns, other} {
		if _, err := c.Create(t.Context(), at, "w1", "nsm-1", 1400); err != nil {
			t.Fatal(err)
		}
	}
	if linkExists(t, ns, "nsm-1") || !linkExists(t, other, "nsm-1") {
		t.Error("the device is not in the second namespace alone")
	}
}

// Somebody in the workload deletes the interface: the device frees itself.
func TestInterfaceDeletedByOthers(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	c := newTestClient(t, table, filepath.Join(t.TempDir(), "wg.sock"))
	d, err := c.Create(t.Context(), ns, "w1", "nsm-1", 1400)
	if err != nil {
		t.Fatal(err)
	}
	gone := watchRemoval(t, ConfigPath(d.UAPI))
	deleteLink(t, ns, "nsm-1")
	gone()
	// The same wire can be made again at once.
	if _, err := c.Create(t.Context(), ns, "w1", "nsm-1", 1400); err != nil {
		t.Fatal(err)
	}
	if !linkExists(t, ns, "nsm-1") {
		t.Error("no interface after the second Create")
	}
}

// watchRemoval returns a function that waits until path is removed.
func watchRemoval(t *testing.T, path string) func() {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_ATTRIB|unix.IN_DELETE_SELF); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	t.Cleanup(func() { _ = f.Close() })
	_ = f.SetReadDeadline(time.Now().Add(10 * time.Second))
	return func() {
		t.Helper()
		for {
			if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
				return
			}
			var b [4096]byte
			if _, err := f.Read(b[:]); err != nil {
				t.Fatalf("%s is still there: %v", path, err)
			}
		}
	}
}

// The next forwarder adopts the holder of the last one with all its devices.
func TestAdoption(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	socket := filepath.Join(t.TempDir(), "wg.sock")
	first, before := withDevice(t, ns, ClientConfig{Socket: socket, Underlay: table.Self()})
	first.Close()

	second := newTestClient(t, table, socket)
	after, err := second.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.PID != before.PID || after.Devices != 1 || after.Forwarders != 1 {
		t.Errorf("status %+v, before %+v: not adopted", after, before)
	}
}

// Several forwarders that need a holder at the same moment get the same one.
func TestStartRace(t *testing.T) {
	table := underlay(t)
	socket := filepath.Join(t.TempDir(), "wg.sock")
	const n = 4
	var wg sync.WaitGroup
	var mu sync.Mutex
	pids := map[int]bool{}
	var clients []*Client
	for i := range n {
		c := newTestClient(t, table, socket)
		clients = append(clients, c)
		ns := workload(t, table)
		wg.Go(func() {
			if _, err := c.Create(t.Context(), ns, string(rune('a'+i)), "nsm-1", 1400); err != nil {
				t.Error(err)
				return
			}
			st, err := c.Status(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			pids[st.PID] = true
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(pids) != 1 {
		t.Errorf("%d holders serve %s: %v", len(pids), socket, pids)
	}
	c := newTestClient(t, table, socket)
	clients = append(clients, c)
	if devices, err := c.List(t.Context()); err != nil || len(devices) != n {
		t.Errorf("List = %v, %v, want %d devices", devices, err, n)
	}
	for _, c := range clients {
		abandon(c)
	}
}

// A holder that is killed is replaced, and the forwarder is told.
func TestKilledHolderIsReplaced(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	socket := filepath.Join(t.TempDir(), "wg.sock")
	restarted := make(chan struct{}, 1)
	c, err := NewClient(t.Context(), ClientConfig{Socket: socket, Underlay: table.Self(),
		OnRestart: func(context.Context) { restarted <- struct{}{} }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopHolder(t, c); c.Close() })
	d, err := c.Create(t.Context(), ns, "w1", "nsm-1", 1400)
	if err != nil {
		t.Fatal(err)
	}
	before, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(before.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-restarted:
	case <-time.After(15 * time.Second):
		t.Fatal("no new holder")
	}
	after, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.PID == before.PID || after.Devices != 0 {
		t.Errorf("status %+v after %+v", after, before)
	}
	if _, err := os.Stat(ConfigPath(d.UAPI)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the new holder left the old one's configuration socket: %v", err)
	}
	if _, err := c.Create(t.Context(), ns, "w1", "nsm-1", 1400); err != nil {
		t.Errorf("Create after the replacement: %v", err)
	}
	if state := processState(before.PID); state != "" {
		t.Errorf("killed holder is left as a zombie: %s", state)
	}
}

func processState(pid int) string {
	stat, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "stat"))
	if err != nil {
		return ""
	}
	return strings.Fields(string(stat))[2]
}

func TestIdleHolderEnds(t *testing.T) {
	t.Setenv("HOLDER_TEST_IDLE", "50ms")
	table := underlay(t)
	ns := workload(t, table)
	socket := filepath.Join(t.TempDir(), "wg.sock")
	c, err := NewClient(t.Context(), ClientConfig{Socket: socket, Underlay: table.Self()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), ns, "w1", "nsm-1", 1400); err != nil {
		t.Fatal(err)
	}
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(st.PID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	ended := func(timeout int) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, timeout)
		return n == 1
	}
	c.Close()
	if ended(300) {
		t.Fatal("a holder with a device ended")
	}
	c, err = NewClient(t.Context(), ClientConfig{Socket: socket, Underlay: table.Self()})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), "w1"); err != nil {
		t.Fatal(err)
	}
	if ended(300) {
		t.Fatal("a holder with a forwarder ended")
	}
	c.Close()
	if !ended(5000) {
		t.Fatal("an idle holder did not end")
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket is left: %v", err)
	}
}

// A forwarder that arrives while the holder is exiting gets another one.
func TestArrivalDuringExit(t *testing.T) {
	const idle = 20 * time.Millisecond
	t.Setenv("HOLDER_TEST_IDLE", idle.String())
	table := underlay(t)
	ns := workload(t, table)
	socket := filepath.Join(t.TempDir(), "wg.sock")
	for i := range 20 {
		// Not to wait for something, but to arrive at every stage of the exit.
		time.Sleep(idle/2 + time.Duration(i)*idle/20)
		c, err := NewClient(t.Context(), ClientConfig{Socket: socket, Underlay: table.Self()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Create(t.Context(), ns, "w1", "nsm-1", 1400); err != nil {
			t.Error(err)
		}
		if err := c.Delete(t.Context(), "w1"); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	newTestClient(t, table, socket) // its clean-up ends the last one
}

func TestSignals(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	c := newTestClient(t, table, filepath.Join(t.TempDir(), "wg.sock"))
	d, err := c.Create(t.Context(), ns, "w1", "nsm-1", 1400)
	if err != nil {
		t.Fatal(err)
	}
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGPIPE} {
		if err := unix.Kill(st.PID, sig); err != nil {
			t.Fatal(err)
		}
	}
	if after, err := c.Status(t.Context()); err != nil || after.PID != st.PID || after.Devices != 1 {
		t.Errorf("after SIGHUP and SIGPIPE: %+v, %v", after, err)
	}
	if sid, err := unix.Getsid(st.PID); err != nil || sid != st.PID {
		t.Errorf("session of the holder is %d (%v), want its own", sid, err)
	}
	stopHolder(t, c) // SIGTERM
	if linkExists(t, ns, "nsm-1") {
		t.Error("interface is left after SIGTERM")
	}
	for _, path := range []string{ConfigPath(d.UAPI), c.cfg.Socket} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left after SIGTERM: %v", path, err)
		}
	}
}

// A holder that cannot start says so at once.
func TestStartFails(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	for name, tt := range map[string]struct {
		command []string
		want    *nserr.Reason
	}{
		"no program": {[]string{"/nonexistent/nsm"}, nserr.KernelFailed},
		"exits":      {[]string{"/bin/false"}, nserr.KernelFailed},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := NewClient(t.Context(), ClientConfig{Socket: filepath.Join(t.TempDir(), "wg.sock"),
				Underlay: table.Self(), Command: tt.command})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Create(t.Context(), ns, "w1", "nsm-1", 1400); !errors.Is(err, tt.want) {
				t.Errorf("Create: %v, want %s", err, tt.want.Code)
			}
		})
	}
}

// Making and deleting devices leaves nothing in the holder.
func TestNoLeaks(t *testing.T) {
	table := underlay(t)
	c := newTestClient(t, table, filepath.Join(t.TempDir(), "wg.sock"))
	var wg sync.WaitGroup
	round := func() {
		for i := range 8 {
			wg.Go(func() {
				ns := workload(t, table)
				defer table.Release(ns.Key())
				tag := string(rune('a' + i))
				if _, err := c.Create(t.Context(), ns, tag, "nsm-1", 1400); err != nil {
					t.Error(err)
				}
				if err := c.Delete(t.Context(), tag); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	measure := func() (fds int, st Status) {
		st, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(filepath.Join("/proc", itoa(st.PID), "fd"))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), st
	}
	round() // what is made once and kept
	fds, before := measure()
	for range 3 {
		round()
	}
	// The last connections may still be closing; one leak in each of the 24
	// devices would show all the same.
	const slack = 10
	fdsAfter, after := measure()
	if fdsAfter > fds+slack || after.Goroutines > before.Goroutines+slack || after.Devices != 0 {
		t.Errorf("descriptors %d, %+v; before %d, %+v", fdsAfter, after, fds, before)
	}
	if left, _ := filepath.Glob(ConfigPath(namePrefix(c.cfg.Socket) + "*")); len(left) > 0 {
		t.Errorf("sockets left: %v", left)
	}
}

// SPDX-License-Identifier: Apache-2.0

package holder

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/sdk/nserr"
)

// book keeps what a client logs.
type book struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *book) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *book) count(text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.buf.String(), text)
}

func (b *book) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// freeze stops a process and waits until it stands still, or lets it go on.
func freeze(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); processState(pid) != "T"; {
		if time.Now().After(deadline) {
			t.Fatalf("state of the holder is %s", processState(pid))
		}
	}
}

func thaw(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// withDevice returns a client, which the caller closes, and the holder that it has
// started, which has a device w1 in ns and which the caller stops.
func withDevice(t *testing.T, ns *netns.Handle, cfg ClientConfig) (*Client, Status) {
	t.Helper()
	c, err := NewClient(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), ns, "w1", "nsm-1", 1400); err != nil {
		t.Fatal(err)
	}
	holder, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c, holder
}

// tooLong is far more than a call to a holder that is frozen takes, which is 3 s at
// most, and less than one that waits takes.
const tooLong = 8 * time.Second

// A holder that is frozen holds nobody up: the first who asks find out in seconds, the
// others are told at once, it is said once, and when the holder goes on so do they.
func TestFrozenHolder(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	socket := filepath.Join(t.TempDir(), "wg.sock")
	log := &book{}
	c, before := withDevice(t, ns, ClientConfig{Socket: socket, Underlay: table.Self(), Logger: log.logger()})
	t.Cleanup(func() { stopHolder(t, c); c.Close() })
	freeze(t, before.PID)
	defer thaw(t, before.PID)

	calls := map[string]func() error{
		"create": func() error { _, err := c.Create(t.Context(), ns, "w2", "nsm-2", 1400); return err },
		"delete": func() error { return c.Delete(t.Context(), "w1") },
		"list":   func() error { _, err := c.List(t.Context()); return err },
		"status": func() error { _, err := c.Status(t.Context()); return err },
		"visit":  func() error { return Visit(socket).Delete(t.Context(), "w1") },
	}
	start := time.Now()
	var wg sync.WaitGroup
	for name, call := range calls {
		for range 10 {
			wg.Go(func() {
				if err := call(); !errors.Is(err, nserr.TimedOut) || !strings.Contains(err.Error(), "process "+itoa(before.PID)) {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
	}
	wg.Wait()
	if took := time.Since(start); took > tooLong {
		t.Errorf("the first calls took %s", took)
	}
	start = time.Now()
	for range 20 { // most of them are told at once
		for name, call := range calls {
			if err := call(); name != "visit" && !errors.Is(err, nserr.TimedOut) {
				t.Errorf("%s: %v", name, err)
			}
			if name == "visit" {
				delete(calls, name) // it knows nothing of what was
			}
		}
	}
	if took := time.Since(start); took > 2*tooLong {
		t.Errorf("later ones took %s", took)
	}
	if n := log.count("level=ERROR"); n != 1 {
		t.Errorf("it was said %d times", n)
	}

	thaw(t, before.PID)
	for deadline := time.Now().Add(tooLong); ; {
		_, err := c.Create(t.Context(), ns, "w3", "nsm-3", 1400)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	// What was asked for meanwhile, and given up, is not done now.
	devices, err := c.List(t.Context())
	if err != nil || len(devices) != 2 || devices[0].Tag != "w1" || devices[1].Tag != "w3" {
		t.Errorf("List = %+v, %v", devices, err)
	}
	if after, err := c.Status(t.Context()); err != nil || after.PID != before.PID || log.count("answers again") != 1 {
		t.Errorf("status %+v, %v; said %d times", after, err, log.count("answers again"))
	}
}

// A forwarder starts although its holder is frozen, and adopts it later.
func TestFrozenHolderIsAdopted(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	socket := filepath.Join(t.TempDir(), "wg.sock")
	first, before := withDevice(t, ns, ClientConfig{Socket: socket, Underlay: table.Self()})
	first.Close()
	freeze(t, before.PID)
	defer thaw(t, before.PID)

	start, log := time.Now(), &book{}
	restarted := make(chan struct{}, 1)
	c, err := NewClient(t.Context(), ClientConfig{Socket: socket, Underlay: table.Self(), Logger: log.logger(),
		OnRestart: func(context.Context) { restarted <- struct{}{} }})
	if err != nil || time.Since(start) > tooLong {
		t.Fatalf("after %s: %v", time.Since(start), err)
	}
	t.Cleanup(func() { stopHolder(t, c); c.Close() })
	if n := log.count("level=ERROR"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
	thaw(t, before.PID)
	for deadline := time.Now().Add(tooLong); ; {
		devices, err := c.List(t.Context())
		if len(devices) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(devices, err)
		}
	}
	// It is watched: whoever kills it has it replaced.
	if err := unix.Kill(before.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-restarted:
	case <-time.After(15 * time.Second):
		t.Fatal("no new holder")
	}
}

// A frozen holder that is killed is replaced as any other.
func TestFrozenHolderIsKilled(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	socket := filepath.Join(t.TempDir(), "wg.sock")
	restarted := make(chan struct{}, 1)
	c, before := withDevice(t, ns, ClientConfig{Socket: socket, Underlay: table.Self(),
		OnRestart: func(context.Context) { restarted <- struct{}{} }})
	t.Cleanup(func() { stopHolder(t, c); c.Close() })
	freeze(t, before.PID)
	if err := c.Delete(t.Context(), "w1"); !errors.Is(err, nserr.TimedOut) {
		t.Errorf("Delete: %v", err)
	}
	if err := unix.Kill(before.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-restarted:
	case <-time.After(15 * time.Second):
		t.Fatal("no new holder")
	}
	if _, err := c.Create(t.Context(), ns, "w1", "nsm-1", 1400); err != nil {
		t.Error(err)
	}
}

// A forwarder has its devices in the holder that runs, whatever version that says it
// has: an upgrade, or a step back, loses no packet.
func TestHolderOfAnotherVersion(t *testing.T) {
	for _, version := range []int{protocolVersion - 1, protocolVersion + 1} {
		t.Run(itoa(version), func(t *testing.T) {
			if version == 0 {
				version = -1 // 0 means that nothing else is said
			}
			t.Setenv("HOLDER_TEST_VERSION", itoa(version))
			table := underlay(t)
			ns := workload(t, table)
			socket := filepath.Join(t.TempDir(), "wg.sock")
			first, err := NewClient(t.Context(), ClientConfig{Socket: socket, Underlay: table.Self()})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := first.Create(t.Context(), ns, "w1", "nsm-1", 1400); err != nil {
				t.Fatal(err)
			}
			before, err := first.Status(t.Context())
			if err != nil || before.Version != version {
				t.Fatalf("status %+v, %v", before, err)
			}
			first.Close()

			t.Setenv("HOLDER_TEST_VERSION", "")
			log := &book{}
			c, err := NewClient(t.Context(), ClientConfig{Socket: socket, Underlay: table.Self(), Logger: log.logger()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { stopHolder(t, c); c.Close() })
			if log.count("version "+itoa(version)) != 1 {
				t.Error("nobody says so")
			}
			if _, err := c.Create(t.Context(), ns, "w2", "nsm-2", 1400); err != nil {
				t.Error(err)
			}
			if err := c.Delete(t.Context(), "w1"); err != nil {
				t.Error(err)
			}
			devices, err := c.List(t.Context())
			if err != nil || len(devices) != 1 || devices[0].Tag != "w2" || linkExists(t, ns, "nsm-1") || !linkExists(t, ns, "nsm-2") {
				t.Errorf("List = %+v, %v", devices, err)
			}
			if after, err := c.Status(t.Context()); err != nil || after.PID != before.PID {
				t.Errorf("status %+v, %v: not the same holder", after, err)
			}
			// What it does not know it refuses, and goes on.
			if _, err := c.call(t.Context(), &request{Op: "later"}, nil); !errors.Is(err, nserr.BadRequest) {
				t.Errorf("an operation of a later version: %v", err)
			}
		})
	}
}

// A Create that is given up either has made the device, and says so, or makes none later.
func TestCreateGivenUp(t *testing.T) {
	table := underlay(t)
	ns := workload(t, table)
	c := newTestClient(t, table, filepath.Join(t.TempDir(), "wg.sock"))
	if _, err := c.Create(t.Context(), ns, "first", "first", 1400); err != nil {
		t.Fatal(err)
	}
	made := make(map[string]bool)
	for i := range 60 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*100*time.Microsecond)
		tag := "w" + itoa(i)
		_, err := c.Create(ctx, ns, tag, "nsm-"+itoa(i), 1400)
		cancel()
		made[tag] = err == nil
	}
	devices, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[string]bool)
	for _, d := range devices {
		have[d.Tag] = true
	}
	n := 0
	for tag, was := range made {
		if have[tag] != was {
			t.Errorf("%s: made %v, there %v", tag, was, have[tag])
		}
		if was {
			n++
		}
	}
	if n == 0 || n == len(made) {
		t.Errorf("%d of %d were made: nothing is shown", n, len(made))
	}
}

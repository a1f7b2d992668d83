// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/openvwire/nsm/sdk/nserr"
)

func TestListenUnix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "made", "on", "demand", "s.sock")
	l, err := Listen(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("socket %v, %v", info, err)
	}
	if _, err := Listen(t.Context(), "unix://"+path); !errors.Is(err, nserr.AddressInUse) {
		t.Errorf("a live socket was taken over: %v", err)
	}

	l.(*net.UnixListener).SetUnlinkOnClose(false) // as if the process had died
	l.Close()
	l, err = Listen(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatalf("a stale socket is in the way: %v", err)
	}
	l.Close()
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), "unix://"+file); !errors.Is(err, nserr.AddressInUse) {
		t.Errorf("a file was taken for a socket: %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

// Of many that find the same stale socket one gets it, and keeps it.
func TestListenRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()

	var group sync.WaitGroup
	winners := make(chan net.Listener, 10)
	for range cap(winners) {
		group.Go(func() {
			l, err := Listen(t.Context(), "unix://"+path)
			switch {
			case err == nil:
				winners <- l
			case !errors.Is(err, nserr.AddressInUse):
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(winners) != 1 {
		t.Fatalf("%d listen", len(winners))
	}
	l := <-winners
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestListenTCP(t *testing.T) {
	l, err := Listen(t.Context(), "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(t.Context(), URL(l.Addr())); !errors.Is(err, nserr.AddressInUse) {
		t.Errorf("a taken port: %v", err)
	}
}

func TestParseAddress(t *testing.T) {
	for _, test := range []struct{ url, network, name string }{
		{"unix:///run/nsm.sock", "unix", "/run/nsm.sock"},
		{"unix:///proc/self/fd/7", "unix", "/proc/self/fd/7"},
		{"tcp://127.0.0.1:5001", "tcp", "127.0.0.1:5001"},
		{"tcp://:5001", "tcp", ":5001"},
		{"tcp://[::1]:5001", "tcp", "[::1]:5001"},
		{"registry:5002", "tcp", "registry:5002"},
		{"unix://nsm.sock", "", ""},
		{"unix://", "", ""},
		{"tcp://host", "", ""},
		{"inode://4/5", "", ""},
		{"registry", "", ""},
		{"", "", ""},
	} {
		a, err := parseAddress(test.url)
		if a != (address{test.network, test.name}) {
			t.Errorf("%q is %+v", test.url, a)
		}
		if (err != nil) != (test.network == "") || err != nil && !errors.Is(err, nserr.BadFlag) {
			t.Errorf("%q: %v", test.url, err)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"unix:///run/nsm.sock", "tcp://:1", "registry:5002", "tcp://[::1]:5", "x://y", "unix:///\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAddress(s)
		if err != nil {
			return
		}
		again, err := parseAddress(a.network + "://" + a.name)
		if err != nil || again != a {
			t.Errorf("%q is %+v, then %+v, %v", s, a, again, err)
		}
		if a.network == "unix" && !strings.HasPrefix(a.name, "/") {
			t.Errorf("relative path %q", a.name)
		}
	})
}

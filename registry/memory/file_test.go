// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/internal/journal"
	"github.com/openvwire/nsm/sdk/nserr"
)

var quiet = slog.New(slog.DiscardHandler)

func openServices(t testing.TB, path string) *Store[*api.NetworkService] {
	t.Helper()
	s, err := Open[*api.NetworkService](Config{Path: path, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func set(t testing.TB, s *Store[*api.NetworkService], name, payload string) error {
	t.Helper()
	_, err := s.Update(t.Context(), name, func(*api.NetworkService) (*api.NetworkService, error) {
		return &api.NetworkService{Name: name, Payload: payload}, nil
	})
	return err
}

// contents returns payload by name.
func contents(s *Store[*api.NetworkService]) map[string]string {
	m := make(map[string]string)
	for name, ns := range s.objects.All() {
		m[name] = ns.Object.Payload
	}
	return m
}

func TestTornEndIsCutOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "services.log")
	s := openServices(t, path)
	for _, name := range []string{"a", "b"} {
		if err := set(t, s, name, "IP"); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(len(file)-3)); err != nil {
		t.Fatal(err)
	}

	var log bytes.Buffer
	s, err = Open[*api.NetworkService](Config{Path: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatalf("a torn end is fatal: %v", err)
	}
	if diff := cmp.Diff(map[string]string{"a": "IP"}, contents(s)); diff != "" {
		t.Errorf("after the cut (-want +got):\n%s", diff)
	}
	if !strings.Contains(log.String(), "torn end") {
		t.Errorf("the log does not tell: %s", log.String())
	}
	if err := set(t, s, "c", "IP"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openServices(t, path)
	defer s.Close()
	if diff := cmp.Diff(map[string]string{"a": "IP", "c": "IP"}, contents(s)); diff != "" {
		t.Errorf("written after the cut (-want +got):\n%s", diff)
	}
}

func TestRefusesToOpen(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name string
		path string
		make func(path string) io.Closer
	}{
		{"damaged", "damaged", func(path string) io.Closer {
			s := openServices(t, path)
			set(t, s, "a", "IP")
			set(t, s, "b", "IP")
			s.Close()
			file, _ := os.ReadFile(path)
			file[8+12+3] ^= 1 // in the body of the first record
			os.WriteFile(path, file, 0o600)
			return nil
		}},
		{"not ours", "passwd", func(path string) io.Closer { os.WriteFile(path, []byte("root:x:0:0"), 0o600); return nil }},
		{"other objects", "noname", func(path string) io.Closer {
			j, err := journal.Open(journal.Config{Path: path, Kind: "NSMREG", Version: 1, Noun: "file"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			j.Append(journal.Put, []byte{0x12, 0x01, 'x'})
			j.Close()
			return nil
		}},
		{"in use", "used", func(path string) io.Closer { return openServices(t, path) }},
		{"no directory", "none/such", func(string) io.Closer { return nil }},
		{"a directory", ".", func(string) io.Closer { return nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, tt.path)
			if c := tt.make(path); c != nil {
				defer c.Close()
			}
			before, _ := os.ReadFile(path)
			s, err := Open[*api.NetworkService](Config{Path: path, Logger: quiet})
			if !errors.Is(err, nserr.StateDir) {
				t.Errorf("Open = %v, want nserr.StateDir", err)
			}
			if err == nil {
				s.Close()
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("the file has changed")
			}
		})
	}
}

// A file of another version costs what is in it, not the start. Both files of a
// registry say what that is.
func TestAnotherVersionIsSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "services.log")
	s := openServices(t, path)
	if err := set(t, s, "a", "IP"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file[7]++ // its version
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s, err = Open[*api.NetworkService](Config{Path: path, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatalf("another version is fatal: %v", err)
	}
	defer s.Close()
	if len(contents(s)) != 0 || set(t, s, "b", "IP") != nil {
		t.Errorf("the new store has %v", contents(s))
	}
	if text := log.String(); strings.Count(text, "WARN") != 1 || !strings.Contains(text, path+".aside1") || !strings.Contains(text, "nsm apply") {
		t.Errorf("the log: %s", text)
	}
	if aside, err := os.ReadFile(path + ".aside1"); err != nil || !bytes.Equal(aside, file) {
		t.Errorf("the file was not kept: %v", err)
	}
}

// TestCompaction: much history, little state; the file stays small, and stays
// right and locked when it is replaced.
func TestCompaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "services.log")
	s := openServices(t, path)
	long := strings.Repeat("x", 10_000)
	want := make(map[string]string)
	largest := int64(0)
	for i := range 500 {
		name := fmt.Sprint(i % 7)
		want[name] = fmt.Sprint(i, long)
		if err := set(t, s, name, want[name]); err != nil {
			t.Fatal(err)
		}
		largest = max(largest, s.journal.Size())
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > journal.CompactMin || largest > journal.CompactMin+20_000 {
		t.Errorf("the file has %d bytes and had up to %d: %v", info.Size(), largest, err)
	}
	if other, err := Open[*api.NetworkService](Config{Path: path, Logger: quiet}); !errors.Is(err, nserr.StateDir) {
		t.Errorf("the new file is not locked: %v", err)
		other.Close()
	}
	if left, _ := filepath.Glob(path + ".*"); left != nil {
		t.Errorf("left behind: %v", left)
	}
	s.Close()
	s = openServices(t, path)
	defer s.Close()
	if diff := cmp.Diff(want, contents(s)); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
}

// A registry that is restarted often has a small file, too: what it finds counts as
// history until it is known how much of it is not.
func TestCompactionOverRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "services.log")
	long := strings.Repeat("x", 10_000)
	for restart := range 10 {
		s := openServices(t, path)
		for i := range 50 {
			if err := set(t, s, "a", fmt.Sprint(restart, i, long)); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
	}
	if info, err := os.Stat(path); err != nil || info.Size() > journal.CompactMin+600_000 {
		t.Errorf("the file of one service has %d bytes, %v", info.Size(), err)
	}
}

// TestDiskFull fills a real file system of 64 KiB.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mounting a small tmpfs: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path, filler := filepath.Join(dir, "services.log"), filepath.Join(dir, "filler")
	s := openServices(t, path)
	defer func() { s.Close() }()
	if err := set(t, s, "a", "IP"); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(filler, make([]byte, 128<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	before := contents(s)
	var err error
	for i := 0; err == nil && i < 1000; i++ { // what is left of the last page
		if err = set(t, s, fmt.Sprint(i%3), strings.Repeat("x", 500)); err == nil {
			before = contents(s)
		}
	}
	if !errors.Is(err, nserr.StateDir) || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("writing to a full disk: %v, want nserr.StateDir", err)
	}
	if after := contents(s); !maps.Equal(before, after) {
		t.Errorf("a refused change shows: %v, was %v", after, before)
	}
	err = s.journal.Rewrite(func(yield func([]byte, error) bool) { yield(make([]byte, 100_000), nil) })
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("compacting on a full disk: %v", err)
	}
	if left, _ := filepath.Glob(path + ".*"); left != nil {
		t.Errorf("left behind: %v", left)
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := set(t, s, "b", "IP"); err != nil {
		t.Fatalf("there is space again: %v", err)
	}
	want := contents(s)
	s.Close()
	s = openServices(t, path)
	if diff := cmp.Diff(want, contents(s)); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
}

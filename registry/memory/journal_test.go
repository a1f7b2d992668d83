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
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/nserr"
)

var quiet = slog.New(slog.DiscardHandler)

// replayed makes the records of a file readable.
func replayed(list *[]string) func(operation, []byte) error {
	return func(op operation, payload []byte) error {
		*list = append(*list, fmt.Sprintf("%d:%s", op, payload))
		return nil
	}
}

func TestScan(t *testing.T) {
	whole := encode(encode([]byte(magic), opPut, []byte("a")), opDelete, []byte("bc"))
	first := int64(len(encode([]byte(magic), opPut, []byte("a"))))
	both := []string{"1:a", "2:bc"}
	flip := func(at int64) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 1
		return b
	}
	end := int64(len(whole))
	for _, tt := range []struct {
		name string
		file []byte
		want []string
		end  int64
		err  string
	}{
		{"whole", whole, both, end, ""},
		{"empty", nil, nil, 0, ""},
		{"magic cut short", whole[:5], nil, 0, ""},
		{"magic alone", whole[:8], nil, 8, ""},
		{"zeros alone", make([]byte, 100), nil, 0, ""},
		{"another file", []byte("#!/bin/sh\n"), nil, 0, "not a registry file"},
		{"a newer version", []byte("NSMREG\x00\x02"), nil, 0, "not a registry file"},
		{"last header cut short", whole[:first+11], both[:1], first, ""},
		{"last body cut short", whole[:end-1], both[:1], first, ""},
		{"last body damaged", flip(end - 1), both[:1], first, ""},
		{"zeros at the end", append(bytes.Clone(whole), make([]byte, 1000)...), both, end, ""},
		{"fewer zeros than a header", append(bytes.Clone(whole), 0, 0), both, end, ""},
		{"rubbish at the end", append(bytes.Clone(whole), bytes.Repeat([]byte("x"), 50)...), both, end, "damaged record at offset 37"},
		{"middle body damaged", flip(first - 1), nil, 8, "damaged record at offset 8"},
		{"middle length damaged", flip(8), nil, 8, "damaged record at offset 8"},
		{"middle sum damaged", flip(12), nil, 8, "damaged record at offset 8"},
		{"unknown operation", encode([]byte(magic), 9, nil), nil, 8, "unknown operation 9"},
		{"a body without operation", []byte(magic + "\x00\x00\x00\x00\x00\x00\x00\x00" + "\x8a\xb2\x28\x8c"), nil, 8, "record of 0 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			end, err := scan(bytes.NewReader(tt.file), int64(len(tt.file)), replayed(&got))
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || end != tt.end {
				t.Errorf("end %d, want %d; records (-want +got):\n%s", end, tt.end, diff)
			}
		})
	}
}

// FuzzScan: whatever is in the file, what scan accepts reads the same again
// when it is cut to its end, and cutting a good file anywhere loses only what
// is cut.
func FuzzScan(f *testing.F) {
	whole := encode(encode([]byte(magic), opPut, []byte("a")), opDelete, []byte("bc"))
	f.Add(whole, 3)
	f.Add(whole[:len(whole)-1], 20)
	f.Add(append(whole, make([]byte, 20)...), 40)
	f.Add([]byte(magic+"\xff\xff\xff\xff"), 0)
	f.Fuzz(func(t *testing.T, file []byte, cut int) {
		var first, second []string
		end, err := scan(bytes.NewReader(file), int64(len(file)), replayed(&first))
		if err != nil {
			return
		}
		if end > int64(len(file)) {
			t.Fatalf("end %d of %d", end, len(file))
		}
		again, err := scan(bytes.NewReader(file[:end]), end, replayed(&second))
		if err != nil || again != end || !slices.Equal(first, second) {
			t.Fatalf("cut to %d: end %d, %v, records %q, were %q", end, again, err, second, first)
		}
		if cut < 0 || int64(cut) > end {
			return
		}
		var part []string
		if _, err := scan(bytes.NewReader(file[:cut]), int64(cut), replayed(&part)); err != nil {
			t.Fatalf("cut at %d of a good file: %v", cut, err)
		}
		if len(part) > len(first) || !slices.Equal(part, first[:len(part)]) {
			t.Fatalf("cut at %d: records %q, were %q", cut, part, first)
		}
	})
}

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
		m[name] = ns.Payload
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
			file[len(magic)+headerSize+3] ^= 1
			os.WriteFile(path, file, 0o600)
			return nil
		}},
		{"not ours", "passwd", func(path string) io.Closer { os.WriteFile(path, []byte("root:x:0:0"), 0o600); return nil }},
		{"other objects", "noname", func(path string) io.Closer {
			os.WriteFile(path, encode([]byte(magic), opPut, []byte{0x12, 0x01, 'x'}), 0o600)
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
		largest = max(largest, s.journal.size)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() > compactMin || largest > compactMin+20_000 {
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
	err = s.journal.rewrite(func(yield func([]byte, error) bool) { yield(make([]byte, 100_000), nil) })
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

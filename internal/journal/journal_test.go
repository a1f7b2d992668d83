// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/openvwire/nsm/sdk/nserr"
)

const magic = "NSMREG\x00\x01"

// replayed makes the records of a file readable.
func replayed(list *[]string) func(Operation, []byte) error {
	return func(op Operation, payload []byte) error {
		*list = append(*list, fmt.Sprintf("%d:%s", op, payload))
		return nil
	}
}

func TestScan(t *testing.T) {
	whole := encode(encode([]byte(magic), Put, []byte("a")), Delete, []byte("bc"))
	first := int64(len(encode([]byte(magic), Put, []byte("a"))))
	both := []string{"1:a", "2:bc"}
	flip := func(at int64) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 1
		return b
	}
	end := int64(len(whole))
	zeros := make([]byte, 1000)
	// torn is a file of which the end reached the disk as zeros from a byte on.
	torn := func(from int64) []byte {
		return append(append(bytes.Clone(whole[:from]), make([]byte, end-from)...), zeros...)
	}
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
		{"another file", []byte("#!/bin/sh\n"), nil, 0, "a file of another kind"},
		{"a newer version", []byte("NSMREG\x00\x02"), nil, 0, "written by another version: 2, this is version 1"},
		{"last header cut short", whole[:first+11], both[:1], first, ""},
		{"last body cut short", whole[:end-1], both[:1], first, ""},
		{"last body damaged", flip(end - 1), both[:1], first, ""},
		{"zeros at the end", append(bytes.Clone(whole), make([]byte, 1000)...), both, end, ""},
		{"fewer zeros than a header", append(bytes.Clone(whole), 0, 0), both, end, ""},
		{"last header in part, then zeros", torn(first + 1), both[:1], first, ""},
		{"last header without its sum, then zeros", torn(first + 8), both[:1], first, ""},
		{"last header without body, then zeros", torn(first + 12), both[:1], first, ""},
		{"last body in part, then zeros", torn(end - 1), both[:1], first, ""},
		{"a damaged header, then zeros and more", append(torn(first+1), 'x'), both[:1], first, "damaged record at offset 22"},
		{"a damaged body, then zeros and more", append(torn(end-1), 'x'), both[:1], first, "damaged record at offset 22"},
		{"rubbish at the end", append(bytes.Clone(whole), bytes.Repeat([]byte("x"), 50)...), both, end, "damaged record at offset 37"},
		{"middle body damaged", flip(first - 1), nil, 8, "damaged record at offset 8"},
		{"middle length damaged", flip(8), nil, 8, "damaged record at offset 8"},
		{"middle sum damaged", flip(12), nil, 8, "damaged record at offset 8"},
		{"unknown operation", encode([]byte(magic), 9, nil), nil, 8, "unknown operation 9"},
		{"a body without operation", []byte(magic + "\x00\x00\x00\x00\x00\x00\x00\x00" + "\x8a\xb2\x28\x8c"), nil, 8, "record of 0 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			end, err := scan(bytes.NewReader(tt.file), int64(len(tt.file)), magic, replayed(&got))
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
	whole := encode(encode([]byte(magic), Put, []byte("a")), Delete, []byte("bc"))
	f.Add(whole, 3)
	f.Add(whole[:len(whole)-1], 20)
	f.Add(append(whole, make([]byte, 20)...), 40)
	f.Add([]byte(magic+"\xff\xff\xff\xff"), 0)
	f.Fuzz(func(t *testing.T, file []byte, cut int) {
		var first, second []string
		end, err := scan(bytes.NewReader(file), int64(len(file)), magic, replayed(&first))
		if err != nil {
			return
		}
		if end > int64(len(file)) {
			t.Fatalf("end %d of %d", end, len(file))
		}
		again, err := scan(bytes.NewReader(file[:end]), end, magic, replayed(&second))
		if err != nil || again != end || !slices.Equal(first, second) {
			t.Fatalf("cut to %d: end %d, %v, records %q, were %q", end, again, err, second, first)
		}
		if cut < 0 || int64(cut) > end {
			return
		}
		var part []string
		if _, err := scan(bytes.NewReader(file[:cut]), int64(cut), magic, replayed(&part)); err != nil {
			t.Fatalf("cut at %d of a good file: %v", cut, err)
		}
		if len(part) > len(first) || !slices.Equal(part, first[:len(part)]) {
			t.Fatalf("cut at %d: records %q, were %q", cut, part, first)
		}
	})
}

// begin opens a journal with the payloads that it holds, and what it logs.
func begin(t *testing.T, c Config) (j *Journal, held []string, log string, err error) {
	t.Helper()
	var out bytes.Buffer
	c.Kind, c.Noun, c.Lost, c.Logger = "NSMREG", "registry file", "all that was in it", slog.New(slog.NewTextHandler(&out, nil))
	if c.Version == 0 {
		c.Version = 1
	}
	j, err = Open(c, replayed(&held))
	if err == nil {
		t.Cleanup(func() { j.Close() })
	}
	return j, held, out.String(), err
}

// A file of another version keeps nobody from starting. It is set aside under a name
// that is its own, which the log tells once, together with what is lost.
func TestAnotherVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "services.log")
	for version := byte(2); version <= 4; version++ {
		j, _, _, err := begin(t, Config{Path: path, Version: version})
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Append(Put, []byte{'a' + version}); err != nil {
			t.Fatal(err)
		}
		j.Close()
	}
	j, held, log, err := begin(t, Config{Path: path})
	if err != nil || len(held) != 0 {
		t.Fatalf("opened with %v: %v", held, err)
	}
	if err := j.Append(Put, []byte("new")); err != nil {
		t.Error(err)
	}
	j.Close()
	if n := strings.Count(log, "level=WARN"); n != 1 || !strings.Contains(log, path+".aside3") || !strings.Contains(log, "all that was in it") || !strings.Contains(log, "version: 4") {
		t.Errorf("%d warnings: %s", n, log)
	}
	if _, held, log, err := begin(t, Config{Path: path}); err != nil || !slices.Equal(held, []string{"1:new"}) || log != "" {
		t.Errorf("opened again: %v, %v, %s", held, err, log)
	}
	for i, want := range []string{"1:c", "1:d", "1:e"} {
		aside := fmt.Sprintf("%s.aside%d", path, i+1)
		if _, held, _, err := begin(t, Config{Path: aside, Version: byte(i + 2)}); err != nil || !slices.Equal(held, []string{want}) {
			t.Errorf("%s holds %v (%v), want %s", aside, held, err, want)
		}
	}
}

// Damage is an error that changes nothing, and with a file that may be lost another
// one to set aside: what comes before the damage counts.
func TestDamage(t *testing.T) {
	whole := encode(encode(encode([]byte(magic), Put, []byte("a")), Put, []byte("b")), Put, []byte("c"))
	whole[8+13+13] ^= 1 // the sum of the second
	for name, tt := range map[string]struct {
		file []byte
		held []string
	}{
		"in the middle":   {whole, []string{"1:a"}},
		"of another kind": {[]byte("root:x:0:0:root"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(path, tt.file, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, _, _, err := begin(t, Config{Path: path}); !errors.Is(err, nserr.StateDir) {
				t.Errorf("error %v, want nserr.StateDir", err)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, tt.file) {
				t.Errorf("the file has changed: %q, %v", now, err)
			}
			_, held, log, err := begin(t, Config{Path: path, Disposable: true})
			if err != nil || !slices.Equal(held, tt.held) || strings.Count(log, "level=WARN") != 1 {
				t.Errorf("disposable: %v, want %v; %v; %s", held, tt.held, err, log)
			}
			if aside, err := os.ReadFile(path + ".aside1"); err != nil || !bytes.Equal(aside, tt.file) {
				t.Errorf("set aside: %q, %v", aside, err)
			}
		})
	}
}

// While a file is set aside nobody else can begin one in its place.
func TestAnotherVersionInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if _, _, _, err := begin(t, Config{Path: path, Version: 2}); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := begin(t, Config{Path: path}); !errors.Is(err, nserr.StateDir) {
		t.Errorf("a file in use: %v", err)
	}
	if _, err := os.Stat(path + ".aside1"); err == nil {
		t.Error("it was set aside all the same")
	}
}

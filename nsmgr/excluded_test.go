// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

func TestParseExcluded(t *testing.T) {
	for _, tt := range []struct {
		text string
		want []string
		ok   bool
	}{
		{"", nil, true},
		{"prefixes:\n", nil, true},
		{"prefixes:\n- 10.96.0.0/12\n- fd00:10:96::/112\n", []string{"10.96.0.0/12", "fd00:10:96::/112"}, true},
		{`{"prefixes": ["10.0.0.0/8"]}`, []string{"10.0.0.0/8"}, true},
		{"prefixes: 10.0.0.0/8", nil, false},
		{"prefixes:\n- 10.0.0.0\n", nil, false},
		{"prefixes:\n- 10.0.0.0/33\n", nil, false},
		{"prefix:\n- 10.0.0.0/8\n", nil, false},
		{`prefixes: [""]`, nil, false},
		{"\x00", nil, false},
	} {
		got, err := ParseExcluded([]byte(tt.text))
		if tt.ok != (err == nil) || !tt.ok && !errors.Is(err, nserr.BadFlag) || fmt.Sprint(got) != fmt.Sprint(parse(tt.want)) {
			t.Errorf("%q: %v, %v", tt.text, got, err)
		}
	}
}

func parse(texts []string) (out []netip.Prefix) {
	for _, p := range texts {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func FuzzParseExcluded(f *testing.F) {
	f.Add([]byte("prefixes:\n- 10.96.0.0/12\n- fd00::/112\n"))
	f.Add([]byte("prefixes: [\"\"]"))
	f.Add([]byte("- x"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := ParseExcluded(text)
		if err != nil && !errors.Is(err, nserr.BadFlag) {
			t.Errorf("%q: %v", text, err)
		}
		for _, p := range got {
			if err == nil && !p.IsValid() {
				t.Errorf("%q gives the prefix %v", text, p)
			}
		}
	})
}

// logged tells each line that is logged.
type logged struct{ lines chan string }

func (l logged) Write(p []byte) (int, error) {
	select {
	case l.lines <- string(bytes.Clone(p)):
	default:
	}
	return len(p), nil
}

// The file is followed however it is changed; one that turns bad keeps what was
// good, and says so once it is noticed.
func TestExcludedFile(t *testing.T) {
	log := logged{make(chan string, 16)}
	path := filepath.Join(t.TempDir(), "excluded_prefixes.yaml")
	f, err := OpenExcluded(path, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Whatever is read, or cannot be, is logged.
	expect := func(what string, want ...string) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for !slices.Equal(f.Prefixes(), parse(want)) {
			select {
			case <-log.lines:
			case <-deadline:
				t.Fatalf("%s: %v, want %v", what, f.Prefixes(), want)
			}
		}
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	expect("no file")
	write(path, "prefixes: [10.0.0.0/8]")
	expect("it comes", "10.0.0.0/8")
	write(path+".new", "prefixes: [10.0.0.0/8, 172.16.0.0/12]")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	expect("it is replaced", "10.0.0.0/8", "172.16.0.0/12")
	write(path, "prefixes: [nonsense]")
	for deadline := time.After(10 * time.Second); ; {
		select {
		case line := <-log.lines:
			if !strings.Contains(line, "nonsense") {
				continue // of an earlier change
			}
		case <-deadline:
			t.Error("a bad file is not mentioned")
		}
		break
	}
	expect("it is bad", "10.0.0.0/8", "172.16.0.0/12")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	expect("it is gone")
}

func TestOpenExcludedRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "excluded_prefixes.yaml")
	if err := os.WriteFile(path, []byte("prefixes: [x]"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenExcluded(path, slog.Default()); !errors.Is(err, nserr.BadFlag) {
		t.Errorf("a file that makes no sense: %v", err)
	}
	if _, err := OpenExcluded(filepath.Join(dir, "nowhere", "file"), slog.Default()); !errors.Is(err, nserr.StateDir) {
		t.Errorf("a directory that does not exist: %v", err)
	}
	if _, err := OpenExcluded(dir, slog.Default()); !errors.Is(err, nserr.StateDir) {
		t.Errorf("a directory: %v", err)
	}
}

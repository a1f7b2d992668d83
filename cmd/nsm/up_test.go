// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openvwire/nsm/internal/statedir"
	"github.com/openvwire/nsm/sdk/identity/agent"
	"github.com/openvwire/nsm/sdk/identity/authority"
)

// runUntil runs nsm until it ends or ctx does.
func runUntil(ctx context.Context, t *testing.T, args ...string) (out string, code int) {
	t.Helper()
	before := slog.Default()
	defer slog.SetDefault(before)
	var both bytes.Buffer
	a := newApp()
	a.out, a.err = &both, &both
	root := a.root()
	root.SetArgs(args)
	code = a.exit(root.ExecuteContext(ctx))
	return both.String(), code
}

// sockets returns the Unix sockets in a directory.
func sockets(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type() == os.ModeSocket {
			names = append(names, e.Name())
		}
	}
	return names
}

// Whoever fails after it has begun to listen takes its sockets with it: a socket
// that is left looks like a daemon that does not answer.
func TestFailedDaemonLeavesNoSocket(t *testing.T) {
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	identities := filepath.Join(t.TempDir(), "identity.sock")
	a, err := authority.New(t.Context(), authority.Config{
		Node: "a", StateDir: filepath.Join(t.TempDir(), "state"), Socket: "unix://" + identities, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	common := []string{"--spiffe-endpoint-socket", "unix://" + identities}
	for _, tt := range []struct {
		name, want string
		args       func(dir string) []string
	}{
		{"manager", "bogus", func(dir string) []string {
			return append(common, "manager", "--listen-on", "unix://"+dir+"/nsm.io.sock", "--registry-url", "bogus://x", "--excluded-prefixes-file", "")
		}},
		{"registry", "NSM-4008", func(dir string) []string { // the second of its sockets is taken
			return append(common, "registry", "--listen-on", "unix://"+dir+"/registry.sock,unix://"+identities, "--state-dir", "")
		}},
		{"up without a registry port", "NSM-1016", func(dir string) []string {
			return []string{"up", "--registry-listen-on", "tcp://nowhere"}
		}},
		{"up without a registry store", "in use by another process", func(dir string) []string {
			d, err := statedir.Open(filepath.Join(dir, "state", "registry"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
			return []string{"up", "--registry-listen-on", "tcp://127.0.0.1:0"}
		}},
		{"up without a manager", "directory of the excluded prefixes", func(dir string) []string {
			file := filepath.Join(dir, "file")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return []string{"up", "--registry-listen-on", "tcp://127.0.0.1:0", "--excluded-prefixes-file", file + "/x"}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			args := tt.args(dir)
			if args[0] == "up" {
				args = append(args, "--run-dir", dir, "--state-dir", filepath.Join(dir, "state"), "--node", "a",
					"--authority-listen-on", "tcp://127.0.0.1:0", "--manager-listen-on", "tcp://127.0.0.1:0")
			}
			out, code := runUntil(t.Context(), t, args...)
			if code == exitOK || !strings.Contains(out, tt.want) {
				t.Errorf("it ended with %d and %s, want a failure with %q", code, out, tt.want)
			}
			if left := sockets(t, dir); len(left) > 0 {
				t.Errorf("%v left", left)
			}
		})
	}
}

// Each row says what is in the state directory of a node and what it is told.
func TestAuthorityOrMember(t *testing.T) {
	for _, tt := range []struct {
		name    string
		files   []string
		join    string
		want    bool   // it is a member
		refused string // with a text
	}{
		{"first machine", nil, "", false, ""},
		{"first machine again", []string{authority.CAFile}, "", false, ""},
		{"second machine", nil, "nsm1x", true, ""},
		{"second machine again", []string{agent.StateFile}, "nsm1x", true, ""},
		{"second machine without its token", []string{agent.StateFile}, "", true, ""},
		{"authority that shall join", []string{authority.CAFile}, "nsm1x", false, "start it without --join"},
		{"both", []string{authority.CAFile, agent.StateFile}, "", false, "to stay in the domain that it has joined, move"},
		{"both with a token", []string{authority.CAFile, agent.StateFile}, "nsm1x", false, "to stay in the domain that it has joined, move"},
	} {
		dir := t.TempDir()
		for _, name := range tt.files {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := authoritySettings{Join: tt.join}.joined(dir)
		if got != tt.want || (err != nil) != (tt.refused != "") {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
		if err != nil && (!strings.Contains(err.Error(), tt.refused) || !strings.Contains(err.Error(), "NSM-4007")) {
			t.Errorf("%s: %v, want NSM-4007 and %q", tt.name, err, tt.refused)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (authoritySettings{}).joined(file); err == nil {
		t.Error("a state directory that is a file is nothing")
	}
}

// Both daemons that can be an authority refuse to be two things, and say so
// before they touch anything.
func TestNobodyIsBoth(t *testing.T) {
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	dir := t.TempDir()
	state := filepath.Join(dir, "authority")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, authority.CAFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"up", "--run-dir", dir, "--state-dir", dir, "--join", "nsm1x"},
		{"authority", "--socket", "unix://" + dir + "/identity.sock", "--state-dir", state, "--join", "nsm1x"},
	} {
		if out, code := runUntil(t.Context(), t, args...); code != exitFailed || !strings.Contains(out, "NSM-4007") || !strings.Contains(out, "cannot join another one") {
			t.Errorf("nsm %s ended with %d: %s", args[0], code, out)
		}
	}
	entries, err := os.ReadDir(state)
	if err != nil || len(entries) != 1 {
		t.Errorf("the state directory has %v, %v", entries, err)
	}
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///run/spire.sock")
	out, code := runUntil(t.Context(), t, "up", "--run-dir", dir, "--state-dir", dir, "--join", "nsm1x")
	if code != exitUsage || !strings.Contains(out, "there is nothing to join") {
		t.Errorf("nsm up --join beside SPIRE ended with %d: %s", code, out)
	}
}

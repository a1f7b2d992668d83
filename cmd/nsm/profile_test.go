// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/identity/authority"
	"github.com/openvwire/nsm/sdk/nserr"
)

// profiled is an admin API with one profile, of which it tells two pieces.
type profiled struct {
	adminv1.UnimplementedAdminServer
	asked *adminv1.ProfileRequest
	fails error // after the first piece
}

func (p *profiled) Profile(r *adminv1.ProfileRequest, s grpc.ServerStreamingServer[adminv1.ProfileChunk]) error {
	p.asked = r
	if r.GetKind() == "heap" {
		return nserr.NotAllowed.Errorf("not you")
	}
	for _, piece := range []string{"one ", "two"} {
		if err := s.Send(&adminv1.ProfileChunk{Data: []byte(piece)}); err != nil || p.fails != nil {
			return p.fails
		}
	}
	return nil
}

func TestProfile(t *testing.T) {
	t.Chdir(t.TempDir())
	own := filepath.Join(t.TempDir(), "x")
	for _, tt := range []struct {
		args          string
		kind          string
		seconds       uint32
		file, printed string
	}{
		{"profile", "cpu", 0, "cpu.pprof", "cpu.pprof is written; see it with 'go tool pprof -http localhost: cpu.pprof'\n"},
		{"profile allocs --seconds 5", "allocs", 5, "allocs.pprof", "allocs.pprof is written"},
		{"profile trace", "trace", 0, "trace.out", "'go tool trace trace.out'"},
		{"profile mutex -o " + own, "mutex", 0, own, own},
		{"profile block -o -", "block", 0, "", "one two"},
	} {
		var p profiled
		out, stderr, code := runAgainst(t, &p, "", strings.Fields(tt.args)...)
		if code != exitOK || !strings.Contains(out, tt.printed) || p.asked.GetKind() != tt.kind || p.asked.GetSeconds() != tt.seconds {
			t.Errorf("%s: exit code %d, asked for %v, printed %q, %s", tt.args, code, p.asked, out, stderr)
		}
		if data, err := os.ReadFile(tt.file); tt.file != "" && (err != nil || string(data) != "one two") {
			t.Errorf("%s: %q, %v", tt.args, data, err)
		}
	}

	// What there is no profile of is said whoever listens, or nobody.
	var asked profiled
	if _, stderr, code := runAgainst(t, &asked, "", "profile", "banana"); code != exitUsage || asked.asked != nil || !strings.Contains(stderr, "goroutine") {
		t.Errorf("exit code %d, asked for %v, %s", code, asked.asked, stderr)
	}
	// Who is refused has no file, and learns why.
	_, stderr, code := runAgainst(t, &profiled{}, "", "profile", "heap")
	if _, err := os.Stat("heap.pprof"); code != exitNotAllowed || !strings.Contains(stderr, nserr.NotAllowed.Code) || !os.IsNotExist(err) {
		t.Errorf("exit code %d, %s; %v", code, stderr, err)
	}
	// Half a profile is no success.
	_, stderr, code = runAgainst(t, &profiled{fails: nserr.Stopping.Errorf("bye")}, "", "profile", "cpu")
	if code == exitOK || !strings.Contains(stderr, nserr.Stopping.Code) {
		t.Errorf("half a profile: exit code %d, %s", code, stderr)
	}
}

// What has no admin API of its own is asked where it listens: whatever the manager is.
func TestProfileOf(t *testing.T) {
	t.Chdir(t.TempDir())
	dir := t.TempDir()
	socket := "unix://" + filepath.Join(dir, "identity.sock")
	a, err := authority.New(t.Context(), authority.Config{
		Node: "a", StateDir: filepath.Join(dir, "state"), Socket: socket, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for _, tt := range []struct {
		args string
		code int
		says string // in the error
	}{
		{"profile goroutine --of authority --identity-socket " + socket, exitOK, ""},
		{"profile banana --of authority --identity-socket " + socket, exitUsage, "goroutine"},
		{"profile --of authority --identity-socket unix://" + dir + "/none", exitUnavailable, "/none"},
		{"profile --of holder --holder-socket " + dir + "/none", exitUnavailable, "--holder-socket"},
		{"profile banana --of holder --holder-socket " + dir + "/none", exitUsage, "goroutine"},
		{"profile --of somebody", exitUsage, "holder"},
	} {
		_, stderr, code := runAgainst(t, &profiled{}, "", strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(stderr, tt.says) {
			t.Errorf("%s: exit code %d, %s", tt.args, code, stderr)
		}
	}
	if data, err := os.ReadFile("goroutine.pprof"); err != nil || !strings.HasPrefix(string(data), "\x1f\x8b") {
		t.Errorf("goroutine.pprof: %.20q, %v", data, err)
	}
}

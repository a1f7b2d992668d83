// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
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
		// A flag that the choice does not use was meant for something.
		{"profile --of holder --connect-to tcp://10.0.0.1:5002", exitUsage, "--connect-to is of no use with --of holder: leave it out, or ask with --of daemon (see 'nsm profile --help')"},
		{"profile --of authority --connect-to tcp://10.0.0.1:5002", exitUsage, "--connect-to"},
		{"profile --of authority --dial-timeout 1s", exitUsage, "--dial-timeout"},
		{"profile --of holder --max-token-lifetime 1m", exitUsage, "--max-token-lifetime"},
		{"profile --holder-socket " + dir + "/none", exitUsage, "--of holder"},
		{"profile --of authority --holder-socket " + dir + "/none", exitUsage, "--of holder"},
		{"profile --identity-socket " + socket, exitUsage, "--of authority"},
		{"profile --of holder --identity-socket " + socket, exitUsage, "--of authority"},
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

// What the environment says is for all commands, and is no mistake of this one.
func TestProfileFlagsOfEnvironment(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("NSM_CONNECT_TO", "tcp://10.0.0.1:5002")
	t.Setenv("NSM_IDENTITY_SOCKET", "unix:///none")
	if _, stderr, code := runAgainst(t, &profiled{}, "", "profile"); code != exitOK {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	if _, stderr, code := runAgainst(t, &profiled{}, "", "profile", "--of", "holder", "--holder-socket", "none"); code != exitUnavailable {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	socket := filepath.Join(t.TempDir(), "holder.sock")
	answerOnce(t, socket, `{"data":"AQI="}`)
	t.Setenv("NSM_HOLDER_SOCKET", socket)
	if out, stderr, code := runAgainst(t, &profiled{}, "", "profile", "--of", "holder", "-o", "-"); code != exitOK || out != "\x01\x02" {
		t.Errorf("exit code %d, %q, %s", code, out, stderr)
	}
	if _, stderr, code := runAgainst(t, &profiled{}, "", "profile"); code != exitOK { // that is no reason not to ask the daemon
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// The holder is looked for where 'nsm up' and 'nsm forwarder' have it, as the help says.
func TestHolderSockets(t *testing.T) {
	help := ""
	var found []string
	for _, c := range commands() {
		switch c.Name() {
		case "up", "forwarder":
			found = append(found, filepath.Join(c.Flags().Lookup("state-dir").DefValue, "wireguard.sock"))
		case "profile":
			help = c.Flags().Lookup("holder-socket").Usage
		}
	}
	slices.Sort(found)
	if !slices.Equal(found, slices.Sorted(slices.Values(holderSockets))) {
		t.Errorf("holders are at %q, looked for at %q", found, holderSockets)
	}
	for _, socket := range holderSockets {
		if !strings.Contains(help, socket) {
			t.Errorf("no %s in the help: %s", socket, help)
		}
	}
}

// answerOnce serves a holder's socket, which answers the first request with text in the
// form of the holder's protocol, or with the end of the connection.
func answerOnce(t *testing.T, socket, text string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		var size [4]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		_, _ = io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(size[:])))
		if text != "" {
			_, _ = c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...))
		}
	}()
}

// The first socket at which there is a holder is the one; what a holder that was killed
// has left is none.
func TestCallHolder(t *testing.T) {
	const profile = `{"data":"AQI="}`
	for _, tt := range []struct {
		name     string
		up       string // what answers at the first socket
		left     bool   // nobody, but there was one
		says     []string
		profiled bool
	}{
		{name: "of nsm up", up: profile, profiled: true},
		{name: "of nsm forwarder", profiled: true},
		{name: "of nsm forwarder, beside what is left", left: true, profiled: true},
		{name: "nobody", says: []string{"/up.sock", "/forwarder.sock", "--holder-socket"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up, other := filepath.Join(t.TempDir(), "up.sock"), filepath.Join(t.TempDir(), "forwarder.sock")
			if tt.left {
				l, err := net.ListenUnix("unix", &net.UnixAddr{Name: up, Net: "unix"})
				if err != nil {
					t.Fatal(err)
				}
				l.SetUnlinkOnClose(false)
				_ = l.Close()
			}
			switch {
			case tt.up != "":
				answerOnce(t, up, tt.up)
			case tt.profiled:
				answerOnce(t, other, profile)
			}
			data, err := callHolder(t.Context(), []string{up, other}, "heap", 0)
			if tt.profiled && (err != nil || string(data) != "\x01\x02") || !tt.profiled && !errors.Is(err, nserr.PeerDown) {
				t.Errorf("%q, %v", data, err)
			}
			for _, want := range tt.says {
				if !strings.Contains(fmt.Sprint(err), want) {
					t.Errorf("no %q in %v", want, err)
				}
			}
		})
	}
	// One that ends meanwhile is not exchanged for another one.
	up, other := filepath.Join(t.TempDir(), "up.sock"), filepath.Join(t.TempDir(), "forwarder.sock")
	answerOnce(t, up, "")
	answerOnce(t, other, profile)
	if _, err := callHolder(t.Context(), []string{up, other}, "heap", 0); !errors.Is(err, nserr.PeerDown) {
		t.Errorf("a holder that has ended: %v", err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package workload_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"

	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/workload"
	"github.com/openvwire/nsm/sdk/nserr"
)

// connectTo names the socket to which the test binary connects as a child, once
// its standard input ends.
const connectTo = "NSM_TEST_CONNECT_TO"

func TestMain(m *testing.M) {
	path := os.Getenv(connectTo)
	if path == "" {
		goleak.VerifyTestMain(m)
	}
	io.Copy(io.Discard, os.Stdin)
	conn, err := net.Dial("unix", path)
	if err != nil {
		panic(err)
	}
	io.Copy(io.Discard, conn) // until the test has looked
}

// accept runs f, which makes something connect, and returns who that was.
func accept(t *testing.T, f func(path string)) workload.Caller {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	f(path)
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, info, err := workload.Attested().ServerHandshake(conn)
	if err != nil {
		t.Fatal(err)
	}
	return workload.CallerOf(info)
}

func TestAttest(t *testing.T) {
	var conn net.Conn
	got := accept(t, func(path string) {
		var err error
		if conn, err = net.Dial("unix", path); err != nil {
			t.Fatal(err)
		}
	})
	conn.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	want := workload.Caller{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Exe: exe}
	if got != want {
		t.Errorf("caller is %+v, want %+v", got, want)
	}
}

// child starts a copy of the test binary that connects to a socket.
func child(t *testing.T, path string, args func(program string) []string) (program string, goOn func()) {
	t.Helper()
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	argv := args(program)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), connectTo+"="+path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Wait() })
	return program, func() { stdin.Close() }
}

func TestProgramOfOtherProcess(t *testing.T) {
	var program string
	got := accept(t, func(path string) {
		var goOn func()
		program, goOn = child(t, path, func(program string) []string { return []string{program} })
		goOn()
	})
	if got.Exe != program {
		t.Errorf("exe = %q, want %q", got.Exe, program)
	}
}

// A program that was replaced is none that an entry could name.
func TestReplacedProgram(t *testing.T) {
	got := accept(t, func(path string) {
		program, goOn := child(t, path, func(program string) []string { return []string{program} })
		if err := os.Rename(program, program+".old"); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(program + ".old"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(program, []byte("another"), 0o755); err != nil {
			t.Fatal(err)
		}
		goOn()
	})
	if got.Exe != "" {
		t.Errorf("exe = %q, want none", got.Exe)
	}
}

// Nor is one that only pretends: in a mount namespace of its own, any file can
// be at any path.
func TestProgramInOtherMountNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a mount namespace")
	}
	got := accept(t, func(path string) {
		_, goOn := child(t, path, func(program string) []string {
			return []string{"unshare", "-m", "sh", "-c", "mount --bind " + program + " /bin/true && exec /bin/true"}
		})
		goOn()
	})
	if got.Exe != "" {
		t.Errorf("exe = %q, want none", got.Exe)
	}
}

func TestOnlyUnixSockets(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	if _, _, err := workload.Attested().ServerHandshake(near); err == nil {
		t.Error("a pipe was attested")
	}
	if _, err := workload.CallerFrom(t.Context()); !errors.Is(err, nserr.NoIdentity) {
		t.Errorf("CallerFrom() without a call = %v", err)
	}
}

// refusing is a Provider that knows nobody.
type refusing struct{}

func (refusing) SVID(context.Context, workload.Caller) (*x509svid.SVID, error) {
	return nil, nserr.NotAllowed.Errorf("you are nobody")
}
func (refusing) Bundles() *identity.Bundles { return identity.NewBundles() }

func TestRefused(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	socket := "unix://" + filepath.Join(t.TempDir(), "dir", "sock")
	server, err := workload.Listen(t.Context(), workload.Config{Socket: socket, Provider: refusing{}, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	info, err := os.Stat(strings.TrimPrefix(socket, "unix://"))
	if err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("the socket is %v, %v, want mode 0666", info.Mode(), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = identity.Open(ctx, identity.Config{Address: socket, Logger: quiet})
	if !errors.Is(err, nserr.NoIdentity) || !strings.Contains(err.Error(), "you are nobody") {
		t.Errorf("Open() = %v", err)
	}
}

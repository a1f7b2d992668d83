// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/agent"
)

// asNobody names what the test binary does as a child under another user.
const asNobody = "NSM_TEST_AS_NOBODY"

func TestMain(m *testing.M) {
	switch os.Getenv(asNobody) {
	case "":
		goleak.VerifyTestMain(m)
	case "open":
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		source, err := identity.Open(ctx, identity.Config{Logger: quiet})
		if err != nil {
			fmt.Println(err)
			return
		}
		defer source.Close()
		svid, err := source.GetX509SVID()
		fmt.Print(svid.ID, err)
	case "token":
		_, _, err := RequestToken(context.Background(), os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "", 0)
		fmt.Print(err)
	case "authority": // the argument is the state directory
		a, err := New(context.Background(), Config{Node: "a", StateDir: os.Getenv("NSM_TEST_ARG"), Logger: quiet})
		if err == nil {
			a.Close()
		}
		fmt.Print(err)
	case "agent":
		b, err := agent.New(context.Background(), agent.Config{Node: "b", StateDir: os.Getenv("NSM_TEST_ARG"), Logger: quiet})
		if err == nil {
			b.Close()
		}
		fmt.Print(err)
	case "profile":
		data, err := requestProfile(context.Background(), os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "goroutine", 0)
		fmt.Printf("%d bytes, %v", len(data), err)
	case "rotate":
		_, err := RequestRotation(context.Background(), os.Getenv("SPIFFE_ENDPOINT_SOCKET"), 0)
		fmt.Print(err)
	}
}

// nobody runs the test binary as uid and gid 65534 and returns what it prints.
func nobody(t *testing.T, what, arg string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to run a process of another user")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = []string{asNobody + "=" + what, "SPIFFE_ENDPOINT_SOCKET=" + arg, "NSM_TEST_ARG=" + arg}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

var quiet = slog.New(slog.DiscardHandler)

// config returns a configuration of node a with a socket and a port. The
// directory is reachable by other users.
func config(t *testing.T) Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "nsm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return Config{
		Node: "a", StateDir: filepath.Join(dir, "state"), Socket: "unix://" + dir + "/sock",
		ListenOn: "tcp://127.0.0.1:0", Logger: quiet,
	}
}

func run(t *testing.T, c Config) *Authority {
	t.Helper()
	a, err := start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// open returns an identity from a Workload API.
func open(t *testing.T, socket string) identity.Source {
	t.Helper()
	source, err := identity.Open(t.Context(), identity.Config{Address: socket, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	return source
}

// idOf returns the SPIFFE ID of a source.
func idOf(t *testing.T, source identity.Source) string {
	t.Helper()
	svid, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return svid.ID.String()
}

func newLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

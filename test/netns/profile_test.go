// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openvwire/nsm/internal/lab"
)

// Every daemon serves profiles where it serves anyway, to root among others.
func TestProfiles(t *testing.T) {
	l := newMesh(t, lab.Config{Nodes: []string{"a", "b"}})
	a, b := l.Node("a"), l.Node("b")
	unchanged(t, l)
	for daemon, tt := range map[string]struct {
		node *lab.Node
		args []string
	}{
		"manager":   {a, []string{"--connect-to", a.Manager()}},
		"registry":  {a, []string{"--connect-to", "tcp://" + a.Addr.String() + ":5002"}},
		"forwarder": {a, []string{"--connect-to", "unix://" + filepath.Join(a.Dir, "forwarder", "forwarder.sock")}},
		"authority": {a, []string{"--of", "authority"}},
		"agent":     {b, []string{"--of", "authority"}},
	} {
		if err := profiled(t, tt.node, tt.args...); err != nil {
			t.Errorf("%s: %v", daemon, err)
		}
	}
	if _, err := a.Nsm(t.Context(), "profile", "goroutine", "--of", "authority", "--identity-socket", a.Manager()); err == nil {
		t.Error("what gives out no identities was taken for an authority")
	}
}

// So does the process that userspace WireGuard runs in; where there is none, that is said.
func TestProfileOfHolder(t *testing.T) {
	needTUN(t)
	l := newMesh(t, lab.Config{Env: sharedTunnel})
	a, b := l.Node("a"), l.Node("b")
	far := workload(t, b, "far")
	serve(t, far, "far", "--cidr", "10.60.2.0/24")
	unchanged(t, l)
	web := workload(t, a, "web")
	w := connect(t, web, "kernel://far/nsm-1")
	holder := []string{"--of", "holder", "--holder-socket", a.HolderSocket()}
	if err := profiled(t, a, holder...); err != nil {
		t.Error(err)
	}
	if err := transfer(web, far, w.far[0]); err != nil {
		t.Error(err)
	}
	var exit *lab.ExitError
	_, err := a.Nsm(t.Context(), "profile", "--of", "holder", "--holder-socket", filepath.Join(a.Dir, "none.sock"))
	if !errors.As(err, &exit) || !strings.Contains(err.Error(), "NSM-4003") || !strings.Contains(err.Error(), "--holder-socket") {
		t.Errorf("where there is no holder: %v", err)
	}
}

// profiled records what goroutines there are in a process.
func profiled(t *testing.T, n *lab.Node, args ...string) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "profile")
	out, err := n.Nsm(t.Context(), append([]string{"profile", "goroutine", "-o", file}, args...)...)
	if err != nil || !strings.Contains(out, "go tool pprof") {
		return fmt.Errorf("%w: %s", err, out)
	}
	if data, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(data), "\x1f\x8b") { // gzip
		return fmt.Errorf("%.20q, %w", data, err)
	}
	return nil
}

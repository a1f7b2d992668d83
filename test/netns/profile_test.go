// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openvwire/nsm/internal/lab"
)

// Every daemon serves profiles where it serves anyway, to root among others.
func TestProfiles(t *testing.T) {
	l := newMesh(t, lab.Config{Nodes: []string{"a"}})
	a := l.Node("a")
	unchanged(t, l)
	file := filepath.Join(t.TempDir(), "profile")
	for daemon, url := range map[string]string{
		"manager":   a.Manager(),
		"registry":  "tcp://" + a.Addr.String() + ":5002",
		"forwarder": "unix://" + filepath.Join(a.Dir, "forwarder", "forwarder.sock"),
	} {
		out, err := a.Nsm(t.Context(), "profile", "goroutine", "-o", file, "--connect-to", url)
		if err != nil || !strings.Contains(out, "go tool pprof") {
			t.Errorf("%s: %v: %s", daemon, err, out)
			continue
		}
		if data, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(data), "\x1f\x8b") { // gzip
			t.Errorf("%s: %.20q, %v", daemon, data, err)
		}
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/nstest"
)

// What docs/two-nodes.md has its readers type makes a wire between two nodes, and in the
// end nothing of it is left.
func TestTwoNodesByHand(t *testing.T) {
	needTUN(t)
	for _, name := range []string{"ip", "curl", "python3"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("readers have %s, this machine does not: %v", name, err)
		}
	}
	nodes := []string{"node-a", "node-b"}
	for _, node := range nodes {
		if _, err := os.Stat("/run/netns/" + node); err == nil {
			t.Skipf("there is a network namespace %s: somebody seems to follow docs/two-nodes.md on this machine", node)
		}
	}
	text, err := os.ReadFile("../../docs/two-nodes.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllSubmatch(text, -1) {
		script.Write(block[1])
	}
	tmp := t.TempDir()
	name := fmt.Sprintf("by-hand-%d", os.Getpid())
	t.Cleanup(func() { // what is left when a command has failed
		_ = lab.Remove(name, tmp)
		for _, node := range nodes {
			_ = netns.DeleteNamed(node)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // "until" waits without end
	defer cancel()
	sh := exec.CommandContext(ctx, "sh", "-e", "-c", script.String())
	sh.Dir, sh.WaitDelay = t.TempDir(), 10*time.Second
	sh.Env = append(os.Environ(), "PATH="+filepath.Dir(nstest.Program())+":"+os.Getenv("PATH"), "TMPDIR="+tmp, lab.Mark(name),
		"GORACE=atexit_sleep_ms=0", "NSM_DIAL_TIMEOUT=1m") // load must not fail a test
	out, err := sh.CombinedOutput()
	if err != nil {
		t.Errorf("it ends with %v", err)
	}
	for _, want := range []string{
		"tcp://10.99.0.2:5001",       // the second node is one
		"inet 10.60.0.1/32",          // the wire's near end
		"Directory listing for /",    // what came through it
		"10.99.0.1:51820",            // the tunnel
		"as it should be\n\nKernel,", // at both of its ends
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("nobody says %q", want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(tmp, "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if left, _ := filepath.Glob("/run/netns/node-[ab]"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if t.Failed() {
		t.Logf("it says:\n%s", out)
	}
}

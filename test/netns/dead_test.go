// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/lab"
)

// An endpoint that was killed leaves the registry long before its registration ends,
// and is there again as soon as it is back.
func TestEndpointKilledIsUnregistered(t *testing.T) {
	t.Parallel() // it mostly waits
	needTUN(t)
	l := newMesh(t, lab.Config{})
	a, b := l.Node("a"), l.Node("b")
	listed := func(n *lab.Node, endpoint string) func(want bool) {
		return func(want bool) {
			t.Helper()
			eventually(t, 20*time.Second, func() error {
				out, err := n.Nsm(t.Context(), "get", "endpoints")
				if is := strings.Contains(out, endpoint+" "); err == nil && is != want {
					err = fmt.Errorf("%s on node %s is listed: %v, want %v\n%s", endpoint, n.Name, is, want, out)
				}
				return err
			})
		}
	}
	for service, n := range map[string]*lab.Node{"near": a, "far": b} {
		server, client := workload(t, n, service), workload(t, a, service+"-client")
		args := []string{service, "--name", service + "-endpoint", "--cidr", "10.60.1.0/24"}
		victim := serve(t, server, args...)
		w := connect(t, client, "kernel://"+service+"/nsm-1", "--name", service)
		for _, at := range []*lab.Node{a, b} {
			listed(at, service+"-endpoint")(true)
		}
		victim.Kill()
		for _, at := range []*lab.Node{a, b} {
			listed(at, service+"-endpoint")(false)
		}
		serve(t, server, args...)
		for _, at := range []*lab.Node{a, b} {
			listed(at, service+"-endpoint")(true)
		}
		eventually(t, 20*time.Second, func() error { return transfer(client, server, w.far[0]) })
	}
}

// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/nstest"
)

// moves prints how much of a ping was lost by a number of moves, and fails if that is
// more than may be: one packet each, which was under way for very long. Where a WireGuard
// device gets another peer it is all that was under way, on a machine that has much else
// to do, and so it is in the tunnel of two nodes; where one has to be deleted before another
// can be made it is all that comes until then, as for all links on a kernel that does not
// rename those that are up.
func moves(t *testing.T, what string, n int, stop func() (sent, lost int)) {
	t.Helper()
	sent, lost := stop()
	fmt.Printf("MEASURED: %d move(s) of a wire (%s) cost %d of %d packets, one each %v\n", n, what, lost, sent, pingInterval)
	may := pingInterval
	switch {
	case !nstest.RenamesUp(), what == "IP on another node":
		may = time.Second
	case what == "IP between other nodes", what == endpointEnds, strings.HasSuffix(what, "tunnel between other nodes"):
		may = 100 * time.Millisecond
	}
	if most := n * int(may/pingInterval); lost > most || sent == 0 {
		t.Errorf("%d of %d packets lost, at most %d may be", lost, sent, most)
	}
}

// endpointEnds is the move of a wire whose endpoint, behind a WireGuard device, ends.
const endpointEnds = "IP, the endpoint ends"

// What is drained moves its wires while packets flow, an endpoint or all of a node. Each
// move has the client's device made anew, or only its peer, or only the far end of it.
// All endpoints give the same addresses.
func TestDrain(t *testing.T) {
	for _, payload := range []string{"IP", "ETHERNET"} {
		for name, nodes := range map[string][2]string{
			"on its node":              {"a", "a"},
			"to another node and back": {"a", "b"},
			"between other nodes":      {"b", "c"},
			"on another node":          {"b", "b"},
		} {
			for mode, env := range map[string][]string{"": ownDevices, "in the tunnel ": sharedTunnel} {
				if mode != "" && name == "on its node" {
					continue // where there is no tunnel
				}
				what := payload + " " + mode + name
				t.Run(what, func(t *testing.T) {
					t.Parallel() // it mostly waits
					testDrain(t, what, payload, nodes, env)
				})
			}
		}
	}
}

func testDrain(t *testing.T, what, payload string, nodes [2]string, env []string) {
	if payload == "IP" || env[0] == sharedTunnel[0] {
		needTUN(t)
	}
	l := newMesh(t, lab.Config{Nodes: []string{"a", "b", "c"}, Env: env})
	a := l.Node("a")
	var far []*lab.NetNS
	on := make(map[string]string) // node by endpoint
	for i, node := range nodes {
		name := fmt.Sprintf("db-%d", i)
		on[name] = node
		ns := workload(t, l.Node(node), name)
		serve(t, ns, "db", "--name", name, "--cidr", "10.60.0.0/24", "--payload", payload)
		far = append(far, ns)
	}
	unchanged(t, l)
	web := workload(t, a, "web")
	w := connect(t, web, "kernel://db/nsm-1", "--name", "web")
	nsm := func(args ...string) {
		t.Helper()
		out, err := a.Nsm(t.Context(), args...)
		if err != nil {
			t.Fatalf("nsm %s: %v", strings.Join(args, " "), err)
		}
		if !slices.Contains(args, "--undo") && !strings.Contains(out, "1 wire moved") {
			t.Error(out)
		}
	}
	stop := ping(t, web, w.far[0], far...)
	at, then := w.endpoint, map[string]string{"db-0": "db-1", "db-1": "db-0"}[w.endpoint]
	const rounds = 4
	for i := range rounds {
		drain := []string{"drain", "endpoint", at}
		if nodes[0] != nodes[1] && i%2 == 1 {
			drain = []string{"drain", "node", on[at]}
		}
		nsm(drain...)
		if wires, err := a.Nsm(t.Context(), "get", "wires"); err != nil || !strings.Contains(wires, then) {
			t.Errorf("%v: the wire is not at %s:\n%s", err, then, wires)
		}
		nsm(append(drain, "--undo")...)
		at, then = then, at
	}
	moves(t, what, rounds, stop)
}

// An endpoint that is told to end moves its wires to another one before its command is
// told, which cuts what is left of them.
func TestServeMovesAway(t *testing.T) {
	t.Parallel() // it mostly waits
	needTUN(t)
	l := newMesh(t, lab.Config{Nodes: []string{"a", "b", "c"}})
	a := l.Node("a")
	var far []*lab.NetNS
	endpoints, namespaces := make(map[string]*lab.Process), make(map[string]*lab.NetNS)
	for _, node := range []string{"b", "c"} {
		ns := workload(t, l.Node(node), "db-"+node)
		endpoints["on-"+node] = serve(t, ns, "db", "--name", "on-"+node, "--cidr", "10.60.0.0/24", "--netns", ns.Path(),
			"--", "sh", "-c", "trap 'echo told; ip link set group default down; exit 3' TERM; while :; do sleep 0.05; done")
		namespaces["on-"+node] = ns
		far = append(far, ns)
	}
	web := workload(t, a, "web")
	w := connect(t, web, "kernel://db/nsm-1")
	other := map[string]string{"on-b": "on-c", "on-c": "on-b"}[w.endpoint]
	stop := ping(t, web, w.far[0], far...)
	first := endpoints[w.endpoint]
	if err := first.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-first.Done()
	closed, told := strings.Index(first.Output(), "connection closed"), strings.Index(first.Output(), "told")
	if first.ExitCode() != 3 || closed < 0 || told < closed {
		t.Errorf("ended with %d:\n%s", first.ExitCode(), first.Output())
	}
	eventually(t, 20*time.Second, func() error { return transfer(web, namespaces[other], w.far[0]) })
	moves(t, endpointEnds, 1, stop)
	if wires, err := a.Nsm(t.Context(), "get", "wires"); err != nil || !strings.Contains(wires, other) {
		t.Errorf("%v: the wire is not at %s:\n%s", err, other, wires)
	}

	// The last one has nowhere to send its client, and does not wait.
	start := time.Now()
	if err := endpoints[other].Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-endpoints[other].Done()
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("the last endpoint took %s to end", took)
	}
}

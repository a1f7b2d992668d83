// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/lab"
)

// moves prints how much of a ping was lost by a number of moves, and fails if that is
// more than they may cost. A packet that is under way when its wire moves is lost if the
// peer that it comes from is none any more; and where the kernel has to make the client's
// device anew, for another VNI, there is none for some milliseconds. The limit is for a
// machine that has much else to do.
func moves(t *testing.T, payload string, n int, stop func() (sent, lost int)) {
	t.Helper()
	const may = time.Second
	sent, lost := stop()
	fmt.Printf("MEASURED: %d move(s) of a wire (%s) to another endpoint on another node cost %d of %d packets, one each %v\n", n, payload, lost, sent, pingInterval)
	if most := n * int(may/pingInterval); lost > most || sent == 0 {
		t.Errorf("%d of %d packets lost, at most %d may be", lost, sent, most)
	}
}

// What is drained moves its wires while packets flow: an endpoint, then the node of the
// other one. Both give the same addresses.
func TestDrain(t *testing.T) {
	for _, payload := range []string{"IP", "ETHERNET"} {
		t.Run(payload, func(t *testing.T) {
			t.Parallel() // it mostly waits
			if payload == "IP" {
				needTUN(t)
			}
			l := newMesh(t, lab.Config{Nodes: []string{"a", "b", "c"}})
			a := l.Node("a")
			var far []*lab.NetNS
			for _, node := range []string{"b", "c"} {
				ns := workload(t, l.Node(node), "db-"+node)
				serve(t, ns, "db", "--name", "on-"+node, "--cidr", "10.60.0.0/24", "--payload", payload)
				far = append(far, ns)
			}
			unchanged(t, l)
			web := workload(t, a, "web")
			w := connect(t, web, "kernel://db/nsm-1", "--name", "web")
			stop := ping(t, web, w.far[0], far...)
			first, then := w.endpoint, map[string]string{"on-b": "on-c", "on-c": "on-b"}[w.endpoint]
			nsm := func(args ...string) string {
				t.Helper()
				out, err := a.Nsm(t.Context(), args...)
				if err != nil {
					t.Fatalf("nsm %s: %v", strings.Join(args, " "), err)
				}
				return out
			}
			has := func(endpoint string) {
				t.Helper()
				if wires := nsm("get", "wires"); !strings.Contains(wires, endpoint) {
					t.Errorf("the wire is not at %s:\n%s", endpoint, wires)
				}
			}
			if out := nsm("drain", "endpoint", first); !strings.Contains(out, "1 wire moved") {
				t.Error(out)
			}
			has(then)
			nsm("drain", "endpoint", first, "--undo")
			if out := nsm("drain", "node", strings.TrimPrefix(then, "on-")); !strings.Contains(out, "1 wire moved") {
				t.Error(out)
			}
			has(first)
			moves(t, payload, 2, stop)
		})
	}
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
	moves(t, "IP", 1, stop)
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

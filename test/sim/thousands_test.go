// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/test/bench/probe"
	tables "github.com/openvwire/nsm/test/report"
)

var (
	thousands   = flag.Int("thousands", 200, "how many wires TestThousands has; make scale has 10,000")
	documented  = flag.String("doc", "", "replace the table of this Markdown `file` with what TestThousands finds")
	wiresShapes = []struct {
		name     string
		services []string
		must     float64 // KiB per wire that servers may have
	}{
		{"one node", []string{"near"}, 40},
		{"two nodes", []string{"far", "lan"}, 80},
	}
)

// rebuildBound is how long it may take until a manager that has restarted, and knows
// nothing, has all wires again.
const rebuildBound = 10 * time.Second

// needFiles lets the process have so many descriptors: while a Request is under way, that of
// its namespace is once more at each hop.
func needFiles(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur >= n {
		return
	}
	limit.Cur, limit.Max = n, max(limit.Max, n)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatalf("%d descriptors, which are needed: %v; run as root, or raise 'ulimit -n'", n, err)
	}
}

// Very many wires need as much each as a few do: memory while they stand, and work
// when they are refreshed and when a manager or a forwarder has forgotten them all.
func TestThousands(t *testing.T) {
	n := *thousands
	needFiles(t, 2*uint64(n))
	var rows []string
	row := func(format string, args ...any) { rows = append(rows, fmt.Sprintf(format, args...)) }
	for _, shape := range wiresShapes {
		Run(t, func(t *testing.T, m *Mesh) {
			many := newMany(m)
			many.open(t, 20, shape.services...) // with what is there for all
			before := m.heap()
			many.open(t, n, shape.services...)
			all := m.heap()
			for _, c := range many.clients {
				c.Vanish() // their wires stay until they expire
			}
			Settle()
			servers := float64(m.heap()-before) / 1024 / float64(n)
			row("| memory per wire on %s, KiB | %.1f (clients: %.1f) | ≤ %.0f | %s |", shape.name,
				servers, float64(all-before)/1024/float64(n)-servers, shape.must, tables.Verdict(servers <= shape.must))
			if servers > shape.must {
				t.Errorf("on %s servers have %.1f KiB per wire", shape.name, servers)
			}
		})
	}
	Run(t, func(t *testing.T, m *Mesh) { thousandsOfAll(t, m, n, row) })
	table := fmt.Sprintf("%s%d wires.\n\n| | | must | |\n|---|---|---|---|\n%s\n", tables.Describe(t.Context(), "../../bin/nsm").Heading(), n, strings.Join(rows, "\n"))
	t.Logf("MEASURED: %d wires\n%s", n, table)
	if *documented != "" {
		if err := tables.WriteDoc(*documented, map[string]string{"scale:process": table}); err != nil {
			t.Error(err)
		}
	}
}

// thousandsOfAll has wires of all kinds refreshed, and forgotten.
func thousandsOfAll(t *testing.T, m *Mesh, n int, row func(string, ...any)) {
	many := newMany(m)
	a, b := many.a, many.b
	c := startCost()
	many.open(t, n, "near", "far", "near", "lan")
	row("| making one: CPU, allocations | %s | | |", c.each(n))

	// The first refreshes come between 108 and 120 s, all through that time.
	m.Network.Forget()
	Pass(107 * time.Second)
	if early := m.Network.CallsTo(a.ManagerURL(), "Request"); early != 0 {
		t.Errorf("%d refreshes before 108 s", early)
	}
	c = startCost()
	most, all := 0, 0
	for range 13 {
		m.Network.Forget()
		Pass(time.Second)
		now := m.Network.CallsTo(a.ManagerURL(), "Request")
		most, all = max(most, now), all+now
	}
	row("| refreshing one: CPU, allocations | %s | | |", c.each(n))
	row("| refreshes in the busiest second, of %d opened at once | %d | ≤ %d | %s |", all, most, n/6, tables.Verdict(most <= n/6))
	if all != n || most > n/6 {
		t.Errorf("%d refreshes, %d of them in one second", all, most)
	}

	steps, work := many.steps(), a.Kernel.Work()+b.Kernel.Work()
	c = startCost()
	m.Network.Forget()
	a.StopManager()
	a.StartManager()
	took := awaitAll(t, func() int { return a.Manager.Usage().Wires }, n)
	cpu := c.elapsed() / time.Duration(runtime.NumCPU())
	requests, finds := m.Network.CallsTo(a.ManagerURL(), "Request"), m.Network.Calls("Find")
	row("| manager restarted, all wires known again | after %v, %.1f s of all processors | < %v | %s |", took, cpu.Seconds(), rebuildBound, tables.Verdict(took+cpu < rebuildBound))
	row("| per wire: CPU, allocations; Requests | %s; %.2f | | |", c.each(n), float64(requests)/float64(n))
	if requests > 3*n || finds > 20 || took >= rebuildBound {
		t.Errorf("a manager has rebuilt %d wires with %d Requests and %d Finds in %v", n, requests, finds, took)
	}
	Pass(3 * time.Minute)

	c = startCost()
	asked := a.Kernel.Work()
	a.Forwarder().Restart()
	row("| forwarder restarted: CPU, allocations per wire that it adopts | %s | | |", c.each(n))
	// It finds all with one call; by now some may have been refreshed already.
	if calls := a.Kernel.Work() - asked; calls > int64(n/2) || a.Forwarder().Usage().Wires != n {
		t.Errorf("a forwarder has adopted %d of %d wires with %d calls of the kernel", a.Forwarder().Usage().Wires, n, calls)
	}
	c = startCost()
	Pass(3 * time.Second)
	row("| until it knows them again: CPU, allocations per wire | %s | | |", c.each(n))
	if now := many.steps(); now != steps {
		t.Errorf("kernels were changed in %d steps", now-steps)
	}
	if calls := a.Kernel.Work() + b.Kernel.Work() - work; calls > int64(4*n) {
		t.Errorf("kernels were asked %d times for %d wires", calls, n)
	}
	many.close(t)
	m.CheckEmpty()
}

// many is a mesh of two nodes with very many wires, a hundred of each client.
type many struct {
	*Mesh
	a, b    *Node
	clients []*Client
	wires   []*client.Wire
}

func newMany(m *Mesh) *many {
	many := &many{Mesh: m, a: m.Node("a"), b: m.Node("b")}
	many.a.Serve(Service{Name: "near", Payload: "IP", CIDR: "10.64.0.0/16"})
	many.b.Serve(Service{Name: "far", Payload: "IP", CIDR: "10.65.0.0/16"})
	many.b.Serve(Service{Name: "lan", Payload: "ETHERNET", CIDR: "10.66.0.0/16"})
	return many
}

func (m *many) steps() int64 { return m.a.Kernel.Steps.Load() + m.b.Kernel.Steps.Load() }

// open opens n more wires at once, to the services in turn.
func (m *many) open(t *testing.T, n int, services ...string) {
	const perClient = 100
	var clients []*Client
	for i := range (n + perClient - 1) / perClient {
		name := fmt.Sprint("web-", len(m.clients)+i)
		m.Space(name) // not made by two at once
		clients = append(clients, m.a.Client(name))
	}
	m.clients = append(m.clients, clients...)
	opened := make([]*client.Wire, n)
	atOnce(t, n, func(ctx context.Context, i int) (err error) {
		opened[i], err = clients[i/perClient].Try(ctx, fmt.Sprintf("kernel://%s/nsm-%d", services[i%len(services)], i))
		return err
	})
	m.wires = append(m.wires, opened...)
}

func (m *many) close(t *testing.T) {
	atOnce(t, len(m.wires), func(ctx context.Context, i int) error { return m.wires[i].Close(ctx) })
}

// atOnce does n things, which must succeed, in no time: as many side by side as a
// manager lets in.
func atOnce(t *testing.T, n int, do func(ctx context.Context, i int) error) {
	t.Helper()
	const sideBySide = 64
	var doing sync.WaitGroup
	places := make(chan struct{}, sideBySide)
	for i := range n {
		places <- struct{}{}
		doing.Go(func() {
			defer func() { <-places }()
			if err := do(t.Context(), i); err != nil {
				t.Error(err)
			}
		})
	}
	doing.Wait()
	Settle()
	if t.Failed() {
		t.FailNow()
	}
}

// awaitAll returns after how many seconds there are n.
func awaitAll(t *testing.T, have func() int, n int) (took time.Duration) {
	t.Helper()
	for ; have() != n; took += time.Second {
		if took > time.Minute {
			t.Fatalf("%d of %d after %v", have(), n, took)
		}
		Pass(time.Second)
	}
	return took
}

// heap returns the bytes that are in use, without what the mesh has noted down.
func (m *Mesh) heap() uint64 {
	m.Network.Forget()
	m.logs.forget()
	runtime.GC()
	runtime.GC() // what pools have kept the first time
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc + s.StackInuse
}

// cost is what the process has used when it was made.
type cost struct {
	cpu     time.Duration // the clock of a bubble stands still while work is done
	mallocs uint64
}

func startCost() cost {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	cpu, _ := probe.CPU([]int{0}) // the process has one
	return cost{cpu, s.Mallocs}
}

func (c cost) elapsed() time.Duration { return startCost().cpu - c.cpu }

// each is what has been used since, for each of n.
func (c cost) each(n int) string {
	now := startCost()
	return fmt.Sprintf("%.2f ms, %d", (now.cpu-c.cpu).Seconds()*1e3/float64(n), (now.mallocs-c.mallocs)/uint64(n))
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/nstest"
	"github.com/openvwire/nsm/sdk/client"
)

// hops are where allocations of a path are counted, and by which function of a stack
// they are known: calls within a process have a goroutine of their own each, so the
// functions of no two hops are on one stack.
var hops = []struct{ name, request, close string }{
	{"client", "sdk/client.(*Wire).request", "sdk/client.(*Wire).Close"},
	{"manager", "nsmgr.(*Manager).Request", "nsmgr.(*Manager).Close"},
	{"forwarder", "forwarder.(*Forwarder).Request", "forwarder.(*Forwarder).Close"},
	{"endpoint", "sdk/endpoint.(*Server).Request", "sdk/endpoint.(*Server).Close"},
}

// allocations are counts by function of hops.
type allocations map[string]int64

// allocated counts what has been allocated so far.
func allocated() allocations {
	runtime.GC() // what is counted is told after the second
	runtime.GC()
	var records []runtime.MemProfileRecord
	for {
		n, ok := runtime.MemProfile(records, true)
		if ok {
			records = records[:n]
			break
		}
		records = make([]runtime.MemProfileRecord, n+100)
	}
	all := make(allocations)
	for _, r := range records {
		frames := runtime.CallersFrames(r.Stack())
		for more := true; more; {
			var f runtime.Frame
			f, more = frames.Next()
			if name := strings.TrimPrefix(f.Function, "github.com/openvwire/nsm/"); relevant(name) {
				all[name] += r.AllocObjects
				break
			}
		}
	}
	return all
}

func relevant(function string) bool {
	for _, h := range hops {
		if function == h.request || function == h.close {
			return true
		}
	}
	return false
}

// ceilings are the most allocations that a hop may make per Request, refresh and Close
// of a wire. Across nodes manager and forwarder are passed twice, and the count is of
// both.
var ceilings = map[string]map[string][3]int64{ // by shape and hop
	"local": {"client": {96, 129, 40}, "manager": {112, 87, 70}, "forwarder": {373, 160, 95}, "endpoint": {109, 97, 50}},
	"VXLAN": {"client": {100, 144, 40}, "manager": {219, 171, 141}, "forwarder": {686, 306, 185}, "endpoint": {111, 102, 54}},
}

// tooMany says what to do.
const tooMany = "see whence they come with 'go test ./test/sim -run TestAllocations -memprofile mem -memprofilerate 1', " +
	"then 'go tool pprof -sample_index alloc_objects mem'; raise the ceiling if what they are for is worth it"

// What a Request, a refresh and a Close of a wire allocate at each hop has a ceiling, a
// few per cent above what it was when that was last looked at. Counts do not depend on
// the machine. That a refresh asks the kernel nothing TestLifeOfAWire shows.
func TestAllocations(t *testing.T) {
	if nstest.Race {
		t.Skip("the race detector allocates too: step bench counts without it")
	}
	defer func(rate int) { runtime.MemProfileRate = rate }(runtime.MemProfileRate)
	runtime.MemProfileRate = 1 // every one
	const wires = 20
	for shape, most := range ceilings {
		t.Run(shape, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				m.log = slog.New(slog.DiscardHandler) // as a daemon that says nothing at this level
				a := m.Node("a")
				at, payload := a, "IP"
				if shape == "VXLAN" {
					at, payload = m.Node("b"), "ETHERNET"
				}
				at.Serve(Service{Name: "db", Payload: payload})
				c := a.Client("web", func(c *client.Config) { c.Liveness.Disabled = true }) // pings are not what is counted
				c.Close(c.Connect("kernel://db/first"))                                     // everybody knows everybody
				open := make([]*client.Wire, wires)

				start := allocated()
				for i := range open {
					open[i] = c.Connect(fmt.Sprintf("kernel://db/nsm-%d", i))
				}
				opened := allocated()
				m.Network.Forget()
				Pass(125 * time.Second) // each is refreshed once or twice
				refreshes := int64(m.Network.CallsTo(a.ManagerURL(), "Request"))
				refreshed := allocated()
				for _, w := range open {
					c.Close(w)
				}
				closed := allocated()

				for _, h := range hops {
					got := [3]int64{
						(opened[h.request] - start[h.request]) / wires,
						(refreshed[h.request] - opened[h.request]) / refreshes,
						(closed[h.close] - refreshed[h.close]) / wires,
					}
					for i, what := range []string{"Request", "refresh", "Close"} {
						fmt.Printf("MEASURED: %s, %s: %d allocations per %s, at most %d may be\n", shape, h.name, got[i], what, most[h.name][i])
						if got[i] > most[h.name][i] {
							t.Errorf("%s: the %s makes %d allocations per %s, at most %d may be; %s", shape, h.name, got[i], what, most[h.name][i], tooMany)
						} else if got[i] < most[h.name][i]*9/10 {
							t.Errorf("%s: the %s makes %d allocations per %s: lower the ceiling of %d, so that it stays so", shape, h.name, got[i], what, most[h.name][i])
						}
					}
				}
			})
		})
	}
}

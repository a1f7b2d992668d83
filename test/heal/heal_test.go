// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/nstest"
	"github.com/openvwire/nsm/test/report"
)

func TestMain(m *testing.M) {
	roles.Play()
	nstest.Main(m)
}

// testOptions builds what runs in the lab without the race detector: this measures.
func testOptions(t *testing.T) options {
	t.Helper()
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skipf("userspace WireGuard needs TUN devices: %v", err)
	} else {
		f.Close()
	}
	dir := t.TempDir()
	o := options{nsm: filepath.Join(dir, "nsm"), newer: filepath.Join(dir, "newer"), self: filepath.Join(dir, "heal"), rounds: 1}
	err := errors.Join(
		build(t.Context(), o.nsm, "cmd/nsm"),
		build(t.Context(), o.newer, "cmd/nsm", "-ldflags=-s -w"),
		build(t.Context(), o.self, "test/heal"))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// The budgets of the design hold. What a machine that is busy with other things
// does to a time is allowed for, to counts it does nothing.
func TestBudgets(t *testing.T) {
	checkAll(t, budgets)
}

// A part of the rest of the matrix; make heal-report measures all of it.
func TestMatrix(t *testing.T) {
	checkAll(t, slices.DeleteFunc(matrix(), func(c cell) bool { return !c.tested }))
}

// The clock of the machine is set forward and back by more than tokens and certificates
// live for, and no wire notices. It is everybody's: only in a machine that nobody else
// uses (test/vm).
func TestClockStep(t *testing.T) {
	nsm := os.Getenv("NSM_VM_PROGRAMS")
	if nsm == "" {
		t.Skip("sets the machine's clock: test/vm/run.sh runs it in a virtual machine")
	}
	x := &measurer{options: options{nsm: filepath.Join(nsm, "nsm"), self: "/proc/self/exe", rounds: 1}}
	for _, c := range matrix() {
		if c.component == clocks && (c.lasts <= long || !testing.Short()) {
			c.elsewhere = ""
			check(t, x, c)
		}
	}
	if err := x.close(); err != nil {
		t.Error(err)
	}
}

// checkAll measures cells, one after the other.
func checkAll(t *testing.T, cells []cell) {
	x := &measurer{options: testOptions(t)}
	defer func() {
		if err := x.close(); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range cells {
		t.Run(c.String(), func(t *testing.T) { check(t, x, c) })
	}
}

// attempts is how often a cell is measured on a machine that is busy with other
// things: it stands still for so long now and then that the mesh must take that for
// a fault. What is lost for another reason is lost again.
const attempts = 3

// check measures a cell and says what it has found.
func check(t *testing.T, x *measurer, c cell) {
	for attempt := 1; ; attempt++ {
		rounds, err := x.measure(t.Context(), c)
		factor, busy := patienceFactor()
		fmt.Println("MEASURED:", newCell(c, rounds, err).row())
		wrong := violations(c, rounds, factor)
		if err != nil {
			wrong = append(wrong, err.Error())
		}
		switch {
		case len(wrong) == 0:
			return
		case attempt < attempts && (busy != "" || blind(rounds) >= stall):
			fmt.Printf("MEASURED: once more: %s; probes stood still for %v%s\n", c, blind(rounds), busy)
			continue
		}
		t.Errorf("%s%s\n%s", strings.Join(wrong, "\n"), busy, x.logged)
		return
	}
}

// patienceFactor is by how much times may exceed their bounds on this machine now.
func patienceFactor() (factor float64, busy string) {
	if load, err := strconv.ParseFloat(report.Load(), 64); err == nil && load >= 2 {
		return 3, fmt.Sprintf("; the load average is %.1f, times may be three times as long", load)
	}
	return 1, ""
}

// violations says which wires had longer interruptions than they must.
func violations(c cell, rounds []round, factor float64) (wrong []string) {
	for _, r := range rounds {
		for _, w := range r.Wires {
			if bound := c.must.of(w.Kind); !within(w, bound, factor) {
				wrong = append(wrong, fmt.Sprintf("%s wire: must be %s; packets %+v, stream %+v", w.Kind, boundText(bound), w.Ping, w.Stream))
			}
		}
	}
	return wrong
}

// blind is the longest time in which a pinger was not run, although it was its turn.
func blind(rounds []round) (longest time.Duration) {
	for _, r := range rounds {
		for _, w := range r.Wires {
			longest = max(longest, w.Ping.Blind)
		}
	}
	return longest
}

// stall is about what the mesh waits for a sign of life.
const stall = 200 * time.Millisecond

// The matrix is complete: every component fails, each in more than one way, and no
// cell is there twice. (Only an upgrade happens to all processes, and only a step to
// all clocks.)
func TestCells(t *testing.T) {
	seen := make(map[string]bool)
	faults := make(map[component]int)
	phases := make(map[phase]int)
	for _, c := range matrix() {
		if seen[c.String()] {
			t.Errorf("%s is there twice", c)
		}
		seen[c.String()] = true
		faults[c.component]++
		phases[c.phase]++
	}
	for c := range daemons {
		if faults[c] < 5 {
			t.Errorf("%s fails in %d ways", c, faults[c])
		}
	}
	for _, c := range []component{localHolder, remoteHolder, endpoints, endpointsNode, clientsNode, client} {
		if faults[c] < 2 {
			t.Errorf("%s fails in %d ways", c, faults[c])
		}
	}
	for _, p := range []phase{idle, duringRequest, duringRefresh, duringHeal} {
		if phases[p] < 10 {
			t.Errorf("%s: %d cells", p, phases[p])
		}
	}
	if len(seen) < 80 {
		t.Errorf("%d cells", len(seen))
	}
}

func TestWithin(t *testing.T) {
	second := time.Second
	for _, tt := range []struct {
		name   string
		lost   int
		gap    time.Duration
		resets int
		open   bool
		bound  time.Duration
		factor float64
		want   bool
	}{
		{"nothing lost", 0, 0, 0, false, none, 1, true},
		{"a packet lost", 1, 10 * time.Millisecond, 0, false, none, 1, false},
		{"a packet lost, and the machine is busy", 1, 10 * time.Millisecond, 0, false, none, 3, false},
		{"a connection lost", 0, 0, 1, false, none, 1, false},
		{"in time", 50, second, 1, false, second, 1, true},
		{"late", 51, second + 1, 1, false, second, 1, false},
		{"late, and the machine is busy", 51, 2 * second, 1, false, second, 3, true},
		{"never", 51, second / 2, 1, true, second, 1, false},
	} {
		var s seen
		s.Ping.Lost, s.Ping.Gap, s.Ping.Open, s.Stream.Resets = tt.lost, tt.gap, tt.open, tt.resets
		if got := within(s, tt.bound, tt.factor); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

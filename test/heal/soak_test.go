// SPDX-License-Identifier: Apache-2.0

package main

import (
	"reflect"
	"testing"
	"time"
)

// Random faults, several at a time: wires get over them, and nothing is left. make soak
// does more of it.
func TestSoak(t *testing.T) {
	o := testOptions(t)
	err := o.soakRun(t.Context(), soakOptions{seed: 1, faults: 20 * time.Second, wires: 12, lifetime: soakLifetime, mix: kinds, perClient: 5})
	if err != nil {
		t.Error(err)
	}
}

// A seed is the same faults again; another one is others. Nothing fails twice at a time,
// and in time everything does.
func TestSchedule(t *testing.T) {
	s := &soak{servers: []*server{{}, {}}, clients: []*customer{{}, {}, {}}}
	for i, k := range s.keepers() {
		k.name = string(rune('a' + i))
	}
	targets := s.targets()
	plan := schedule(7, time.Hour, targets)
	if !reflect.DeepEqual(plan, schedule(7, time.Hour, targets)) {
		t.Error("a seed is not always the same faults")
	}
	if reflect.DeepEqual(plan, schedule(8, time.Hour, targets)) {
		t.Error("two seeds are the same faults")
	}
	ends := make(map[string]time.Duration)
	seen := make(map[string]bool)
	for _, f := range plan {
		if f.at < ends[f.target.name] || f.at >= time.Hour || f.lasts <= 0 {
			t.Errorf("%v, although the last one of %s ends at %v", f, f.target.name, ends[f.target.name])
		}
		ends[f.target.name] = f.at + f.lasts
		seen[f.target.name+": "+string(f.fault)] = true
	}
	for _, x := range targets {
		for _, f := range x.faults {
			if !seen[x.name+": "+string(f)] {
				t.Errorf("%s: %s never happens", x.name, f)
			}
		}
	}
	if n := len(plan); n < 3600 || n > 9000 {
		t.Errorf("%d faults in an hour", n)
	}
}

// What is missing and what is too much is found, wherever a wire is.
func TestUnlike(t *testing.T) {
	base := func() *census {
		return &census{
			kernel: []string{"a: link eth0", "a-web-0: address 10.1.0.1/32 dev nsm-0", "b-db-1: link db-x", "b-db-1: address 10.1.0.0/32 dev db-x"},
			leases: 1, wireLinks: 2, registered: []string{"db-1"}, namespaces: []string{"a", "b"},
			shown: map[string]int{"a": 1, "b": 1}, holders: map[string]int{"a": 1, "b": 1}, inUse: map[string]int{"manager of a: goroutines": 30},
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*census)
		wrong  int // differences
		exact  int
	}{
		{"the same", func(*census) {}, 0, 0},
		{"moved", func(c *census) {
			c.kernel[2], c.kernel[3] = "b-db-2: link db-y", "b-db-2: address 10.2.0.0/32 dev db-y"
		}, 0, 4},
		{"an address is missing", func(c *census) { c.kernel = c.kernel[:3] }, 1, 1},
		{"a rule is left", func(c *census) { c.kernel = append(c.kernel, "a-web-0: rule 100") }, 1, 1},
		{"a node's address", func(c *census) { c.kernel[0] = "a: link eth1" }, 2, 2},
		{"a lease", func(c *census) { c.leases++ }, 1, 1},
		{"a registration", func(c *census) { c.registered = nil }, 1, 1},
		{"a namespace", func(c *census) { c.namespaces = append(c.namespaces, "c") }, 1, 1},
		{"a process", func(c *census) { c.processes = append(c.processes, "nsm") }, 1, 1},
		{"a device", func(c *census) { c.holders["b"] = 2 }, 1, 1},
		{"a wire that is shown", func(c *census) { c.shown["b"] = 0 }, 1, 1},
		{"a few goroutines", func(c *census) { c.inUse["manager of a: goroutines"] += slack }, 0, 0},
		{"goroutines", func(c *census) { c.inUse["manager of a: goroutines"] += slack + 1 }, 1, 1},
		{"descriptors of a new kind", func(c *census) { c.inUse["manager of a: descriptors of kind tun"] = slack + 1 }, 1, 1},
	} {
		for exact, want := range map[bool]int{false: tt.wrong, true: tt.exact} {
			c := base()
			tt.change(c)
			if got := c.unlike(base(), exact); len(got) != want {
				t.Errorf("%s, exact %v: %q, want %d differences", tt.name, exact, got, want)
			}
		}
	}
}

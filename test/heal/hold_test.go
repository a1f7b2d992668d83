// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/test/report"
)

// Wires that are only kept are refreshed, carry packets all the time, need no more the
// longer they stand, and leave nothing. make scale does it with very many.
func TestHold(t *testing.T) {
	o := testOptions(t)
	h := holdOptions{
		soakOptions: soakOptions{wires: 24, lifetime: 20 * time.Second, mix: holdMix, perClient: 8, up: true},
		hold:        8 * time.Second, every: 4 * time.Second, pings: 6,
	}
	r, err := o.holdRun(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	if r.Refreshed < h.wires {
		t.Errorf("%d refreshes of %d wires whose tokens live for %v", r.Refreshed, h.wires, h.lifetime)
	}
	if r.Clients != 3 || r.Kinds["local"] != 12 || r.Kinds["ethernet"] != 6 || r.Kinds["ip"] != 6 {
		t.Errorf("%d clients, kinds %v", r.Clients, r.Kinds)
	}
	if len(r.Samples) != 3 || r.Pinged != h.pings || r.Pings.Sent == 0 {
		t.Errorf("%d samples, %d wires pinged: %+v", len(r.Samples), r.Pinged, r.Pings)
	}
	for _, part := range r.Parts {
		for _, s := range r.Samples {
			if u := s.Usage[part]; u.CPU <= 0 || u.RSS <= 0 || u.Descriptors <= 0 || u.Threads <= 0 {
				t.Errorf("%s after %v: %+v", part, s.At, u)
			}
		}
	}

	doc := filepath.Join(t.TempDir(), "performance.md")
	page, err := os.ReadFile("../../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(doc, page, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := report.WriteDoc(doc, map[string]string{"scale:wires": r.table()}); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(doc)
	if err != nil || !strings.Contains(string(written), r.table()) {
		t.Errorf("the document lacks the table: %v", err)
	}
	t.Logf("\n%s", r.table())
}

// A table says what the figures are.
func TestHeldTable(t *testing.T) {
	second := func(n int) map[string]usage {
		return map[string]usage{
			"manager of a":   {CPU: time.Duration(n) * time.Second, RSS: 20 << 10, Goroutines: 50, Descriptors: 20 + n, Threads: 9},
			holderPart + "a": {CPU: time.Duration(n) * time.Second, RSS: 30 << 10, Descriptors: 7, Threads: 5},
		}
	}
	r := &Held{
		Wires: 1000, Hold: time.Minute, Made: 10 * time.Second, Closed: 5 * time.Second, Parts: []string{"manager of a", holderPart + "a"},
		Before: map[string]usage{"manager of a": {RSS: 10 << 10}}, Samples: []sample{{0, second(0)}, {100 * time.Second, second(1)}, {200 * time.Second, second(3)}},
		Get: []time.Duration{300 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond}, Refreshed: 2000, Busiest: 101, First: 110 * time.Second,
	}
	for _, want := range []string{
		"| CPU of all daemons, of one core | 1.50 % | | |",
		"| of it for refreshes, as long as there are any | 1.00 % | < 3 % | met |",
		"| `nsm get wires`, median of 3 (slowest) | 250 ms (300) | < 200 ms | **missed** |",
		"| refreshes in the busiest second, of 2000 | 101 | ≤ 100 | **missed** |",
		"| making, closing all, wires/s | 100, 200 | | |",
		"| manager of a | 1.50 % | 10.0 | 20.0 | 20.0 | 20.0 | 10.2 | 50 | 20 → 23 | 9 |",
		"| WireGuard holder of a | 1.50 % | 0.0 | 30.0 | 30.0 | 30.0 | 30.7 |  | 7 | 5 |",
	} {
		if !slices.Contains(strings.Split(r.table(), "\n"), want) {
			t.Errorf("the table lacks\n%s\nin\n%s", want, r.table())
		}
	}
	r.First = 90 * time.Second // a refresh that is part of what was to be without
	if share, ok := r.refreshCPU(); ok {
		t.Errorf("refreshes take %v", share)
	}
}

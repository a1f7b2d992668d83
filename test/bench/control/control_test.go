// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openvwire/nsm/test/interop/ref"
)

func TestMain(m *testing.M) {
	roles.Play()
	if err := ref.Isolate(); err != nil {
		fmt.Fprintln(os.Stderr, "control:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// The benchmark runs, in its short form: every row has figures of both makes, and
// they get into the document. It asserts no budget.
func TestShort(t *testing.T) {
	page, err := os.ReadFile("../../../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := filepath.Join(t.TempDir(), "performance.md")
	if err := os.WriteFile(doc, page, 0o644); err != nil {
		t.Fatal(err)
	}
	o, err := parse([]string{"-short", "-doc", doc})
	if err != nil {
		t.Fatal(err)
	}
	r, err := o.measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", r.callsTable())
	if len(r.Calls) != 6 || len(r.Held) != 2 {
		t.Fatalf("%d operations and %d memories, want 6 and 2", len(r.Calls), len(r.Held))
	}
	for _, c := range r.Calls {
		for _, p := range []struct {
			what string
			a, b []float64
		}{{"rate", c.Rate.A, c.Rate.B}, {"p50", c.P50.A, c.P50.B}, {"p99", c.P99.A, c.P99.B}, {"CPU", c.CPU.A, c.CPU.B}} {
			if len(p.a) != o.rounds || len(p.b) != o.rounds || p.a[0] <= 0 || p.b[0] <= 0 {
				t.Errorf("%s, %d nodes, %s: %s has no figures: %v, %v", c.Mode, c.Nodes, c.Do, p.what, p.a, p.b)
			}
		}
		want := 0
		if c.Mode == "plaintext" {
			want = o.rounds
		}
		if a := c.Alone; len(a.A) != want || len(a.B) != want || want > 0 && (a.A[0] <= 0 || a.B[0] != c.CPU.B[0]) {
			t.Errorf("%s, %d nodes, %s: beside gRPC alone %v, want %d of each", c.Mode, c.Nodes, c.Do, a, want)
		}
		if c.Failed[1] > 0 {
			t.Errorf("%s, %d nodes, %s: %d of ours have failed: %s", c.Mode, c.Nodes, c.Do, c.Failed[1], c.Why[1])
		}
	}
	for _, h := range r.Held {
		if h.Open[1] != o.held || h.Open[0] == 0 || h.Goroutines[0] <= 0 {
			t.Errorf("%s, %d nodes: %+v", h.Mode, h.Nodes, h)
		}
	}
	t.Logf("\n%s", r.registryTable())
	if len(r.Lookups) != 10 || r.Growth == nil {
		t.Errorf("%d operations of the registry, growth %v; want 10 and one", len(r.Lookups), r.Growth)
	}
	for _, l := range r.Lookups {
		if l.Endpoints[1] < o.endpoints[0] || len(l.P50.A) == 0 || l.P50.A[0] <= 0 || l.P50.B[0] <= 0 || len(l.Alone.A) != len(l.Rate.B) || l.Alone.A[0] <= 0 || l.Alone.B[0] != l.Rate.B[0] {
			t.Errorf("%s has no figures: %+v", l.Do, l)
		}
	}
	if err := o.to.Write(r, r.tables()); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	for name, table := range r.tables() {
		if table == "" || !strings.Contains(string(written), table) {
			t.Errorf("the document lacks %s\n%s", name, table)
		}
	}
}

func TestFlags(t *testing.T) {
	if _, err := parse([]string{"-rows", "tls-1"}); err != nil {
		t.Error(err)
	}
	if _, err := parse([]string{"-rows", "tls-3"}); err == nil {
		t.Error("an unknown row: no error")
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openvwire/nsm/internal/nstest"
)

func TestMain(m *testing.M) {
	roles.Play()
	nstest.Main(m)
}

func buildNsm(t *testing.T) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "nsm")
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/nsm").CombinedOutput(); err != nil {
		t.Fatalf("build nsm: %v\n%s", err, out)
	}
	return program
}

// The benchmark runs, in its short form: every row has figures, and the figures
// get into the document. It asserts no budget.
func TestShort(t *testing.T) {
	dir := t.TempDir()
	o, err := parse([]string{"-short", "-nsm", buildNsm(t)})
	if err != nil {
		t.Fatal(err)
	}
	r, err := o.measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", r.markdown())
	if len(r.DataPlane) != 6 || len(r.SetUp) != 10 {
		t.Fatalf("%d comparisons and %d set-ups, want 6 and 10", len(r.DataPlane), len(r.SetUp))
	}
	for _, c := range r.DataPlane {
		if len(c.Metrics) != 8 || c.MTU < 1280 {
			t.Errorf("%s: %d metrics at MTU %d, want 8", c.Title, len(c.Metrics), c.MTU)
		}
		for _, m := range c.Metrics {
			if len(m.A) != o.rounds || len(m.B) != o.rounds || m.Ratio.Min <= 0 {
				t.Errorf("%s: %s has no figures: %+v", c.Title, m.Name, m)
			}
		}
	}
	if p := r.Peers; len(p.Names) != 1 || len(p.LeftOut) != len(peers)-1 || len(p.Metrics) != 8 {
		t.Errorf("peers that need no download, and 8 metrics: %+v", p)
	}
	for _, s := range r.SetUp {
		if s.First.N != o.samples || s.First.P50 < s.Request.P50 || s.Request.P50 <= 0 || s.Close.P50 <= 0 {
			t.Errorf("%s with %d wires up: %+v", s.Title, s.Held, s)
		}
		if s.Held > 0 && (s.Rate.Made <= 0 || s.Rate.Closed <= 0) {
			t.Errorf("%s: no rates: %+v", s.Title, s.Rate)
		}
	}

	// That all who were refused were told when to try again the workloads have checked.
	if o := r.Overload; o == nil || len(o.Loads) != 3 || o.Failed > 0 {
		t.Errorf("load above capacity: %+v", o)
	}
	if g := r.Registry; g == nil || g.ByName.N != o.finds || g.ByService.N != o.finds || g.FanOut.N != o.changes || g.Resident <= 0 {
		t.Errorf("registry: %+v", g)
	}

	doc := filepath.Join(dir, "performance.md")
	page, err := os.ReadFile("../../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(doc, page, 0o644); err != nil {
		t.Fatal(err)
	}
	values := filepath.Join(dir, "bench.json")
	if o, err = parse([]string{"-short", "-doc", doc, "-json", values}); err != nil {
		t.Fatal(err)
	}
	if err := o.to.Write(r, r.tables()); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	for name, table := range r.tables() {
		if !strings.Contains(string(written), table) {
			t.Errorf("the document lacks %s\n%s", name, table)
		}
	}
	if _, err := os.Stat(values); err != nil {
		t.Error(err)
	}
}

// Profiles of every daemon are recorded under load.
func TestProfiles(t *testing.T) {
	dir := t.TempDir()
	o, err := parse([]string{"-short", "-nsm", buildNsm(t), "-profile", dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.pprof"))
	if err != nil || len(files) != 10 {
		t.Errorf("%d profiles of 2 managers, 2 forwarders and a registry, want 2 of each: %v, %v", len(files), files, err)
	}
}

func TestFlags(t *testing.T) {
	if _, err := parse([]string{"-rows", "local,setup"}); err != nil {
		t.Error(err)
	}
	if _, err := parse([]string{"-held", "0,many"}); err == nil {
		t.Error("a number of wires that is none: no error")
	}
	if _, err := parse([]string{"-rows", "wires"}); err == nil {
		t.Error("an unknown row: no error")
	}
}

func TestVerdict(t *testing.T) {
	throughput, rtt := measurements[0].metrics[0], measurements[2].metrics[0]
	for _, tc := range []struct {
		metric metric
		kind   string
		ratio  float64
		want   bool
	}{
		{throughput, "local", 0.97, true},
		{throughput, "local", 0.96, false},
		{throughput, "control", 0.5, true},
		{rtt, "local", 1.03, true},
		{rtt, "local", 1.04, false},
		{rtt, "vxlan", 2, true},
	} {
		if got := tc.metric.met(tc.kind, tc.ratio); got != tc.want {
			t.Errorf("%s of %s at %v: met = %v", tc.metric.name, tc.kind, tc.ratio, got)
		}
	}
}

func TestTooFewNeighbours(t *testing.T) {
	if reason, err := tooFewNeighbours(1); reason != "" || err != nil {
		t.Errorf("one wire: %q, %v", reason, err)
	}
	if reason, err := tooFewNeighbours(1 << 40); reason == "" || err != nil {
		t.Errorf("more wires than any kernel has neighbours: %q, %v", reason, err)
	}
}

// A peer that cannot be downloaded is told in one line, which the table shows.
func TestInstallFails(t *testing.T) {
	t.Setenv("GOPROXY", "off")
	b := &bench{tools: t.TempDir()}
	err := b.install(t.Context(), []string{"example.invalid/peer@v1.0.0"})
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "GOPROXY=off") {
		t.Errorf("a peer that is nowhere: %v", err)
	}
}

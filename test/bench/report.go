// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Report is what a run has found.
type Report struct {
	Date    string `json:"date"`
	Kernel  string `json:"kernel"`
	CPU     string `json:"cpu"`
	Build   string `json:"build"` // nsm's version and the Go it was built with
	Load    string `json:"load"`  // of the machine when the run began, 1 min average
	Rounds  int    `json:"rounds"`
	RoundMS int64  `json:"round_ms"`
	Short   bool   `json:"short"`

	DataPlane []Comparison `json:"data_plane,omitempty"`
	SetUp     []SetUp      `json:"set_up,omitempty"`
}

func newReport(ctx context.Context, o options) *Report {
	r := &Report{
		Date: time.Now().UTC().Format("2006-01-02 15:04 MST"), Kernel: "unknown", CPU: cpuModel(), Rounds: o.rounds, RoundMS: o.round.Milliseconds(), Short: o.short,
	}
	if version, err := exec.CommandContext(ctx, o.nsm, "version").Output(); err == nil {
		r.Build = strings.TrimSpace(string(version)) // "nsm v0.1.0 (9ac672ca128d) go1.26.8 linux/amd64"
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		r.Load, _, _ = strings.Cut(string(data), " ")
	}
	return r
}

func cpuModel() string {
	model := runtime.GOARCH
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("%d × %s", runtime.NumCPU(), model)
}

// markdown returns the whole report as Markdown.
func (r *Report) markdown() string {
	return r.dataPlaneTable() + "\n" + r.setUpTable()
}

func (r *Report) heading() string {
	h := fmt.Sprintf("%s; %s; %s; %s; load average before the run %s\n\n", r.Date, r.Kernel, r.CPU, r.Build, r.Load)
	if load, err := strconv.ParseFloat(r.Load, 64); err == nil && load >= 1 {
		h += busy
	}
	return h
}

// busy is what a reader must know of a run on a machine that had other things to do.
const busy = "**The machine was busy with other things.** Times and throughput are worse than on an idle one, and ratios spread; " +
	"those of CPU and of the median round trip suffer least.\n\n"

func (r *Report) dataPlaneTable() string {
	if len(r.DataPlane) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(r.heading())
	fmt.Fprintf(&b, "Rounds of %d ms per side. A ratio is wire / by hand, the median of the rounds, with its 95 %% confidence interval and the extremes.\n", r.RoundMS)
	for _, c := range r.DataPlane {
		fmt.Fprintf(&b, "\n**%s** against %s, MTU %d\n\n", c.Title, c.Against, c.MTU)
		b.WriteString("| | by hand | wire | ratio | 95 % | min – max | rounds | must | |\n|---|---|---|---|---|---|---|---|---|\n")
		for _, m := range c.Metrics {
			must, met := "", ""
			if m.Bound != nil {
				must, met = fmt.Sprintf("≥ %.2f", *m.Bound), verdict(m.Met)
				if m.Ratio.Low < *m.Bound && *m.Bound < m.Ratio.High {
					met += ", within the noise"
				}
				if strings.Contains(m.Name, "round trip") {
					must = fmt.Sprintf("≤ %.2f", *m.Bound)
				}
			}
			fmt.Fprintf(&b, "| %s, %s | %s | %s | %.3f | %.3f – %.3f | %.2f – %.2f | %d | %s | %s |\n", m.Name, m.Unit,
				figure(spreadOf(m.A).Median), figure(spreadOf(m.B).Median),
				m.Ratio.Median, m.Ratio.Low, m.Ratio.High, m.Ratio.Min, m.Ratio.Max, len(m.A), must, met)
		}
	}
	return b.String()
}

func (r *Report) setUpTable() string {
	if len(r.SetUp) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(r.heading())
	fmt.Fprintf(&b, "Milliseconds, one wire after the other; rates with %d at a time.\n\n", parallel)
	b.WriteString("| wire | already up | Request p50 | p99 | to first packet p50 | p99 | must | | Close p50 | p99 | made/s | closed/s |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range r.SetUp {
		made, closed := "", ""
		if s.Rate.Made > 0 {
			made, closed = figure(s.Rate.Made), figure(s.Rate.Closed)
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s | ≤ %.0f | %s | %s | %s | %s | %s |\n", s.Title, s.Held,
			figure(s.Request.P50), figure(s.Request.P99), figure(s.First.P50), figure(s.First.P99),
			s.Bound, verdict(s.Met), figure(s.Close.P50), figure(s.Close.P99), made, closed)
	}
	return b.String()
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "**missed**"
}

// figure prints a value with three digits.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r *Report) writeJSON(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// writeDoc replaces the tables in the document: what stands between
// <!-- bench:NAME --> and <!-- /bench:NAME -->. A table that was not measured stays.
func (r *Report) writeDoc(path string) error {
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for name, table := range map[string]string{"data-plane": r.dataPlaneTable(), "set-up": r.setUpTable()} {
		if table == "" {
			continue
		}
		if doc, err = replaceBetween(doc, "<!-- bench:"+name+" -->\n", "<!-- /bench:"+name+" -->", table); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return os.WriteFile(path, doc, 0o644)
}

func replaceBetween(doc []byte, begin, end, with string) ([]byte, error) {
	before, rest, ok := bytes.Cut(doc, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return nil, fmt.Errorf("no %q … %q", strings.TrimSpace(begin), end)
	}
	return bytes.Join([][]byte{before, []byte(begin), []byte(with), []byte(end), after}, nil), nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/openvwire/nsm/test/report"
)

// Report is what a run has found.
type Report struct {
	report.Machine
	Rounds  int   `json:"rounds"`
	RoundMS int64 `json:"round_ms"`
	Short   bool  `json:"short"`

	DataPlane []Comparison `json:"data_plane,omitempty"`
	Peers     *Peers       `json:"peers,omitempty"`
	SetUp     []SetUp      `json:"set_up,omitempty"`
	Overload  *Overload    `json:"overload,omitempty"`
	Registry  *Registry    `json:"registry,omitempty"`
}

func newReport(ctx context.Context, o options) *Report {
	return &Report{Machine: report.Describe(ctx, o.nsm), Rounds: o.rounds, RoundMS: o.round.Milliseconds(), Short: o.short}
}

// markdown returns the whole report as Markdown.
func (r *Report) markdown() string {
	return r.dataPlaneTable() + "\n" + r.peersTable() + "\n" + r.setUpTable() + "\n" + r.overloadTable() + "\n" + r.registryTable()
}

func (r *Report) heading() string {
	if r.Busy() {
		return r.Heading() + busy
	}
	return r.Heading()
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
				must, met = fmt.Sprintf("≥ %.2f", *m.Bound), report.Verdict(m.Met)
				if m.Ratio.Low < *m.Bound && *m.Bound < m.Ratio.High {
					met += ", within the noise"
				}
				if strings.Contains(m.Name, "round trip") {
					must = fmt.Sprintf("≤ %.2f", *m.Bound)
				}
			}
			fmt.Fprintf(&b, "| %s, %s | %s | %s | %.3f | %.3f – %.3f | %.2f – %.2f | %d | %s | %s |\n", m.Name, m.Unit,
				report.Figure(report.SpreadOf(m.A).Median), report.Figure(report.SpreadOf(m.B).Median),
				m.Ratio.Median, m.Ratio.Low, m.Ratio.High, m.Ratio.Min, m.Ratio.Max, len(m.A), must, met)
		}
	}
	return b.String()
}

func (r *Report) peersTable() string {
	if r.Peers == nil {
		return ""
	}
	var b strings.Builder
	b.WriteString(r.heading())
	fmt.Fprintf(&b, "Rounds of %d ms per side, MTU %d. A ratio is our wire / theirs, the median of the rounds, with its 95 %% confidence interval.\n", r.RoundMS, r.Peers.MTU)
	for _, who := range r.Peers.LeftOut {
		fmt.Fprintf(&b, "\nLeft out: %s\n", who)
	}
	b.WriteString("\n| | our wire |")
	for _, name := range r.Peers.Names {
		fmt.Fprintf(&b, " %s | ratio | 95 %% |", name)
	}
	b.WriteString(" rounds |\n|---|---|" + strings.Repeat("---|---|---|", len(r.Peers.Names)) + "---|\n")
	for _, m := range r.Peers.Metrics {
		ours := m.Against[0].B
		fmt.Fprintf(&b, "| %s, %s | %s |", m.Name, m.Unit, report.Figure(report.SpreadOf(ours).Median))
		for _, a := range m.Against {
			fmt.Fprintf(&b, " %s | %.3f | %.3f – %.3f |", report.Figure(report.SpreadOf(a.A).Median), a.Ratio.Median, a.Ratio.Low, a.Ratio.High)
		}
		fmt.Fprintf(&b, " %d |\n", len(ours))
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
		if s.LeftOut != "" {
			fmt.Fprintf(&b, "| %s | %d | left out: %s | | | | | | | | | |\n", s.Title, s.Held, s.LeftOut)
			continue
		}
		made, closed := "", ""
		if s.Rate.Made > 0 {
			made, closed = report.Figure(s.Rate.Made), report.Figure(s.Rate.Closed)
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s | ≤ %.0f | %s | %s | %s | %s | %s |\n", s.Title, s.Held,
			report.Figure(s.Request.P50), report.Figure(s.Request.P99), report.Figure(s.First.P50), report.Figure(s.First.P99),
			s.Bound, report.Verdict(s.Met), report.Figure(s.Close.P50), report.Figure(s.Close.P99), made, closed)
	}
	return b.String()
}

// tables are what the document has, by marker.
func (r *Report) tables() map[string]string {
	return map[string]string{
		"bench:data-plane": r.dataPlaneTable(), "bench:peers": r.peersTable(), "bench:set-up": r.setUpTable(), "bench:overload": r.overloadTable(),
		"scale:registry": r.registryTable(),
	}
}

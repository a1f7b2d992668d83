// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/openvwire/nsm/test/report"
)

// Report is what a run has found.
type Report struct {
	report.Machine
	Rounds  int      `json:"rounds"`
	RoundMS int64    `json:"round_ms"`
	Calls   []Call   `json:"calls,omitempty"`
	Held    []Held   `json:"held,omitempty"`
	Lookups []Lookup `json:"lookups,omitempty"`
	Growth  *Growth  `json:"growth,omitempty"`
}

// tables are what the document has, by marker.
func (r *Report) tables() map[string]string {
	return map[string]string{"bench:control-plane": r.callsTable(), "bench:registry": r.registryTable()}
}

func (r *Report) heading() string {
	if r.Busy() {
		return r.Heading() + "**The machine was busy with other things.** Times are longer than on an idle one; ratios and CPU suffer less.\n\n"
	}
	return r.Heading()
}

func (r *Report) registryTable() string {
	if len(r.Lookups) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(r.heading())
	fmt.Fprintf(&b, "%d rounds of %d ms; Register once, for as long as it takes.\n\n", r.Rounds, r.RoundMS)
	b.WriteString("| endpoints | | per second | ratio | 95 % | p50, ms | p99, ms | CPU of the registry, ms | ratio | 95 % |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, l := range r.Lookups {
		rate, cpu := l.Rate.Ratio(), l.CPU.Ratio()
		fmt.Fprintf(&b, "| %d / %d | %s | %s | %.1f | %.1f – %.1f | %s | %s | %s | %.3f | %.3f – %.3f |\n", l.Endpoints[0], l.Endpoints[1], l.Do,
			both(l.Rate), rate.Median, rate.Low, rate.High, both(l.P50), both(l.P99), both(l.CPU), cpu.Median, cpu.Low, cpu.High)
	}
	b.WriteString("\n| endpoints | | per second, gRPC alone / ours | ratio | 95 % | CPU of gRPC alone / of ours, ms | ratio | 95 % |\n|---|---|---|---|---|---|---|---|\n")
	for _, l := range r.Lookups {
		rate, cpu := l.Alone.Ratio(), l.AloneCPU.Ratio()
		fmt.Fprintf(&b, "| %d | %s | %s | %.2f | %.2f – %.2f | %s | %.2f | %.2f – %.2f |\n", l.Endpoints[1], l.Do,
			both(l.Alone), rate.Median, rate.Low, rate.High, both(l.AloneCPU), cpu.Median, cpu.Low, cpu.High)
	}
	if g := r.Growth; g != nil {
		grown := g.P50.Ratio()
		fmt.Fprintf(&b, "\nOurs, Find of %d among %d against among %d, both there at the same time: %.3f times as long (%.3f – %.3f); must be ≤ %.1f: %s.\n",
			perService, g.To, g.From, grown.Median, grown.Low, grown.High, g.Must, report.Verdict(grown.Median <= g.Must))
	}
	return b.String()
}

func (r *Report) callsTable() string {
	if len(r.Calls) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(r.heading())
	fmt.Fprintf(&b, "%d rounds of %d ms per side and operation. Each pair of figures is the reference's and ours, the medians of the rounds; "+
		"a ratio is the median of the rounds' with its 95 %% confidence interval.\n\n", r.Rounds, r.RoundMS)
	b.WriteString("| | nodes | at a time | | per second | ratio | 95 % | p50, ms | p99, ms | CPU of all servers, ms | ratio | 95 % | must | |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	var failures []string
	for _, c := range r.Calls {
		b.WriteString(c.row())
		for i, n := range c.Failed {
			if n > 0 {
				failures = append(failures, fmt.Sprintf("* %s, nodes: %d, at a time: %d: %d × %s of %s, such as %.200q\n", c.Mode, c.Nodes, c.InFlight, n, c.Do, makes[i], c.Why[i]))
			}
		}
	}
	if len(failures) > 0 {
		b.WriteString("\nFailed, and not counted above:\n\n" + strings.Join(failures, ""))
	}
	b.WriteString(r.aloneTable())
	b.WriteString("\n| connections held | nodes | open | KiB each | goroutines each | must | |\n|---|---|---|---|---|---|---|\n")
	for _, h := range r.Held {
		fmt.Fprintf(&b, "| %s | %d | %d / %d | %s / %s | %s / %s | ≤ %.0f KiB | %s |\n", h.Mode, h.Nodes, h.Open[0], h.Open[1],
			report.Figure(h.KiB[0]), report.Figure(h.KiB[1]), report.Figure(h.Goroutines[0]), report.Figure(h.Goroutines[1]), h.Must, report.Verdict(h.KiB[1] <= h.Must))
	}
	return b.String()
}

// aloneTable sets ours beside gRPC alone.
func (r *Report) aloneTable() string {
	var b strings.Builder
	for _, c := range r.Calls {
		if len(c.Alone.A) == 0 {
			continue
		}
		if b.Len() == 0 {
			b.WriteString("\n| | nodes | at a time | | CPU of gRPC alone / of all servers of ours, ms | ratio | 95 % |\n|---|---|---|---|---|---|---|\n")
		}
		ratio := c.Alone.Ratio()
		fmt.Fprintf(&b, "| %s | %d | %d | %s | %s | %.2f | %.2f – %.2f |\n",
			c.Mode, c.Nodes, c.InFlight, c.Do, both(c.Alone), ratio.Median, ratio.Low, ratio.High)
	}
	return b.String()
}

func (c *Call) row() string {
	rate, cpu := c.Rate.Ratio(), c.CPU.Ratio()
	must, met := fmt.Sprintf("≥ %.0f ×", c.MustRate), rate.Median >= c.MustRate
	if c.MustCPU > 0 {
		must += fmt.Sprintf(", ≤ %.1f ms", c.MustCPU)
		met = met && report.SpreadOf(c.CPU.B).Median <= c.MustCPU
	}
	return fmt.Sprintf("| %s | %d | %d | %s | %s | %.1f | %.1f – %.1f | %s | %s | %s | %.3f | %.3f – %.3f | %s | %s |\n",
		c.Mode, c.Nodes, c.InFlight, c.Do, both(c.Rate), rate.Median, rate.Low, rate.High, both(c.P50), both(c.P99),
		both(c.CPU), cpu.Median, cpu.Low, cpu.High, must, report.Verdict(met))
}

// both are the medians of a pair.
func both(p report.Pairs) string {
	return report.Figure(report.SpreadOf(p.A).Median) + " / " + report.Figure(report.SpreadOf(p.B).Median)
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/openvwire/nsm/test/report"
)

// Report is what a run has found.
type Report struct {
	report.Machine
	Rounds int
	Cells  []Cell
}

// Cell is a cell of the matrix with what was measured.
type Cell struct {
	Component, Fault, Phase, Must string
	Rounds                        []round
	Wires                         map[string]summary // by kind
	Met                           bool
	Failed                        string // why it could not be measured
	Elsewhere                     string // why it is not measured here
}

func (o options) newReport(ctx context.Context) *Report {
	return &Report{Machine: report.Describe(ctx, o.nsm), Rounds: o.rounds}
}

func newCell(c cell, rounds []round, err error) Cell {
	row := Cell{
		Component: string(c.component), Fault: c.how(), Phase: string(c.phase), Must: c.must.String(),
		Rounds: rounds, Wires: make(map[string]summary), Met: err == nil, Elsewhere: c.elsewhere,
	}
	if err != nil {
		row.Failed, _, _ = strings.Cut(err.Error(), "\n")
	}
	for _, k := range kinds {
		s := summarize(c, rounds, k.name)
		row.Wires[k.name] = s
		row.Met = row.Met && s.Met
	}
	return row
}

// row is the cell's line of the table.
func (c Cell) row() string {
	if c.Elsewhere != "" {
		return fmt.Sprintf("| %s | %s | %s | | not here: %s |||| |", c.Component, c.Fault, c.Phase, c.Elsewhere)
	}
	verdict := report.Verdict(c.Met)
	if c.Failed != "" {
		verdict = "**not measured:** " + strings.ReplaceAll(c.Failed, "|", "/")
	}
	if c.Phase == string(duringRequest) {
		var took []time.Duration
		for _, r := range c.Rounds {
			took = append(took, r.New...)
		}
		if len(took) > 0 {
			verdict += fmt.Sprintf("; new wires after %d ms at most", slices.Max(took).Milliseconds())
		}
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s | %s |", c.Component, c.Fault, c.Phase, c.Must,
		c.Wires["local"], c.Wires["ethernet"], c.Wires["ip"], verdict)
}

func (r *Report) table() string {
	if len(r.Cells) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(r.Heading())
	if r.Busy() {
		b.WriteString("**The machine was busy with other things.** Interruptions that end when somebody has decided something are longer than on an idle one; packets are not lost for that.\n\n")
	}
	fmt.Fprintf(&b, "%d rounds of each cell.\n\n", r.Rounds)
	b.WriteString("| what fails | how | when | must | local wire | ETHERNET | IP | |\n|---|---|---|---|---|---|---|---|\n")
	for _, c := range r.Cells {
		b.WriteString(c.row() + "\n")
	}
	return b.String()
}

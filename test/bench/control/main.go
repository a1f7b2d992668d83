// SPDX-License-Identifier: Apache-2.0

// Command control measures the control plane against the reference's, as ratios
// within one run, and writes them into docs/performance.md.
//
//	cd test/bench/control && go run . [-short] [-rows plaintext-1,tls-2,registry] [-json FILE] [-doc ../../../docs/performance.md]
//
// It asserts nothing: a budget that is missed is printed as missed.
//
// A mesh of each make lives in a process of its own (mesh.go), and for each there is
// a process that calls it (load.go), the same program for both. They stand side by
// side, and work in turn, in short rounds of alternating order; each round gives one
// ratio (compare.go). What a connection costs in memory is measured in processes
// that have done nothing else before.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/openvwire/nsm/test/interop/ref"
	"github.com/openvwire/nsm/test/report"
)

func main() {
	report.Main("control", roles, ref.Isolate, func(ctx context.Context, args []string) error {
		o, err := parse(args)
		if err != nil {
			return err
		}
		return o.run(ctx)
	})
}

var roles = report.Roles{"server": serverRole, "load": loadRole, "registry-load": registryLoadRole}

// rows are what -rows may name, besides the registry.
var rows = map[string]setting{
	"plaintext-1": {Nodes: 1},
	"plaintext-2": {Nodes: 2},
	"apart-1":     {Apart: true, Nodes: 1},
	"apart-2":     {Apart: true, Nodes: 2},
	"tls-1":       {Secure: true, Nodes: 1},
	"tls-2":       {Secure: true, Nodes: 2},
}

const (
	registryRow = "registry"
	allRows     = "plaintext-1,plaintext-2,apart-1,apart-2,tls-1,tls-2,registry"
	shortRows   = "plaintext-2,tls-1,registry"
)

type options struct {
	nsm   string
	rows  []string
	short bool
	to    report.Output

	inFlight  []int
	rounds    int
	round     time.Duration
	held      int
	endpoints []int
	ramp      time.Duration
	profiles  string
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("control", flag.ContinueOnError)
	f.StringVar(&o.nsm, "nsm", "../../../bin/nsm", "the nsm `program` whose version is named; what is measured are its packages")
	chosen := f.String("rows", "", "what to measure, of "+allRows+"; default all")
	f.BoolVar(&o.short, "short", false, "show only that the benchmark works: one round, few connections")
	f.IntVar(&o.rounds, "rounds", 12, "rounds of a comparison")
	f.DurationVar(&o.round, "round", 400*time.Millisecond, "length of a round, per side and operation")
	f.IntVar(&o.held, "held", 1000, "connections of which the memory is measured")
	f.DurationVar(&o.ramp, "ramp", time.Minute, "how long they may take to be made, and endpoints to be registered")
	f.StringVar(&o.profiles, "profiles", "", "write profiles of the servers, CPU and allocations, into this `directory`")
	o.to.Flags(f)
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.inFlight, o.endpoints = []int{1, 8, 64}, []int{1000, 10_000, 100_000}
	if o.short {
		o.inFlight, o.endpoints, o.rounds, o.round, o.held, o.ramp = []int{4}, []int{100, 200}, 1, 50*time.Millisecond, 20, 5*time.Second
	}
	switch {
	case *chosen == "" && o.short:
		*chosen = shortRows
	case *chosen == "":
		*chosen = allRows
	}
	o.rows = strings.Split(*chosen, ",")
	for _, r := range o.rows {
		if _, ok := rows[r]; !ok && r != registryRow {
			return o, fmt.Errorf("-rows: %q is none of %s", r, allRows)
		}
	}
	return o, nil
}

func (o options) run(ctx context.Context) error {
	r, err := o.measure(ctx)
	if o.short {
		fmt.Println("-short: shows that the benchmark works. The figures, and what is met or missed, mean nothing.")
	}
	fmt.Print(r.callsTable(), "\n", r.registryTable()) // what there is of it
	if err != nil {
		return err
	}
	return o.to.Write(r, r.tables())
}

func (o options) measure(ctx context.Context) (*Report, error) {
	r := &Report{Machine: report.Describe(ctx, o.nsm), Rounds: o.rounds, RoundMS: o.round.Milliseconds()}
	for _, row := range o.rows {
		if row == registryRow {
			var err error
			if r.Lookups, r.Growth, err = o.registries(ctx); err != nil {
				return r, err
			}
			continue
		}
		s := rows[row]
		o.progress("%v", s)
		calls, err := o.compare(ctx, s)
		r.Calls = append(r.Calls, calls...)
		if err != nil {
			return r, fmt.Errorf("%v: %w", s, err)
		}
		held, err := o.hold(ctx, s)
		if err != nil {
			return r, fmt.Errorf("%v, memory: %w", s, err)
		}
		r.Held = append(r.Held, *held)
	}
	return r, nil
}

func (o options) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "control: "+format+"\n", args...)
}

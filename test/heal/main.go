// SPDX-License-Identifier: Apache-2.0

// Command heal measures how long wires are interrupted when something fails, and
// writes docs/heal.md.
//
//	go run ./test/heal -nsm bin/nsm [-rounds 5] [-cells budgets|all|TEXT] [-json FILE] [-doc docs/heal.md]
//	go run ./test/heal -nsm bin/nsm -soak 10m [-seed N] [-wires 50]
//	go run ./test/heal -nsm bin/nsm -hold 5m [-wires 1000] [-apart] [-json FILE] [-doc docs/performance.md]
//
// Every cell of a matrix (cells.go) is a component of the mesh, a fault, and what
// goes on when it comes. A lab of three nodes has wires of all kinds at once
// (mesh.go); packets and TCP messages go over each every 10 ms while the fault
// happens and until all is well again.
//
// It asserts nothing: a bound that is missed is printed as missed. A soak (soak.go) does:
// random faults, after which all must be well, and in the end nothing be left. A hold
// (hold.go) is a soak without faults, of very many wires, and measures what they cost.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/openvwire/nsm/test/report"
)

func main() {
	report.Main("heal", roles, report.OwnRun, func(ctx context.Context, args []string) error {
		o, err := parse(args)
		if err != nil {
			return err
		}
		return o.run(ctx)
	})
}

// The program starts itself again for the endpoints.
var roles = report.Roles{"endpoint": endpointRole}

type options struct {
	nsm    string
	newer  string
	self   string // this program, as endpoints run it
	rounds int
	cells  string
	to     report.Output
	logs   bool
	soak   time.Duration // of faults; 0 = measure the matrix
	hold   time.Duration // of many wires; 0 = none
	apart  bool          // in a hold every daemon is a process of its own
	seed   uint64
	wires  int
}

func parse(args []string) (o options, err error) {
	o.self = "/proc/self/exe"
	f := flag.NewFlagSet("heal", flag.ContinueOnError)
	f.StringVar(&o.nsm, "nsm", "bin/nsm", "the nsm `program` to measure")
	f.StringVar(&o.newer, "newer", "", "another build of it, for upgrades; default built here")
	f.IntVar(&o.rounds, "rounds", 5, "rounds of each cell")
	f.StringVar(&o.cells, "cells", "all", `"budgets", "all", or a text that the chosen cells contain`)
	o.to.Flags(f)
	f.BoolVar(&o.logs, "logs", false, "show what daemons have logged in a round that misses its bound")
	f.DurationVar(&o.soak, "soak", 0, "instead of measuring: random faults for this `time`, then look for what is wrong or left")
	f.Uint64Var(&o.seed, "seed", 0, "which faults a soak has; 0 = made up, and said")
	f.DurationVar(&o.hold, "hold", 0, "instead of measuring faults: what very many wires cost that are held for this `time`")
	f.BoolVar(&o.apart, "apart", false, "in a hold every daemon is a process of its own, not 'nsm up' on each node")
	f.IntVar(&o.wires, "wires", 0, "how many a soak (50) or a hold (1000) has")
	return o, f.Parse(args)
}

// chosen are the cells to measure.
func (o options) chosen() (chosen []cell) {
	switch o.cells {
	case "budgets":
		return budgets
	case "all":
		return matrix()
	}
	for _, c := range matrix() {
		if strings.Contains(c.String(), o.cells) {
			chosen = append(chosen, c)
		}
	}
	return chosen
}

func (o options) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "heal: "+format+"\n", args...)
}

func (o options) run(ctx context.Context) error {
	if o.soak > 0 {
		if o.seed == 0 {
			o.seed = uint64(time.Now().UnixMicro())
		}
		return o.soakRun(ctx, soakOptions{seed: o.seed, faults: o.soak, wires: cmp.Or(o.wires, 50), lifetime: soakLifetime, mix: kinds, perClient: 5})
	}
	if o.hold > 0 {
		return o.holdAndReport(ctx)
	}
	if o.newer == "" {
		dir, err := os.MkdirTemp("", "nsm-heal-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		o.newer = filepath.Join(dir, "newer")
		if err := build(ctx, o.newer, "cmd/nsm", "-ldflags=-s -w"); err != nil {
			return err
		}
	}
	r := o.newReport(ctx)
	var errs []error
	for _, c := range o.chosen() {
		var rounds []round
		var err error
		if c.elsewhere == "" {
			x := measurer{options: o}
			rounds, err = x.measure(ctx, c)
			err = errors.Join(err, x.close())
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil { // the others can be measured all the same
			o.progress("%v", err)
			errs = append(errs, err)
		}
		row := newCell(c, rounds, err)
		r.Cells = append(r.Cells, row)
		o.progress("%s", row.row())
	}
	fmt.Print(r.table())
	return errors.Join(append(errs, o.to.Write(r, map[string]string{"heal:matrix": r.table()}))...)
}

// SPDX-License-Identifier: Apache-2.0

// Command bench measures what the budgets of the design are about, as ratios
// within one run, and writes docs/performance.md.
//
//	go run ./test/bench -nsm bin/nsm [-short] [-rows control,local,vxlan,wireguard,tunnel,tunnel-eth,peers,setup,overload] [-json FILE] [-doc docs/performance.md]
//
// It asserts nothing: a budget that is missed is printed as missed. Everything
// runs in a lab (internal/lab): two nodes that are network namespaces, the
// daemons as processes. Without -doc the document stays as it is.
//
// Data plane: a wire of the mesh and the same made by hand stand between the same
// two namespaces. The same two processes measure both in turn, in short rounds of
// alternating order (A B, B A, …), and each round gives one ratio.
//
// Peers: programs of others stand beside our encrypted wire in the same way (peers.go).
//
// Set-up: a program that uses sdk/client, connected to its manager, makes wires
// one after the other, each for a new namespace, and sends UDP packets until one
// comes back.
//
// With -profile it records where the daemons spend time and memory under load instead
// (profile.go).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/test/report"
)

func main() {
	report.Main("bench", roles, report.OwnRun, func(ctx context.Context, args []string) error {
		o, err := parse(args)
		if err != nil {
			return err
		}
		return o.run(ctx)
	})
}

// rows are what -rows may name; "setup" stands for all that begin with it.
var rows = []string{"control", "local", "vxlan", "wireguard", "tunnel", "tunnel-eth", "peers", "registry",
	"setup", "setup-local", "setup-vxlan", "setup-wireguard", "setup-tunnel", "setup-tunnel-eth", "overload"}

type options struct {
	nsm   string
	rows  []string
	short bool
	to    report.Output

	rounds    int
	maxRounds int
	round     time.Duration
	samples   int
	held      []int

	bursts int
	burst  time.Duration

	profile string // directory; "" = profiles are not what is wanted
	seconds int    // of each

	registered int // endpoints in the registry
	watchers   int
	finds      int
	changes    int
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.nsm, "nsm", "bin/nsm", "the nsm `program` to measure")
	chosen := f.String("rows", "control,local,vxlan,wireguard,tunnel,tunnel-eth,peers,setup,registry,overload", "what to measure, of "+strings.Join(rows, ", "))
	f.BoolVar(&o.short, "short", false, "show only that the benchmark works: two rounds, few wires, nothing downloaded")
	o.to.Flags(f)
	f.IntVar(&o.rounds, "rounds", 12, "rounds of a comparison, at least")
	f.IntVar(&o.maxRounds, "max-rounds", 40, "rounds of a comparison whose ratio is not yet known to ±0.015")
	f.DurationVar(&o.round, "round", 400*time.Millisecond, "length of a round, per side")
	f.IntVar(&o.samples, "samples", 60, "wires of which the set-up is measured")
	held := f.String("held", "0,100,1000", "wires that are up already when the set-up is measured")
	f.IntVar(&o.bursts, "bursts", 4, "rounds of each load")
	f.DurationVar(&o.burst, "burst", 5*time.Second, "length of a load")
	f.StringVar(&o.profile, "profile", "", "measure nothing, but record profiles of the daemons under load into this `directory`")
	f.IntVar(&o.seconds, "seconds", 20, "length of each profile")
	f.IntVar(&o.registered, "endpoints", 100_000, "endpoints in the registry")
	f.IntVar(&o.watchers, "watchers", 1000, "watchers of the registry")
	f.IntVar(&o.finds, "finds", 2000, "Finds in the registry of each kind")
	f.IntVar(&o.changes, "changes", 50, "changes that watchers are told")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.rows = strings.Split(*chosen, ",")
	for _, r := range o.rows {
		if !slices.Contains(rows, r) {
			return o, fmt.Errorf("-rows: %q is none of %v", r, rows)
		}
	}
	for _, n := range strings.Split(*held, ",") {
		n, err := strconv.Atoi(n)
		if err != nil || n < 0 {
			return o, fmt.Errorf("-held: want numbers of wires, as in 0,100, not %q", *held)
		}
		o.held = append(o.held, n)
	}
	if o.short {
		o.rounds, o.maxRounds, o.round, o.samples, o.held = 2, 2, 50*time.Millisecond, 5, []int{0, 10}
		o.seconds, o.bursts, o.burst = 1, 1, time.Second
		o.registered, o.watchers, o.finds, o.changes = 1000, 20, 20, 5
	}
	return o, nil
}

// bench is a run.
type bench struct {
	options
	lab       *lab.Lab
	tools     string // directory of the programs that others have written
	client    *lab.NetNS
	endpoints map[string]*lab.NetNS   // by kind
	servers   map[string]*lab.Process // of probes, by kind
	hands     int                     // links made by hand so far
	pools     int                     // endpoints with addresses so far
	shared    bool                    // wires to other nodes share a tunnel now
}

func (o options) run(ctx context.Context) error {
	if o.profile != "" {
		return o.profiles(ctx)
	}
	r, err := o.measure(ctx)
	if r != nil {
		if o.short {
			fmt.Println("-short: shows that the benchmark works. The figures, and what is met or missed, mean nothing.")
		}
		fmt.Print(r.markdown()) // what there is of it
	}
	if err != nil {
		return err
	}
	return o.to.Write(r, r.tables())
}

func (o options) measure(ctx context.Context) (r *Report, err error) {
	r = newReport(ctx, o)
	if slices.Contains(o.rows, "registry") {
		o.progress("registry, %d endpoints", o.registered)
		if r.Registry, err = o.registry(ctx); err != nil {
			return r, err
		}
	}
	if len(o.rows) == 1 && r.Registry != nil {
		return r, nil // that needs no lab
	}
	tools, err := os.MkdirTemp("", "nsm-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tools)
	b := &bench{
		options: o, tools: tools,
		endpoints: make(map[string]*lab.NetNS), servers: make(map[string]*lab.Process),
	}
	if needsWireGuardGo(o.rows) {
		if err := buildWireGuardGo(ctx, b.tool("wireguard-go")); err != nil {
			return nil, err
		}
	}
	if b.lab, err = lab.New(ctx, lab.Config{Binary: o.nsm, Env: []string{"NSM_WIREGUARD_TUNNEL=off"}}); err != nil { // at first
		return nil, err
	}
	defer func() { err = errors.Join(err, b.lab.Close()) }()
	if err := b.lab.StartDaemons(ctx); err != nil {
		return nil, err
	}
	if b.client, err = b.lab.Node("a").Workload("client"); err != nil {
		return nil, err
	}
	return r, b.all(ctx, r)
}

// all measures whatever needs the lab.
func (b *bench) all(ctx context.Context, r *Report) error {
	for _, k := range append([]kind{control}, kinds...) {
		if !slices.Contains(b.rows, k.name) {
			continue
		}
		b.progress("data plane, %s", k.title)
		if err := b.use(ctx, k); err != nil {
			return err
		}
		c, err := b.dataPlane(ctx, k)
		if err != nil {
			return err
		}
		r.DataPlane = append(r.DataPlane, *c)
	}
	if slices.Contains(b.rows, "peers") {
		b.progress("peers")
		p, err := b.peers(ctx)
		if err != nil {
			return err
		}
		r.Peers = p
	}
	if slices.Contains(b.rows, "overload") {
		b.progress("load above capacity")
		o, err := b.overload(ctx)
		if err != nil {
			return err
		}
		r.Overload = o
	}
	for _, k := range kinds {
		if !slices.Contains(b.rows, "setup") && !slices.Contains(b.rows, "setup-"+k.name) {
			continue
		}
		b.progress("set-up, %s", k.title)
		if err := b.use(ctx, k); err != nil {
			return err
		}
		s, err := b.setUp(ctx, k)
		if err != nil {
			return err
		}
		r.SetUp = append(r.SetUp, s...)
	}
	return nil
}

func (o options) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}

// buildWireGuardGo builds the very wireguard-go that this module uses as a
// library.
func buildWireGuardGo(ctx context.Context, to string) error {
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", to, "golang.zx2c4.com/wireguard")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build wireguard-go: %w: %s", err, out)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/openvwire/nsm/test/bench/probe"
	"github.com/openvwire/nsm/test/report"
)

// side is a mesh of one make with the process that calls it.
type side struct {
	make         string
	server, load *report.Child
}

// sides are those that work in turn: of each make one, and gRPC alone where it is measured.
type sides []*side

// start starts a side for each make. Ours comes before gRPC alone, which answers with a
// connection of ours.
func (o options) start(s setting, makes ...string) (all sides, err error) {
	var answer []byte
	for _, make := range makes {
		x, err := o.startSide(make, s, answer)
		all = append(all, x)
		if err == nil && make == "ours" {
			answer, err = x.example()
		}
		if err != nil {
			return all, errors.Join(fmt.Errorf("%s: %w", make, err), all.stop())
		}
	}
	return all, nil
}

func (o options) startSide(make string, s setting, answer []byte) (x *side, err error) {
	x = &side{make: make}
	role := []string{"server", make}
	if o.profiles != "" {
		role = append(role, filepath.Join(o.profiles, strings.NewReplacer(",", "", " ", "-").Replace(fmt.Sprintf("%s-%s-%d", make, s.mode(), s.Nodes))))
	}
	if x.server, err = child(role...); err != nil {
		return x, err
	}
	at, err := report.Ask[serverAnswer](x.server, serverQuestion{Start: &s, Answer: answer})
	if err != nil {
		return x, err
	}
	if x.load, err = child("load"); err != nil {
		return x, err
	}
	// The reference is spared the client's descriptor: its own tests have none.
	_, err = report.Ask[loadAnswer](x.load, loadQuestion{Call: &at.Place, WithFile: make == "ours"})
	return x, err
}

// example returns a connection as it is answered, encoded.
func (x *side) example() ([]byte, error) {
	made, err := x.run(loadQuestion{Do: "Request", InFlight: 1, Most: 1, Show: true})
	if err != nil {
		return nil, err
	}
	_, err = x.run(loadQuestion{Do: "Close", InFlight: 1})
	return made.Shown, err
}

func child(role ...string) (*report.Child, error) {
	c, err := report.NewChild(nil, role...)
	if err != nil {
		return nil, err
	}
	return c, c.Start()
}

// stop ends the processes that there are.
func (all sides) stop() (err error) {
	for _, x := range all {
		for _, c := range []*report.Child{x.load, x.server} {
			if c != nil {
				err = errors.Join(err, c.Stop())
			}
		}
	}
	return err
}

// Call is one operation of a setting, with so many under way at a time. A of each
// pair is the reference.
type Call struct {
	Mode     string `json:"mode"`
	Nodes    int    `json:"nodes"`
	InFlight int    `json:"in_flight"`
	Do       string `json:"do"`

	Rate   report.Pairs `json:"per_second"`
	P50    report.Pairs `json:"p50_ms"`
	P99    report.Pairs `json:"p99_ms"`
	CPU    report.Pairs `json:"cpu_ms"`                // of all servers, per operation
	Alone  report.Pairs `json:"alone_cpu_ms,omitzero"` // of gRPC alone, and ours
	Failed [2]int       `json:"failed"`                // of all rounds
	Why    [2]string    `json:"why,omitzero"`

	MustCPU  float64 `json:"must_cpu_ms,omitzero"` // at most
	MustRate float64 `json:"must_rate,omitzero"`   // times the reference's
}

// bounds are the budgets of the design, in ms of CPU by nodes. They are for plaintext and
// 8 at a time; that ours makes ten times as many is wanted of every row.
var bounds = map[string]map[int]float64{
	"Request": {1: 0.7, 2: 1.3},
	"refresh": {1: 0.4, 2: 0.8},
}

const mustRate = 10

// bound is what an operation may cost; 0 = nothing is said of it.
func (s setting) bound(do string, inFlight int) float64 {
	if s.Secure || s.Apart || inFlight != 8 {
		return 0
	}
	return bounds[do][s.Nodes]
}

var order = []string{"Request", "refresh", "Close"}

// compare measures the operations of a setting.
func (o options) compare(ctx context.Context, s setting) (calls []Call, err error) {
	who := makes
	if s.hasAlone() {
		who = append(slices.Clone(makes), alone)
	}
	sides, err := o.start(s, who...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sides.stop()) }()
	for _, n := range o.inFlight {
		of := make([]Call, len(order))
		for i, do := range order {
			of[i] = Call{Mode: s.mode(), Nodes: s.Nodes, InFlight: n, Do: do, MustCPU: s.bound(do, n), MustRate: mustRate}
		}
		for round := -1; round < o.rounds; round++ {
			got := make([][]figures, len(sides))
			for which := range turns(round, len(sides)) {
				if got[which], err = o.cycle(sides[which], n); err != nil {
					return calls, err
				}
				if ctx.Err() != nil {
					return calls, ctx.Err()
				}
			}
			if round < 0 {
				continue // connections between the parts are made, and heaps grow
			}
			for i := range of {
				of[i].add(got[0][i], got[1][i])
				if len(got) > 2 {
					if f := got[2][i]; f.Failed > 0 {
						return calls, fmt.Errorf("%s: %d × %s has failed: %s", alone, f.Failed, order[i], f.Why)
					}
					of[i].Alone.Add(got[2][i].cpuEach(), got[1][i].cpuEach())
				}
			}
		}
		calls = append(calls, of...)
	}
	return calls, nil
}

// turns are the sides in the order of a round: A B C, C B A, A B C …
func turns(round, sides int) iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := range sides {
			if round%2 == 0 {
				i = sides - 1 - i
			}
			if !yield(i) {
				return
			}
		}
	}
}

// figures are those of one operation in one round.
type figures struct {
	loadAnswer
	cpu time.Duration
}

// cycle requests, refreshes and closes.
func (o options) cycle(x *side, inFlight int) (out []figures, err error) {
	for _, do := range order {
		q := loadQuestion{Do: do, InFlight: inFlight, For: o.round}
		if do == "Close" {
			q.For = 0
		}
		f, err := x.run(q)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

func (x *side) run(q loadQuestion) (f figures, err error) {
	before, err := probe.CPU([]int{x.server.PID()})
	if err != nil {
		return f, err
	}
	if f.loadAnswer, err = report.Ask[loadAnswer](x.load, q); err != nil {
		return f, err
	}
	after, err := probe.CPU([]int{x.server.PID()})
	f.cpu = after - before
	if f.Done == 0 {
		err = errors.Join(err, fmt.Errorf("%s: no %s has succeeded: %s", x.make, q.Do, f.Why))
	}
	return f, err
}

func (c *Call) add(a, b figures) {
	c.Rate.Add(a.rate(), b.rate())
	c.P50.Add(ms(a.P50), ms(b.P50))
	c.P99.Add(ms(a.P99), ms(b.P99))
	c.CPU.Add(a.cpuEach(), b.cpuEach())
	for i, f := range []figures{a, b} {
		if c.Failed[i] += f.Failed; c.Why[i] == "" {
			c.Why[i] = f.Why
		}
	}
}

// cpuEach is the CPU of all servers for one operation, in ms.
func (f figures) cpuEach() float64 { return ms(f.cpu) / float64(f.Done) }

func (f figures) rate() float64 { return float64(f.Done) / f.Elapsed.Seconds() }

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }

// Held is what connections cost while they are open. The first of each pair is the
// reference.
type Held struct {
	Mode       string     `json:"mode"`
	Nodes      int        `json:"nodes"`
	Open       [2]int     `json:"open"`
	KiB        [2]float64 `json:"kib"`        // resident, per connection
	Goroutines [2]float64 `json:"goroutines"` // per connection
	Must       float64    `json:"must_kib"`   // ours, at most
}

// mustKiB are the budgets of the design, by nodes.
var mustKiB = map[int]float64{1: 40, 2: 80}

// hold measures what open connections cost.
func (o options) hold(ctx context.Context, s setting) (h *Held, err error) {
	o.profiles = "" // they are of the calls that are compared
	sides, err := o.start(s, makes...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sides.stop()) }()
	h = &Held{Mode: s.mode(), Nodes: s.Nodes, Must: mustKiB[s.Nodes]}
	const inFlight = 8
	for i, x := range sides {
		if _, err := o.cycle(x, inFlight); err != nil {
			return nil, err
		}
		before, err := report.Ask[serverAnswer](x.server, serverQuestion{Usage: true})
		if err != nil {
			return nil, err
		}
		got, err := x.run(loadQuestion{Do: "Request", InFlight: inFlight, Most: o.held, For: o.ramp})
		if err != nil {
			return nil, err
		}
		after, err := report.Ask[serverAnswer](x.server, serverQuestion{Usage: true})
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, err
		}
		h.Open[i] = got.Open
		h.KiB[i] = float64(after.Usage.Resident-before.Usage.Resident) / 1024 / float64(got.Open)
		h.Goroutines[i] = float64(after.Usage.Goroutines-before.Usage.Goroutines) / float64(got.Open)
	}
	return h, nil
}

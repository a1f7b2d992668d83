// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/openvwire/nsm/test/bench/probe"
	"github.com/openvwire/nsm/test/report"
)

// Lookup is one operation of the registries. The first of each pair is the
// reference.
type Lookup struct {
	Do        string       `json:"do"`
	Endpoints [2]int       `json:"endpoints"`
	Rate      report.Pairs `json:"per_second"`
	P50       report.Pairs `json:"p50_ms"`
	P99       report.Pairs `json:"p99_ms"`
	CPU       report.Pairs `json:"cpu_ms"` // of the registry, per operation

	Alone    report.Pairs `json:"alone_per_second"` // gRPC alone, and ours
	AloneCPU report.Pairs `json:"alone_cpu_ms"`
}

// Growth is how much longer a Find takes where there are more endpoints; A is the
// smaller registry.
type Growth struct {
	From int          `json:"from"`
	To   int          `json:"to"`
	P50  report.Pairs `json:"p50_ms"`
	Must float64      `json:"must"` // at most
}

const mustGrow = 1.2

// lookups are what registries are asked, once they have their endpoints.
var lookups = []struct {
	what string
	registryQuestion
}{
	{fmt.Sprintf("Find %d of a service", perService), registryQuestion{Find: "service"}},
	{"Find by name", registryQuestion{Find: "name"}},
	{"change, until a watcher has heard", registryQuestion{Watch: 1}},
	{"change, until 100 watchers have", registryQuestion{Watch: 100}},
}

// registries measures registries with more and more endpoints.
func (o options) registries(ctx context.Context) (all []Lookup, growth *Growth, err error) {
	var sides [4]*registrySide // gRPC alone is the third; the last is one of ours that stays small
	defer func() {
		for _, x := range sides {
			err = errors.Join(err, x.stop())
		}
	}()
	for i, make := range []string{makes[0], makes[1], alone, makes[1]} {
		if sides[i], err = startRegistry(make); err != nil {
			return nil, nil, err
		}
	}
	if _, err := sides[3].register(o.endpoints[0], o.ramp); err != nil {
		return nil, nil, err
	}
	for _, n := range o.endpoints {
		register := Lookup{Do: "Register, 8 at a time"}
		got := make([]figures, 3)
		for i, x := range sides[:3] {
			o.progress("registry of %s, %d endpoints", x.make, n)
			if got[i], err = x.register(n, o.ramp); err != nil {
				return all, nil, err
			}
		}
		register.Endpoints = [2]int{sides[0].endpoints, sides[1].endpoints}
		if got[0].Done > 0 { // the reference may have reached its limit before
			register.add(got)
			all = append(all, register)
		}
		for _, l := range lookups {
			at := Lookup{Do: l.what, Endpoints: register.Endpoints}
			err := o.inTurn(ctx, sides[:3], l.registryQuestion, at.add)
			if err != nil {
				return all, nil, fmt.Errorf("%s: %w", l.what, err)
			}
			all = append(all, at)
		}
	}
	small, large := sides[3], sides[1]
	growth = &Growth{From: small.endpoints, To: large.endpoints, Must: mustGrow}
	err = o.inTurn(ctx, []*registrySide{small, large}, lookups[0].registryQuestion, func(got []figures) {
		growth.P50.Add(ms(got[0].P50), ms(got[1].P50))
	})
	return all, growth, err
}

// inTurn asks the sides in rounds of alternating order, the first of which does not
// count.
func (o options) inTurn(ctx context.Context, sides []*registrySide, q registryQuestion, add func([]figures)) (err error) {
	q.For = o.round
	for round := range o.rounds + 1 {
		got := make([]figures, len(sides))
		for which := range turns(round, len(sides)) {
			if got[which], err = sides[which].ask(q); err != nil {
				return err
			}
		}
		if round > 0 {
			add(got)
		}
	}
	return ctx.Err()
}

// add adds what the reference, ours and gRPC alone have done.
func (l *Lookup) add(got []figures) {
	a, b, alone := got[0], got[1], got[2]
	l.Alone.Add(alone.rate(), b.rate())
	l.AloneCPU.Add(alone.cpuEach(), b.cpuEach())
	l.Rate.Add(a.rate(), b.rate())
	l.P50.Add(ms(a.P50), ms(b.P50))
	l.P99.Add(ms(a.P99), ms(b.P99))
	l.CPU.Add(a.cpuEach(), b.cpuEach())
}

// registrySide is a registry of one make with the process that calls it.
type registrySide struct {
	make         string
	server, load *report.Child
	endpoints    int
}

func startRegistry(make string) (x *registrySide, err error) {
	x = &registrySide{make: make}
	if x.server, err = child("server", make); err != nil {
		return x, err
	}
	at, err := report.Ask[serverAnswer](x.server, serverQuestion{Start: &setting{}})
	if err != nil {
		return x, err
	}
	if x.load, err = child("registry-load"); err != nil {
		return x, err
	}
	_, err = report.Ask[registryAnswer](x.load, registryQuestion{Call: &at.Place})
	return x, err
}

func (x *registrySide) stop() (err error) {
	if x == nil {
		return nil
	}
	for _, c := range []*report.Child{x.load, x.server} {
		if c != nil {
			err = errors.Join(err, c.Stop())
		}
	}
	return err
}

func (x *registrySide) register(n int, most time.Duration) (figures, error) {
	return x.ask(registryQuestion{Register: n, For: most})
}

func (x *registrySide) ask(q registryQuestion) (f figures, err error) {
	before, err := probe.CPU([]int{x.server.PID()})
	if err != nil {
		return f, err
	}
	a, err := report.Ask[registryAnswer](x.load, q)
	if err != nil {
		return f, fmt.Errorf("%s: %w", x.make, err)
	}
	after, err := probe.CPU([]int{x.server.PID()})
	x.endpoints = a.Endpoints
	return figures{a.Times, after - before}, err
}

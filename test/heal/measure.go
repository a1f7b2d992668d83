// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/test/report"
)

// aftermath is how long wires are watched when all is well again: what a fault
// leads to may come late.
const aftermath = 1500 * time.Millisecond

// round is one measurement of a cell: one fault, all wires.
type round struct {
	Load  string          // of the machine, 1 min average
	Wires []seen          // in the order of kinds
	New   []time.Duration // with duringRequest: what the new wires took, once let go
	Left  []string        // ends of wires that nobody needs
}

// measurer measures cells in a lab that it keeps for as long as wires stay where
// they were.
type measurer struct {
	options
	mesh   *mesh // nil = there is none
	made   meshOptions
	logged string // by all processes of the lab, up to the last round that missed its bound
}

// measure takes rounds of a cell.
func (x *measurer) measure(ctx context.Context, c cell) (rounds []round, err error) {
	for range x.rounds {
		if err := x.prepare(ctx, c); err != nil {
			return rounds, fmt.Errorf("%s: %w", c, err)
		}
		r, err := x.mesh.round(ctx, c)
		if err != nil || !c.met(r) {
			x.logged = x.mesh.logs()
			if x.logs {
				x.progress("%s", x.logged)
			}
		}
		if err != nil {
			return rounds, fmt.Errorf("%s: %w", c, errors.Join(err, x.close()))
		}
		rounds = append(rounds, r)
		if !x.mesh.pristine(ctx) {
			if err := x.close(); err != nil {
				return rounds, fmt.Errorf("%s: %w", c, err)
			}
		}
	}
	return rounds, nil
}

// prepare makes a mesh for a cell, unless there is one.
func (x *measurer) prepare(ctx context.Context, c cell) (err error) {
	want := meshOptions{
		nsm: x.nsm, newer: x.newer, self: x.self,
		spares: c.component != everything, shortLife: c.fault == rotateCA, stateSize: stateSize(c), own: c.own,
	}
	if x.mesh != nil && x.made == want {
		return nil
	}
	if err := x.close(); err != nil {
		return err
	}
	x.mesh, err = newMesh(ctx, want)
	x.made = want
	return err
}

// close ends the mesh.
func (x *measurer) close() error {
	if x.mesh == nil {
		return nil
	}
	err := x.mesh.close()
	x.mesh = nil
	return err
}

// stateSize is that of state directories in a lab where disks get full.
func stateSize(c cell) int64 {
	if c.fault == diskFull {
		return 1 << 20
	}
	return 0
}

// round measures a cell once.
func (m *mesh) round(ctx context.Context, c cell) (r round, err error) {
	if err := m.probe(ctx); err != nil {
		return r, err
	}
	defer func() {
		m.stop()
	}()
	p, err := m.prepare(ctx, c.phase)
	if err != nil {
		return r, err
	}
	end, err := m.inject(ctx, c.component, c.fault)
	if err != nil {
		return r, err
	}
	p.release(ctx)
	if err := wait(ctx, c.duration()); err != nil {
		return r, err
	}
	if err := end(ctx); err != nil {
		return r, err
	}
	if err := m.flowing(ctx); err != nil && ctx.Err() != nil {
		return r, err
	} // else the probes tell it
	if r.New, err = p.wires(); err != nil {
		return r, err
	}
	if err := wait(ctx, aftermath); err != nil {
		return r, err
	}
	r.Load, r.Wires = report.Load(), m.stop()
	return r, nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// prepared is a phase that the mesh is in.
type prepared struct {
	held []*station     // that hold a Request
	late []*lab.Process // clients that ask for new wires

	waiting sync.WaitGroup  // for them
	took    []time.Duration // of each; guarded by waiting
	errs    []error         // of each; guarded by waiting
}

// prepare brings the mesh into a phase.
func (m *mesh) prepare(ctx context.Context, ph phase) (p *prepared, err error) {
	p = &prepared{}
	switch ph {
	case duringRequest:
		var mu sync.Mutex
		return p, m.each(func(w *wire) error {
			late, err := m.ask(ctx, w)
			mu.Lock()
			defer mu.Unlock()
			p.late, p.held = append(p.late, late), append(p.held, w.first)
			return err
		})
	case duringRefresh:
		for _, w := range m.wires {
			p.held = append(p.held, w.first)
		}
		return p, m.each(func(w *wire) error { return w.first.order(ctx, order{Hold: refresh, Refresh: true, Await: true}) })
	case duringHeal:
		for _, w := range m.wires {
			p.held = append(p.held, w.then)
		}
		return p, m.each(func(w *wire) error {
			if err := w.then.order(ctx, order{Hold: first}); err != nil {
				return err
			}
			w.first.kill()
			return w.then.order(ctx, order{Await: true})
		})
	}
	return p, nil
}

// ask has a client ask for one more wire of a kind, and its first endpoint hold the
// Request. Endpoints take turns: if it is the other one's, that serves it, and
// another Request comes.
func (m *mesh) ask(ctx context.Context, w *wire) (*lab.Process, error) {
	ns, err := m.lateNamespace(w)
	if err != nil {
		return nil, err
	}
	for {
		for _, s := range []*station{w.first, w.then} {
			if err := s.order(ctx, order{Hold: first}); err != nil {
				return nil, err
			}
		}
		late, err := ns.StartNsm(ctx, "", "connect", "--wait", patience.String(), "kernel://"+w.name+"/nsm-"+w.name)
		if err != nil {
			return nil, err
		}
		holds, err := whoHolds(ctx, w.first, w.then)
		if err != nil {
			return nil, err
		}
		if err := w.then.order(ctx, order{Release: true}); err != nil || holds == w.first {
			return late, err
		}
		if _, err := late.WaitLine(ctx, isUp); err != nil {
			return nil, err
		}
		if err := late.Stop(); err != nil {
			return nil, err
		}
	}
}

// whoHolds waits until one of the endpoints holds a Request.
func whoHolds(ctx context.Context, among ...*station) (*station, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		s   *station
		err error
	}
	answers := make(chan answer, len(among))
	for _, s := range among {
		go func() { answers <- answer{s, s.order(ctx, order{Await: true})} }()
	}
	first := <-answers
	return first.s, first.err
}

func isUp(line string) bool { return strings.Contains(line, " is up: ") }

// lateNamespace is the namespace of the client that asks for one more wire of a kind.
func (m *mesh) lateNamespace(w *wire) (_ *lab.NetNS, err error) {
	if w.late == nil {
		w.late, err = m.lab.Node("a").Workload("late-" + w.name)
	}
	return w.late, err
}

// release lets go what is held. An endpoint that the fault has hit is told nothing:
// what it held is lost, or goes on when it does.
func (p *prepared) release(ctx context.Context) {
	for _, s := range p.held {
		if s.process.Running() {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			_ = s.order(ctx, order{Release: true})
			cancel()
		}
	}
	released := time.Now()
	p.took, p.errs = make([]time.Duration, len(p.late)), make([]error, len(p.late))
	for i, late := range p.late {
		p.waiting.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			_, p.errs[i] = late.WaitLine(ctx, isUp)
			p.took[i] = time.Since(released)
		})
	}
}

// wires waits for the new ones, closes them and returns what they took.
func (p *prepared) wires() ([]time.Duration, error) {
	p.waiting.Wait()
	err := errors.Join(p.errs...)
	for _, late := range p.late {
		err = errors.Join(err, late.Stop())
	}
	return p.took, err
}

// order tells the endpoint something.
func (s *station) order(ctx context.Context, o order) error {
	_, err := tell(ctx, s.control, o)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}

// pristine reports whether another round can begin where the last one has ended:
// every wire is where it was made, and nothing else is there.
func (m *mesh) pristine(ctx context.Context) bool {
	for _, w := range m.wires {
		if !w.first.has(ctx, 1) || w.then != nil && !w.then.has(ctx, 0) {
			return false
		}
	}
	links, err := m.lab.WireLinks()
	return err == nil && len(links) == 2*len(m.wires)
}

// has reports whether the endpoint is well and has so many wires.
func (s *station) has(ctx context.Context, wires int) bool {
	if !s.process.Running() || s.server == nil {
		return false
	}
	got, err := tell(ctx, s.control, order{})
	return err == nil && got.Wires == wires
}

// met reports whether a round is as it must be.
func (c cell) met(r round) bool {
	return !slices.ContainsFunc(r.Wires, func(s seen) bool { return !within(s, c.must.of(s.Kind), 1) })
}

// within reports whether what was seen of one wire is within a bound, times a
// factor.
func within(s seen, bound time.Duration, factor float64) bool {
	if bound == none {
		return s.Ping.Lost == 0 && s.Stream.Resets == 0
	}
	limit := time.Duration(float64(bound) * factor)
	return s.Ping.Gap <= limit && !s.Ping.Open && !s.Stream.Open
}

// summary is what the rounds of a cell have seen of one kind of wire.
type summary struct {
	Lost   []int
	Gaps   []time.Duration // of packets
	Stalls []time.Duration // of the stream
	Resets int
	Open   bool // an interruption did not end
	Met    bool
}

func summarize(c cell, rounds []round, kind string) summary {
	s := summary{Met: len(rounds) > 0}
	for _, r := range rounds {
		for _, w := range r.Wires {
			if w.Kind != kind {
				continue
			}
			s.Lost = append(s.Lost, w.Ping.Lost)
			s.Gaps = append(s.Gaps, w.Ping.Gap)
			s.Stalls = append(s.Stalls, w.Stream.Gap)
			s.Resets += w.Stream.Resets
			s.Open = s.Open || w.Ping.Open || w.Stream.Open
			s.Met = s.Met && within(w, c.must.of(kind), 1)
		}
	}
	return s
}

// String is an entry of the table: median and maximum, and what became of TCP.
func (s summary) String() string {
	if len(s.Gaps) == 0 {
		return "–"
	}
	gaps := slices.Sorted(slices.Values(s.Gaps))
	text := "0"
	if lost := slices.Max(s.Lost); lost > 0 {
		text = fmt.Sprintf("%d / %d ms (%d lost)", gaps[(len(gaps)-1)/2].Milliseconds(), gaps[len(gaps)-1].Milliseconds(), lost)
	}
	switch {
	case s.Open:
		text += ", does not end"
	case s.Resets > 0:
		text += ", TCP reset"
	default:
		text += fmt.Sprintf(", TCP %d ms", slices.Max(s.Stalls).Milliseconds())
	}
	if !s.Met {
		text = "**" + text + "**"
	}
	return text
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/openvwire/nsm/sdk/token"
	"github.com/openvwire/nsm/test/heal/outage"
	"github.com/openvwire/nsm/test/report"
)

// A hold is a soak in which nothing fails: very many wires, which are only kept. It
// measures what that costs, and fails as a soak does when wires carry no packets, or
// when anything is left.

// holdMix is half of the wires on one node, and half across nodes.
var holdMix = []kind{kinds[0], kinds[1], kinds[0], kinds[2]}

// holdOptions say how much of it.
type holdOptions struct {
	soakOptions
	hold  time.Duration // from when all wires are up
	every time.Duration // between samples
	pings int           // wires that are pinged all the time
}

func (o options) holdOptions() holdOptions {
	return holdOptions{
		soakOptions: soakOptions{wires: o.wires, lifetime: token.DefaultLifetime, mix: holdMix, perClient: max(1, o.wires/10), up: !o.apart},
		hold:        o.hold, every: min(time.Minute, o.hold/2), pings: 12,
	}
}

// holdAndReport writes the table as well.
func (o options) holdAndReport(ctx context.Context) error {
	o.wires = cmp.Or(o.wires, 1000)
	r, err := o.holdRun(ctx, o.holdOptions())
	if err != nil {
		return err
	}
	fmt.Print(r.table())
	if o.apart { // the page has the table of 'nsm up'
		return o.to.Write(r, nil)
	}
	return o.to.Write(r, map[string]string{"scale:wires": r.table()})
}

// Held is what a hold has found.
type Held struct {
	report.Machine
	Wires   int // all of them carry packets in the beginning and in the end
	Kinds   map[string]int
	Clients int
	Apart   bool // every daemon is a process of its own
	Hold    time.Duration
	Made    time.Duration // all wires, one after the other at each client
	Closed  time.Duration

	Parts     []string // who is measured
	Before    map[string]usage
	Samples   []sample
	Get       []time.Duration // how long 'nsm get wires' takes on the node that all wires begin on
	Refreshed int             // refreshes that endpoints got in the hold
	Busiest   int             // of them in the busiest second
	First     time.Duration   // when the first of them came, since the first sample
	Moved     int             // how often a wire went to another endpoint, as it does when packets cease to come back
	Pings     outage.Result   // all together
	Pinged    int             // wires
}

// sample is what everybody uses at some time of the hold.
type sample struct {
	At    time.Duration
	Usage map[string]usage // by part
}

// The bounds of a hold.
const (
	holdCPU = 0.03 // of one core, for refreshes in all daemons together, as 'nsm up' has them
	holdGet = 200 * time.Millisecond
)

// holdRun does all of it.
func (o options) holdRun(ctx context.Context, ho holdOptions) (r *Held, err error) {
	s, err := newSoak(ctx, o, ho.soakOptions)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.lab.Close()) }()
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w%s", err, s.keepLogs(ctx, 0))
		}
	}()
	r = &Held{Machine: report.Describe(ctx, o.nsm), Wires: ho.wires, Clients: len(s.clients), Apart: !ho.up, Hold: ho.hold, Kinds: make(map[string]int)}
	for i := range ho.wires {
		r.Kinds[ho.mix[i%len(ho.mix)].name]++
	}
	before, err := s.census(ctx)
	if err != nil {
		return nil, err
	}
	if r.Before, err = s.usage(ctx); err != nil {
		return nil, err
	}
	begun := time.Now()
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	r.Made = time.Since(begun)
	s.say("%d wires are up, after %v", ho.wires, r.Made.Round(time.Millisecond))
	if err := s.keepWires(ctx, ho, r); err != nil {
		return nil, err
	}
	begun = time.Now()
	if err := s.each(func(c *customer) error { return c.current().Stop() }); err != nil {
		return nil, err
	}
	r.Closed = time.Since(begun)
	s.say("all wires are closed, after %v", r.Closed.Round(time.Millisecond))
	if err := s.settle(ctx, patience, func(c *census) []string { return c.unlike(before, true) }); err != nil {
		return nil, fmt.Errorf("when all wires are closed: %w", err)
	}
	return r, nil
}

// keepWires is the hold itself.
func (s *soak) keepWires(ctx context.Context, ho holdOptions, r *Held) error {
	all := func(c *census) []string { return s.wrongWires(ctx, c) }
	if err := s.settle(ctx, patience, all); err != nil {
		return fmt.Errorf("in the beginning: %w", err)
	}
	with, err := s.census(ctx)
	if err != nil {
		return err
	}
	stop, err := s.pingSome(with, ho.pings)
	if err != nil {
		return err
	}
	defer stop()
	if err := s.samples(ctx, ho, r); err != nil {
		return err
	}
	seen := stop()
	r.Pinged = len(seen)
	for _, one := range seen {
		r.Pings.Sent += one.Sent
		r.Pings.Lost += one.Lost
	}
	if r.Pings.Lost > 0 {
		return fmt.Errorf("%d of %d pings were lost while nothing failed", r.Pings.Lost, r.Pings.Sent)
	}
	if err := s.settle(ctx, patience, func(c *census) []string { return append(all(c), c.unlike(with, false)...) }); err != nil {
		return fmt.Errorf("in the end: %w", err)
	}
	for _, c := range s.clients {
		r.Moved += strings.Count(c.current().Output(), " has moved: ")
	}
	return nil
}

// samples looks at everybody until the time is over.
func (s *soak) samples(ctx context.Context, ho holdOptions, r *Held) error {
	begun := time.Now()
	for at := time.Duration(0); at <= ho.hold; at += ho.every {
		if err := wait(ctx, time.Until(begun.Add(at))); err != nil {
			return err
		}
		use, err := s.usage(ctx)
		if err != nil {
			return err
		}
		r.Samples = append(r.Samples, sample{time.Since(begun), use})
		s.say("%v", time.Since(begun).Round(time.Second))
	}
	r.Parts = s.parts()
	for range 11 {
		asked := time.Now()
		if _, err := s.lab.Node("a").Nsm(ctx, "get", "wires"); err != nil {
			return err
		}
		r.Get = append(r.Get, time.Since(asked))
	}
	return s.refreshes(ctx, begun, r)
}

// refreshes asks endpoints when they were asked to refresh wires.
func (s *soak) refreshes(ctx context.Context, since time.Time, r *Held) error {
	seconds := make(map[int64]int)
	for _, e := range s.servers {
		st, err := tell(ctx, e.control, order{})
		if err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		for at, n := range st.Refreshes {
			if at > since.Unix() {
				seconds[at] += n
			}
		}
	}
	for at, n := range seconds {
		if came := time.Unix(at, 0).Sub(since); r.Refreshed == 0 || came < r.First {
			r.First = came
		}
		r.Refreshed += n
		r.Busiest = max(r.Busiest, n)
	}
	return nil
}

// pingSome pings n wires, those of clients in turn, until stop is called, which it may be
// again.
func (s *soak) pingSome(c *census, n int) (stop func() []outage.Result, err error) {
	var servers []*outage.Server
	var pingers []*outage.Pinger
	stop = sync.OnceValue(func() (seen []outage.Result) {
		for _, p := range pingers {
			seen = append(seen, p.Stop())
		}
		for _, s := range servers {
			s.Close()
		}
		return seen
	})
	defer func() {
		if err != nil {
			stop()
		}
	}()
	for _, e := range s.servers {
		server, err := outage.Serve(e.ns, echoPort)
		if err != nil {
			return stop, err
		}
		servers = append(servers, server)
	}
	for i := range min(n, s.wires) {
		customer := s.clients[i%len(s.clients)]
		_, to := c.ends("a-"+customer.name, customer.ifaces[i%len(customer.ifaces)])
		p, err := outage.Ping(customer.ns, netip.AddrPortFrom(to, echoPort))
		if err != nil {
			return stop, err
		}
		pingers = append(pingers, p)
		p.Begin()
	}
	return stop, nil
}

// table is the result as Markdown.
func (r *Held) table() string {
	var b strings.Builder
	b.WriteString(r.Heading())
	var kinds []string
	for name, n := range r.Kinds {
		kinds = append(kinds, fmt.Sprintf("%d %s", n, name))
	}
	slices.Sort(kinds)
	daemons := "`nsm up` on each node"
	if r.Apart {
		daemons = "every daemon a process of its own"
	}
	fmt.Fprintf(&b, "%d wires (%s) of %d clients, held for %v, %s.\n\n", r.Wires, strings.Join(kinds, ", "), r.Clients, r.Hold, daemons)
	get := slices.Sorted(slices.Values(r.Get))
	b.WriteString("| | | must | |\n|---|---|---|---|\n")
	fmt.Fprintf(&b, "| CPU of all daemons, of one core | %.2f %% | | |\n", 100*r.daemonCPU(0, len(r.Samples)-1))
	if cpu, ok := r.refreshCPU(); ok {
		must := fmt.Sprintf("< %.0f %% | %s", 100*holdCPU, report.Verdict(cpu < holdCPU))
		if r.Apart {
			must = "| "
		}
		fmt.Fprintf(&b, "| of it for refreshes, as long as there are any | %.2f %% | %s |\n", 100*cpu, must)
	}
	fmt.Fprintf(&b, "| `nsm get wires`, median of %d (slowest) | %s ms (%s) | < %d ms | %s |\n", len(get), milliseconds(get[len(get)/2]), milliseconds(get[len(get)-1]),
		holdGet.Milliseconds(), report.Verdict(get[len(get)/2] < holdGet))
	fmt.Fprintf(&b, "| wires that carry packets, in the beginning and in the end | %d, %d | all | met |\n", r.Wires, r.Wires)
	fmt.Fprintf(&b, "| pings lost in between, %d wires every %v | %d of %d | 0 | met |\n", r.Pinged, outage.Interval, r.Pings.Lost, r.Pings.Sent)
	fmt.Fprintf(&b, "| wires that moved to another endpoint | %d | 0 | %s |\n", r.Moved, report.Verdict(r.Moved == 0))
	fmt.Fprintf(&b, "| refreshes in the busiest second, of %d | %d | ≤ %d | %s |\n", r.Refreshed, r.Busiest, r.Wires/10, report.Verdict(r.Busiest <= r.Wires/10))
	fmt.Fprintf(&b, "| making, closing all, wires/s | %.0f, %.0f | | |\n", float64(r.Wires)/r.Made.Seconds(), float64(r.Wires)/r.Closed.Seconds())
	b.WriteString("| left when all are closed | nothing | nothing | met |\n\n")
	b.WriteString(r.usageTable())
	return b.String()
}

func milliseconds(d time.Duration) string { return report.Figure(d.Seconds() * 1e3) }

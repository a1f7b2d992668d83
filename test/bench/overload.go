// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/test/report"
)

// Overload is what becomes of the rate at which local wires are made and closed when
// more and more are asked for at once.
type Overload struct {
	Loads  []Load    `json:"loads"`
	Ratio  float64   `json:"ratio"` // rate under the largest load to the best one
	Met    bool      `json:"met"`   // Ratio is as it must be
	Before Durations `json:"before"`
	After  Durations `json:"after"` // Requests one after the other, from a second after the largest load on
	Held   int       `json:"held"`
	Failed int       `json:"failed"` // how often a client has said of those that they were not refreshed
}

// Load is a number of workloads that each make and close a wire again and again.
type Load struct {
	AtOnce  int       `json:"at_once"`
	Made    []float64 `json:"made"`    // per second, by round
	Refused []float64 `json:"refused"` // likewise
	Request Durations `json:"request"` // of those that were made, from the Request that was not refused on

	took []time.Duration
}

const (
	overloadMust = 0.8
	// heldUnderLoad is how many wires must be refreshed all the time.
	heldUnderLoad = 20
	// recovery is how long after a burst latencies may differ.
	recovery = time.Second
)

// overload measures under a light load, with as many at once as a manager works on, and
// with four times as many.
func (b *bench) overload(ctx context.Context) (o *Overload, err error) {
	k := kinds[0]
	if err := b.endpoint(ctx, k, true); err != nil {
		return nil, err
	}
	node := b.lab.Node("a")
	// Its wires are refreshed every two seconds.
	c, err := startChild(b.lab, node.NetNS, "connect", append(node.Env(), "NSM_MAX_TOKEN_LIFETIME="+shortLife.String())...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	o = &Overload{Held: heldUnderLoad}
	for _, n := range []int{8, 32, 128} { // a gate has 32 places for each
		o.Loads = append(o.Loads, Load{AtOnce: n * runtime.GOMAXPROCS(0)})
	}
	churn := func(atOnce int, during time.Duration) (connected, error) {
		return report.Ask[connected](c, connectTask{Service: k.name, Churn: during, AtOnce: atOnce})
	}
	if _, err := report.Ask[connected](c, connectTask{Service: k.name, Hold: heldUnderLoad}); err != nil {
		return nil, err
	}
	before, err := churn(1, b.burst)
	if err != nil {
		return nil, err
	}
	o.Before = durationsOf(before.Request)
	for range b.bursts {
		for i := range o.Loads {
			l := &o.Loads[i]
			got, err := churn(l.AtOnce, b.burst)
			if err != nil {
				return nil, fmt.Errorf("%d at once: %w", l.AtOnce, err)
			}
			l.Made = append(l.Made, float64(len(got.Request))/got.Elapsed.Seconds())
			l.Refused = append(l.Refused, float64(got.Refused)/got.Elapsed.Seconds())
			l.took = append(l.took, got.Request...)
		}
	}
	after, err := churn(1, b.burst+recovery)
	if err != nil {
		return nil, err
	}
	for spent := time.Duration(0); len(after.Request) > 1 && spent < recovery; {
		spent += after.Request[0] + after.Close[0]
		after.Request, after.Close = after.Request[1:], after.Close[1:]
	}
	o.After = durationsOf(after.Request)
	best := 0.0
	for i := range o.Loads {
		o.Loads[i].Request = durationsOf(o.Loads[i].took)
		best = max(best, report.SpreadOf(o.Loads[i].Made).Median)
	}
	o.Ratio = report.SpreadOf(o.Loads[len(o.Loads)-1].Made).Median / best
	o.Met = o.Ratio >= overloadMust
	got, err := report.Ask[connected](c, connectTask{Release: true})
	o.Failed = got.Failed
	return o, err
}

// churn has so many workloads make and close a wire each, again and again, and counts.
// Whoever is refused tries again when he is told to; that he is told is what is checked.
func (d *connector) churn(ctx context.Context, service string, atOnce int, during time.Duration) (c connected, err error) {
	wires := make([]*wire, atOnce)
	for i := range wires {
		if wires[i], err = newWire(); err != nil {
			return c, err
		}
	}
	start := time.Now()
	end := start.Add(during)
	var mu sync.Mutex
	var errs []error
	var working sync.WaitGroup
	for _, w := range wires {
		working.Go(func() {
			for time.Now().Before(end) {
				begun := time.Now()
				err := w.request(ctx, d.client, service)
				took := time.Since(begun)
				retry := nserr.From(err)
				if refused := errors.Is(err, nserr.Busy) && retry.Retry > 0; refused {
					mu.Lock()
					c.Refused++
					mu.Unlock()
					pause := retry.Retry + rand.N(retry.Retry/2)
					select {
					case <-time.After(min(pause, time.Until(end))):
					case <-ctx.Done():
					}
					continue
				}
				if err == nil {
					begun = time.Now()
					err = w.wire.Close(ctx)
				}
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				} else {
					c.Request, c.Close = append(c.Request, took), append(c.Close, time.Since(begun))
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	working.Wait()
	c.Elapsed = time.Since(start)
	for _, w := range wires {
		errs = append(errs, w.free())
	}
	return c, errors.Join(errs...)
}

func (r *Report) overloadTable() string {
	o := r.Overload
	if o == nil {
		return ""
	}
	var s strings.Builder
	s.WriteString(r.heading())
	s.WriteString("| workloads at once | made/s | refused/s | Request p50, ms | p99 |\n|---|---|---|---|---|\n")
	for _, l := range o.Loads {
		fmt.Fprintf(&s, "| %d | %s | %s | %s | %s |\n", l.AtOnce, report.Figure(report.SpreadOf(l.Made).Median), report.Figure(report.SpreadOf(l.Refused).Median),
			report.Figure(l.Request.P50), report.Figure(l.Request.P99))
	}
	fmt.Fprintf(&s, "\nRate under the largest load to the best one: %.2f, must be ≥ %.2f: %s. Request one after the other: p50 %s ms before, %s ms from a second after the load on. "+
		"%d wires were held and refreshed every %v meanwhile, of which %d times something was wrong.\n",
		o.Ratio, overloadMust, report.Verdict(o.Met), report.Figure(o.Before.P50), report.Figure(o.After.P50), o.Held, shortLife/5, o.Failed)
	return s.String()
}

// complaints counts the lines in which a client says that a wire was not refreshed.
type complaints struct{ atomic.Int64 }

// Enabled implements slog.Handler.
func (*complaints) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

// Handle implements slog.Handler.
func (c *complaints) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "wire not refreshed, trying on" {
		c.Add(1)
	}
	return nil
}

// WithAttrs implements slog.Handler.
func (c *complaints) WithAttrs([]slog.Attr) slog.Handler { return c }

// WithGroup implements slog.Handler.
func (c *complaints) WithGroup(string) slog.Handler { return c }

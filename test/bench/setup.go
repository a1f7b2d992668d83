// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/internal/backoff"
	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/test/bench/probe"
	"github.com/openvwire/nsm/test/report"
)

// setupBounds are the most that the median of "Request to first packet" may be.
var setupBounds = map[string]time.Duration{"local": 6 * time.Millisecond, "vxlan": 15 * time.Millisecond, "wireguard": 15 * time.Millisecond,
	"tunnel": 15 * time.Millisecond, "tunnel-eth": 15 * time.Millisecond}

// parallel is how many wires are made or closed at a time where the rate is
// measured.
const parallel = 8

// SetUp is how long wires take to be made and closed.
type SetUp struct {
	Kind    string    `json:"kind"`
	Title   string    `json:"title"`
	Held    int       `json:"held"`           // wires that are up already
	Request Durations `json:"request"`        // Request to answer
	First   Durations `json:"first_packet"`   // Request to the first packet that has come back
	Close   Durations `json:"close"`          // Close to answer
	Extra   int       `json:"unanswered"`     // packets sent before the first that was answered, all wires together
	Rate    Rate      `json:"rate,omitzero"`  // making and closing the wires that are held
	Bound   float64   `json:"bound,omitzero"` // of the median of First, in ms
	Met     bool      `json:"met"`
	LeftOut string    `json:"left_out,omitempty"` // why nothing was measured
}

// Durations are quantiles in milliseconds.
type Durations struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Rate is in wires per second, [parallel] at a time.
type Rate struct {
	Made   float64 `json:"made"`
	Closed float64 `json:"closed"`
}

func durationsOf(ds []time.Duration) Durations {
	ms := func(q float64) float64 { return report.Quantile(ds, q).Seconds() * 1e3 }
	return Durations{N: len(ds), P50: ms(0.5), P99: ms(0.99), Max: ms(1)}
}

// setUp measures one kind, with as many wires up as b.held says, in turn.
func (b *bench) setUp(ctx context.Context, k kind) (out []SetUp, err error) {
	if err := b.endpoint(ctx, k, true); err != nil {
		return nil, err
	}
	node := b.lab.Node("a")
	c, err := startChild(b.lab, node.NetNS, "connect", node.Env()...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	// The first wires find no connections between the parts of the mesh.
	if _, err := report.Ask[connected](c, connectTask{Service: k.name, Measure: 3}); err != nil {
		return nil, fmt.Errorf("set-up, %s: %w", k.name, err)
	}
	for _, held := range b.held {
		s, err := b.setUpBeside(ctx, c, k, held)
		if err != nil {
			return nil, fmt.Errorf("set-up, %d wires of %s: %w", held, k.name, err)
		}
		out = append(out, s)
	}
	return out, nil
}

// setUpBeside makes held wires, measures others, and closes those that are held.
func (b *bench) setUpBeside(ctx context.Context, c *report.Child, k kind, held int) (s SetUp, err error) {
	s = SetUp{Kind: k.name, Title: k.title, Held: held, Bound: setupBounds[k.name].Seconds() * 1e3}
	if k.payload == "ETHERNET" {
		if s.LeftOut, err = tooFewNeighbours(held + b.samples); s.LeftOut != "" || err != nil {
			b.progress("%s beside %d wires is left out: %s", k.title, held, s.LeftOut)
			return s, err
		}
	}
	if held > 0 {
		got, err := report.Ask[connected](c, connectTask{Service: k.name, Hold: held})
		if err != nil { // a machine that cannot have so many wires still shows the other rows
			s.LeftOut, _, _ = strings.Cut(err.Error(), "\n")
			b.progress("%s beside %d wires is left out: %s", k.title, held, s.LeftOut)
			_, err = report.Ask[connected](c, connectTask{Release: true})
			return s, err
		}
		s.Rate.Made = float64(held) / got.Elapsed.Seconds()
	}
	got, err := report.Ask[connected](c, connectTask{Service: k.name, Measure: b.samples})
	if err = errors.Join(err, ctx.Err()); err != nil {
		return s, err
	}
	s.Extra = got.Unanswered
	s.Request, s.First, s.Close = durationsOf(got.Request), durationsOf(got.First), durationsOf(got.Close)
	s.Met = s.First.P50 <= s.Bound
	if held > 0 {
		got, err := report.Ask[connected](c, connectTask{Release: true})
		if err != nil {
			return s, err
		}
		s.Rate.Closed = float64(held) / got.Elapsed.Seconds()
	}
	return s, nil
}

// tooFewNeighbours says whether the kernel cannot learn the two ends of so many
// wires as neighbours; empty = it can. The limit is of all namespaces together,
// and packets to more neighbours are dropped. Wires of IP do not count: their
// neighbours are permanent.
func tooFewNeighbours(wires int) (reason string, err error) {
	n := 1024 // the default: only the first network namespace shows another one
	value, err := os.ReadFile("/proc/sys/net/ipv4/neigh/default/gc_thresh3")
	switch {
	case err == nil:
		n, err = strconv.Atoi(strings.TrimSpace(string(value)))
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err == nil && n < 2*wires {
		reason = fmt.Sprintf("the kernel learns at most %d neighbours, and net.ipv4.neigh.default.gc_thresh3 would have to be %d", n, 2*wires)
	}
	return reason, err
}

// connectTask is a question to a "connect" child. One of the four is set.
type connectTask struct {
	Service string
	Measure int           // make and close so many wires, one after the other
	Hold    int           // make so many and hold them
	Release bool          // close those that are held
	Churn   time.Duration // make and close wires for so long
	AtOnce  int           // as many at a time
}

type connected struct {
	Request, First, Close []time.Duration
	Unanswered            int
	Refused               int           // of Churn
	Failed                int           // how often wires were not refreshed, told by Release
	Elapsed               time.Duration // of Hold, Release or Churn
}

// connector is a program that asks for wires with sdk/client, one client for
// all, each wire for a namespace of its own.
type connector struct {
	client     *client.Client
	complaints *complaints
	held       []*wire
}

// connectRole is the "connect" child. The environment says where the manager
// and the identity are.
func connectRole() error {
	ctx := context.Background()
	said := &complaints{}
	config := client.Config{Manager: os.Getenv("NSM_CONNECT_TO"), Logger: slog.New(said)}
	if life := os.Getenv("NSM_MAX_TOKEN_LIFETIME"); life != "" {
		var err error
		if config.TokenLifetime, err = time.ParseDuration(life); err != nil {
			return err
		}
	}
	c, err := client.Open(ctx, config)
	if err != nil {
		return err
	}
	d := &connector{client: c, complaints: said}
	err = report.Answer(func(t connectTask) (connected, error) { return d.do(ctx, t) })
	return errors.Join(err, c.Close())
}

func (d *connector) do(ctx context.Context, t connectTask) (c connected, err error) {
	start := time.Now()
	switch {
	case t.Release:
		c.Failed = int(d.complaints.Load())
		err = d.release(ctx)
	case t.Churn > 0:
		return d.churn(ctx, t.Service, t.AtOnce, t.Churn)
	case t.Hold > 0:
		err = d.hold(ctx, t.Service, t.Hold)
	default:
		return d.measure(ctx, t.Service, t.Measure)
	}
	c.Elapsed = time.Since(start)
	return c, err
}

func (d *connector) measure(ctx context.Context, service string, n int) (c connected, err error) {
	for range n {
		w, err := newWire()
		if err != nil {
			return c, err
		}
		start := time.Now()
		if err := w.request(ctx, d.client, service); err != nil {
			return c, err
		}
		c.Request = append(c.Request, time.Since(start))
		sent, err := w.firstPacket()
		if err != nil {
			return c, err
		}
		c.First = append(c.First, time.Since(start))
		c.Unanswered += sent - 1
		start = time.Now()
		if err := w.close(ctx); err != nil {
			return c, err
		}
		c.Close = append(c.Close, time.Since(start))
	}
	return c, nil
}

func (d *connector) hold(ctx context.Context, service string, n int) error {
	for range n {
		w, err := newWire()
		if err != nil {
			return err
		}
		d.held = append(d.held, w)
	}
	// A node that has no time is asked again, as nsm connect --wait does.
	busy := backoff.Policy{Min: 200 * time.Millisecond, Max: 2 * time.Second}
	return inParallel(d.held, func(w *wire) error {
		err := w.request(ctx, d.client, service)
		for attempt := 0; attempt < maxBusy && errors.Is(err, nserr.Busy); attempt++ {
			if err := busy.Wait(ctx, attempt); err != nil {
				return err
			}
			err = w.request(ctx, d.client, service)
		}
		if err != nil {
			return err
		}
		_, err = w.firstPacket()
		return err
	})
}

// maxBusy is how often a node that has no time is asked again for a wire.
const maxBusy = 10

func (d *connector) release(ctx context.Context) error {
	held := d.held
	d.held = nil
	return inParallel(held, func(w *wire) error { return w.close(ctx) })
}

// inParallel calls f for every wire, [parallel] at a time.
func inParallel(wires []*wire, f func(*wire) error) error {
	var (
		todo    = make(chan *wire)
		mu      sync.Mutex
		errs    []error
		workers sync.WaitGroup
	)
	for range parallel {
		workers.Go(func() {
			for w := range todo {
				if err := f(w); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, w := range wires {
		todo <- w
	}
	close(todo)
	workers.Wait()
	return errors.Join(errs...)
}

// wire is a wire in a namespace of its own, with a socket that has been waiting
// for it: what is measured is the mesh, not the making of namespaces.
type wire struct {
	netns *os.File
	sock  int
	wire  *client.Wire
}

func newWire() (*wire, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	w := &wire{netns: ns}
	if err := do(ns, func() (err error) { w.sock, err = probe.Datagram(unix.AF_INET); return err }); err != nil {
		_ = ns.Close()
		return nil, err
	}
	return w, nil
}

func (w *wire) request(ctx context.Context, c *client.Client, service string) (err error) {
	w.wire, err = c.Request(ctx, client.Request{Service: service, Interface: "nsm-1", NetNS: w.netns})
	return err
}

// firstPacket sends packets to the endpoint until one is answered and returns
// how many.
func (w *wire) firstPacket() (sent int, err error) {
	peers := w.wire.PeerAddrs()
	if len(peers) == 0 {
		return 0, errors.New("the endpoint has no address")
	}
	return probe.Reply(w.sock, netip.AddrPortFrom(peers[0], probePort), time.Millisecond, 5*time.Second)
}

func (w *wire) close(ctx context.Context) error {
	if w.wire == nil { // the Request has failed
		return w.free()
	}
	return errors.Join(w.wire.Close(ctx), w.free())
}

func (w *wire) free() error { return errors.Join(unix.Close(w.sock), w.netns.Close()) }

// do runs f on a thread in ns.
func do(ns *os.File, f func() error) error {
	table, err := netns.NewTable()
	if err != nil {
		return err
	}
	defer table.Close()
	own, err := netns.Open(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()))
	if err != nil {
		return err
	}
	key, err := table.Add(own)
	if err != nil {
		return err
	}
	return table.Do(key, f)
}

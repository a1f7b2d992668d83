// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/test/report"
)

const probePort = 7411 // TCP and UDP, of the probes' server in every endpoint's namespace

// kind is one kind of wire.
type kind struct {
	name    string // also of the service
	title   string
	against string
	node    string // of the endpoint; the client is on node a
	payload string
	make    func(context.Context, *bench, byHand) (pids []int, err error)
	holders bool       // the wire's packets pass through processes
	network netip.Addr // of the addresses of the link made by hand; none = one of its own
	shared  bool       // the wire is in the tunnel of the two nodes
}

// kinds are in the order in which they are measured. Devices of their own come last, and their
// set-up last of all: 1,000 of them are more than two processors can serve, and what comes
// after would be measured on nodes that are still busy with their removal.
var kinds = []kind{
	{name: "local", title: "local", against: "a veth pair", node: "a", payload: "IP", make: vethByHand},
	{name: "vxlan", title: "VXLAN", against: "a VXLAN device at each node", node: "b", payload: "ETHERNET",
		make: func(ctx context.Context, _ *bench, h byHand) ([]int, error) { return h.vxlan(ctx) }},
	{name: "tunnel", title: "Tunnel of two nodes", against: "wireguard-go at each node", node: "b", payload: "IP", holders: true, shared: true, make: wireGuardByHand},
	{name: "tunnel-eth", title: "Tunnel of two nodes, payload ETHERNET", against: "wireguard-go at each node, for IP", node: "b", payload: "ETHERNET",
		holders: true, shared: true, make: wireGuardByHand},
	{name: "wireguard", title: "WireGuard, userspace", against: "wireguard-go at each node", node: "b", payload: "IP", holders: true, make: wireGuardByHand},
}

// needsWireGuardGo reports whether a row compares with it.
func needsWireGuardGo(rows []string) bool {
	return slices.Contains(rows, "peers") || slices.ContainsFunc(kinds, func(k kind) bool { return k.holders && slices.Contains(rows, k.name) })
}

// use has the forwarders make wires to other nodes as the kind is: in the nodes' tunnel, or
// with devices of their own. Wires that stand stay as they are.
func (b *bench) use(ctx context.Context, k kind) error {
	if k.node == "a" || b.shared == k.shared {
		return nil
	}
	b.shared = k.shared
	tunnel := map[bool]string{true: "auto", false: "off"}[k.shared]
	for _, n := range b.lab.Nodes() {
		if err := b.lab.Daemon(n.Name, "forwarder").Stop(); err != nil {
			return err
		}
		if _, err := n.Start(ctx, "forwarder", "--wireguard", "userspace", "--wireguard-tunnel", tunnel); err != nil {
			return err
		}
	}
	return nil
}

// control compares two links of the same kind made by the same hand: what its
// ratios are away from 1 is the noise of the machine.
var control = kind{name: "control", title: "none: a second veth pair", against: "a veth pair", node: "a", make: vethByHand}

func vethByHand(ctx context.Context, _ *bench, h byHand) ([]int, error) { return h.veth(ctx) }

func wireGuardByHand(ctx context.Context, b *bench, h byHand) ([]int, error) {
	return h.wireguard(ctx, b.tool("wireguard-go"))
}

// metric is one figure of a comparison.
type metric struct {
	name   string
	unit   string
	scale  float64 // from the SI unit to unit
	lower  bool    // is better
	bounds map[string]float64
}

func (m metric) met(kind string, ratio float64) bool {
	bound, ok := m.bounds[kind]
	return !ok || (m.lower && ratio <= bound) || (!m.lower && ratio >= bound)
}

// measurement is a task and the metrics that come from it.
type measurement struct {
	task    task // without To, Duration, PIDs
	metrics []metric
	values  func(measured) []float64 // in SI units, as many as metrics
}

var (
	tcpBounds = map[string]float64{"local": 0.97, "vxlan": 0.97, "wireguard": 0.97, "tunnel": 0.97}
	rttBounds = map[string]float64{"local": 1.03}
)

var measurements = []measurement{
	streams(1), streams(8),
	{
		task: task{Probe: "ping"},
		metrics: []metric{
			{name: "TCP round trip, p50", unit: "µs", scale: 1e6, lower: true, bounds: rttBounds},
			{name: "TCP round trip, p99", unit: "µs", scale: 1e6, lower: true},
		},
		values: func(m measured) []float64 {
			return []float64{m.RoundTrips.P50.Seconds(), m.RoundTrips.P99.Seconds()}
		},
	},
	datagrams(64), datagrams(1400),
}

func streams(n int) measurement {
	what := fmt.Sprintf("TCP, %d streams", n)
	if n == 1 {
		what = "TCP, 1 stream"
	}
	return measurement{
		task: task{Probe: "stream", N: n},
		metrics: []metric{
			{name: what, unit: "Gbit/s", scale: 8e-9, bounds: tcpBounds},
			{name: what + ", CPU", unit: "s/GiB", scale: 1 << 30, lower: true},
		},
		values: func(m measured) []float64 {
			return []float64{m.Throughput.PerSecond(), m.Throughput.CPU.Seconds() / float64(m.Throughput.Units)}
		},
	}
}

func datagrams(size int) measurement {
	return measurement{
		task:    task{Probe: "datagrams", N: size},
		metrics: []metric{{name: fmt.Sprintf("UDP, %d B", size), unit: "1000 packets/s", scale: 1e-3}},
		values:  func(m measured) []float64 { return []float64{m.Throughput.PerSecond()} },
	}
}

// Comparison is a kind of wire against the same made by hand.
type Comparison struct {
	Kind    string             `json:"kind"`
	Title   string             `json:"title"`
	Against string             `json:"against"`
	MTU     int                `json:"mtu"`
	Metrics []ComparisonMetric `json:"metrics"`
}

// ComparisonMetric is one row of the table.
type ComparisonMetric struct {
	Name         string        `json:"name"`
	Unit         string        `json:"unit"`
	report.Pairs               // every round: by hand, wire
	Ratio        report.Spread `json:"ratio"`
	Bound        *float64      `json:"bound,omitempty"`
	Met          bool          `json:"met"` // true where there is no bound
}

// side is one of the two links that are compared.
type side struct {
	to   netip.AddrPort
	pids []int // of processes that its packets pass through, and the probes' server
}

// dataPlane measures one kind.
func (b *bench) dataPlane(ctx context.Context, k kind) (*Comparison, error) {
	wire, c, err := b.wire(ctx, k, "nsm-"+k.name)
	if err != nil {
		return nil, err
	}
	hand, err := b.hand(ctx, k, "hand-"+k.name, c.MTU)
	if err != nil {
		return nil, err
	}
	all, err := b.takeTurns(ctx, hand, wire)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", k.name, err)
	}
	for _, f := range all {
		m := ComparisonMetric{Name: f.name, Unit: f.unit, Pairs: f.pairs()[0]}
		m.Ratio = m.Pairs.Ratio()
		m.Met = f.met(k.name, m.Ratio.Median)
		if bound, ok := f.bounds[k.name]; ok {
			m.Bound = &bound
		}
		c.Metrics = append(c.Metrics, m)
	}
	return c, nil
}

// figures are the values of one metric in its unit, of each side, round by round.
type figures struct {
	metric
	sides [][]float64
}

// pairs are those of each side with the last one.
func (f figures) pairs() (all []report.Pairs) {
	last := len(f.sides) - 1
	for _, values := range f.sides[:last] {
		all = append(all, report.Pairs{A: values, B: f.sides[last]})
	}
	return all
}

// precise reports whether all ratios are known well enough to hold them against
// a bound. More rounds are wanted where a machine is noisy, which says nothing of
// which side it favours.
func (f figures) precise() bool {
	for _, p := range f.pairs() {
		if ratio := p.Ratio(); ratio.High-ratio.Low > 0.03 {
			return false
		}
	}
	return true
}

// takeTurns takes all measurements of all sides.
func (b *bench) takeTurns(ctx context.Context, sides ...side) (all []figures, err error) {
	measure, err := startChild(b.lab, b.client, "measure")
	if err != nil {
		return nil, err
	}
	defer func() { _ = measure.Stop() }()
	for _, s := range sides {
		if err := warmUp(ctx, measure, s); err != nil {
			return nil, err
		}
	}
	for _, m := range measurements {
		f, err := b.compare(ctx, measure, m, sides)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.metrics[0].name, err)
		}
		all = append(all, f...)
	}
	return all, nil
}

// warmUp waits until packets flow, however long the links take to find each
// other (wireguard-go notices only after up to a second that its device is up).
func warmUp(ctx context.Context, measure *report.Child, s side) (err error) {
	for range 5 {
		if _, err = report.Ask[measured](measure, task{Probe: "ping", To: s.to, Duration: 50 * time.Millisecond}); err == nil {
			return ctx.Err()
		}
	}
	return err
}

// compare takes one measurement of all sides, round after round, until its
// first metric is precise.
func (b *bench) compare(ctx context.Context, measure *report.Child, m measurement, sides []side) ([]figures, error) {
	out := make([]figures, len(m.metrics))
	for i, metric := range m.metrics {
		out[i] = figures{metric, make([][]float64, len(sides))}
	}
	for round := 0; round < b.rounds || (round < b.maxRounds && !out[0].precise()); round++ {
		for i := range sides {
			which := (round + i) % len(sides) // A B, B A, A B …
			t := m.task
			t.To, t.PIDs, t.Duration = sides[which].to, sides[which].pids, b.round
			got, err := report.Ask[measured](measure, t)
			if err = errors.Join(err, ctx.Err()); err != nil {
				return nil, err
			}
			for i, v := range m.values(got) {
				out[i].sides[which] = append(out[i].sides[which], v*out[i].scale)
			}
		}
	}
	return out, nil
}

// wire makes a wire of the mesh between the client and a new endpoint, where a
// server answers probes. For the control it is another link made by hand.
func (b *bench) wire(ctx context.Context, k kind, link string) (side, *Comparison, error) {
	c := &Comparison{Kind: k.name, Title: k.title, Against: k.against}
	if k.name == control.name {
		c.MTU = 1500
		if err := b.endpoint(ctx, k, false); err != nil {
			return side{}, nil, err
		}
		s, err := b.hand(ctx, k, "hand-second", c.MTU)
		return s, c, err
	}
	if err := b.endpoint(ctx, k, true); err != nil {
		return side{}, nil, err
	}
	connect, err := b.client.Connect(ctx, "kernel://"+k.name+"/"+link)
	if err != nil {
		return side{}, nil, err
	}
	// "nsm: SERVICE is up: ADDRESS on LINK, the endpoint NAME has ADDRESS"
	_, peer, _ := strings.Cut(connect.Output(), " has ")
	addr, err := netip.ParseAddr(strings.TrimSpace(peer))
	if err != nil {
		return side{}, nil, fmt.Errorf("no address in what nsm connect says: %q", connect.Output())
	}
	err = onLink(b.client, link, func(l netlink.Link) error { c.MTU = l.Attrs().MTU; return nil })
	if err != nil {
		return side{}, nil, err
	}
	pids := []int{b.servers[k.name].PID}
	if k.holders {
		pids = append(pids, b.holders()...)
	}
	return side{netip.AddrPortFrom(addr, probePort), pids}, c, nil
}

// hand makes the same by hand.
func (b *bench) hand(ctx context.Context, k kind, name string, mtu int) (side, error) {
	b.hands++
	h := byHand{
		name: name, number: byte(b.hands), mtu: mtu,
		from: b.client, nodeFrom: b.lab.Node("a"), to: b.endpoints[k.name], nodeTo: b.lab.Node(k.node),
	}
	h.network = netip.AddrFrom4([4]byte{10, 77, h.number, 0})
	if k.network.IsValid() {
		h.network = k.network
	}
	pids, err := k.make(ctx, b, h)
	if err != nil {
		return side{}, fmt.Errorf("%s: %w", name, err)
	}
	return side{netip.AddrPortFrom(h.address(2), probePort), append(pids, b.servers[k.name].PID)}, nil
}

// endpoint makes a workload with a server for probes and, if asked to, an
// endpoint of the kind's service. It does nothing if they are there.
func (b *bench) endpoint(ctx context.Context, k kind, serve bool) error {
	if b.endpoints[k.name] != nil {
		return nil
	}
	ns, err := b.lab.Node(k.node).Workload("ep-" + k.name)
	if err != nil {
		return err
	}
	b.endpoints[k.name] = ns
	server, err := ns.Start(ctx, "ready", "/proc/self/exe", "serve")
	if err != nil {
		return err
	}
	b.servers[k.name] = server
	if serve {
		b.pools++
		cidr := fmt.Sprintf("10.%d.0.0/16", 60+b.pools)
		_, err = ns.Serve(ctx, k.name, "--payload", k.payload, "--cidr", cidr)
	}
	return err
}

// holders are the processes that userspace WireGuard runs in.
func (b *bench) holders() (pids []int) {
	for _, p := range lab.Find(b.lab.Name, b.lab.Dir).Processes {
		var pid int
		if strings.Contains(p, " wireguard-holder ") {
			if _, err := fmt.Sscan(p, &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

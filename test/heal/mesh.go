// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/test/heal/outage"
)

// patience bounds whatever must come sooner or later.
const patience = 30 * time.Second

// echoPort is where endpoints answer probes.
const echoPort = 7

// kind is one kind of wire.
type kind struct {
	name    string // also of the service, and of the interface after "nsm-"
	node    string // of the endpoint; the client is on node a
	spare   string // node of the endpoint that is there in its place
	payload string
	cidr    string
	anycast string // address at which every endpoint of the service answers
}

var kinds = []kind{
	{name: "local", node: "a", spare: "a", payload: "IP", cidr: "10.61.0.0/24", anycast: "10.9.0.1"},
	{name: "ethernet", node: "b", spare: "c", payload: "ETHERNET", cidr: "10.62.0.0/24", anycast: "10.9.0.2"},
	{name: "ip", node: "b", spare: "c", payload: "IP", cidr: "10.63.0.0/24", anycast: "10.9.0.3"},
}

// mesh is a lab of three nodes with wires of all kinds:
//
//	node a                    node b                   node c
//	┌──────────────────┐      ┌──────────────────┐     ┌────────────────────┐
//	│ web, the client  ├──────┤ ethernet-1       │     │ ethernet-2, a spare│
//	│ local-1  local-2 │tunnel│ ip-1             │     │ ip-2               │
//	└──────────────────┘      └──────────────────┘     └────────────────────┘
//
// The spares come when the wires are up. All endpoints of a service answer at one
// address besides those of their wires, so that a probe does not know from whom its
// answers come.
type mesh struct {
	lab    *lab.Lab
	newer  string // another build of nsm; "" = there is none
	self   string // this program, as endpoints run it
	client *lab.NetNS
	web    *lab.Process // nsm connect
	wires  []*wire
}

// wire is one wire and what is at its far end.
type wire struct {
	kind
	first, then *station
	late        *lab.NetNS // of a client that asks for one more

	ping   *outage.Pinger
	stream *outage.Streamer
}

// station is an endpoint: its namespace, its process, and the workload that
// answers probes.
type station struct {
	name    string
	node    string
	ns      *lab.NetNS
	process *lab.Process
	server  *outage.Server // nil = the workload is dead
	control string         // socket for orders
}

// options of a mesh.
type meshOptions struct {
	nsm       string
	newer     string // another build; may be empty
	self      string // this program
	spares    bool   // there are endpoints to go to
	shortLife bool   // of identities and tokens
	stateSize int64
	profiles  bool
	own       bool // wires to other nodes have devices of their own
}

// newMesh makes a lab with the wires standing.
func newMesh(ctx context.Context, o meshOptions) (_ *mesh, err error) {
	m := &mesh{newer: o.newer, self: o.self}
	env := []string{"NSM_WIREGUARD=userspace"} // where wires share a tunnel
	if o.own {
		env = []string{"NSM_WIREGUARD_TUNNEL=off"}
	}
	if o.shortLife {
		env = append(env, "NSM_SVID_TTL="+svidLife.String(), "NSM_MAX_TOKEN_LIFETIME="+tokenLife.String())
	}
	m.lab, err = lab.New(ctx, lab.Config{Binary: o.nsm, Nodes: []string{"a", "b", "c"}, StateSize: o.stateSize, Profiles: o.profiles, Env: env})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	if err := m.lab.StartDaemons(ctx); err != nil {
		return nil, err
	}
	for _, k := range kinds {
		m.wires = append(m.wires, &wire{kind: k})
	}
	err = m.each(func(w *wire) (err error) {
		w.first, err = m.station(ctx, w.kind, w.name+"-1", w.node)
		return err
	})
	if err != nil {
		return nil, err
	}
	if m.client, err = m.lab.Node("a").Workload("web"); err != nil {
		return nil, err
	}
	if err := m.connect(ctx); err != nil {
		return nil, err
	}
	if !o.spares {
		return m, nil
	}
	return m, m.each(func(w *wire) (err error) {
		w.then, err = m.station(ctx, w.kind, w.name+"-2", w.spare)
		return err
	})
}

// each calls f for every wire, side by side.
func (m *mesh) each(f func(w *wire) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(m.wires))
	for i, w := range m.wires {
		wg.Go(func() {
			if err := f(w); err != nil {
				errs[i] = fmt.Errorf("%s: %w", w.name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// station starts an endpoint of a kind on a node.
func (m *mesh) station(ctx context.Context, k kind, name, node string) (s *station, err error) {
	n := m.lab.Node(node)
	s = &station{name: name, node: node, control: filepath.Join(n.Dir, name+".sock")}
	if s.ns, err = n.Workload(name); err != nil {
		return nil, err
	}
	s.process, err = s.ns.Start(ctx, "ready:", m.self, "endpoint",
		"-name", name, "-service", k.name, "-payload", k.payload, "-cidr", k.cidr, "-anycast", k.anycast, "-control", s.control)
	if err != nil {
		return nil, err
	}
	if err := s.ns.AddAddress("lo", netip.PrefixFrom(netip.MustParseAddr(k.anycast), 32)); err != nil {
		return nil, err
	}
	s.server, err = outage.Serve(s.ns, echoPort)
	return s, err
}

// kill ends the endpoint and its workload.
func (s *station) kill() {
	s.process.Kill()
	s.silence()
}

// silence ends the workload.
func (s *station) silence() {
	if s.server != nil {
		s.server.Close()
		s.server = nil
	}
}

// revive starts the endpoint and its workload again.
func (s *station) revive(ctx context.Context) (err error) {
	s.process.Kill()
	s.silence()
	if s.process, err = s.process.Restart(ctx); err != nil {
		return err
	}
	s.server, err = outage.Serve(s.ns, echoPort)
	return err
}

// urls are the wishes for all wires.
func urls() (list []string) {
	for _, k := range kinds {
		list = append(list, "kernel://"+k.name+"/nsm-"+k.name)
	}
	return list
}

// connect starts the client and waits for its wires.
func (m *mesh) connect(ctx context.Context) (err error) {
	if m.web, err = m.client.StartNsm(ctx, "", append([]string{"connect", "--name", "web", "--leave"}, urls()...)...); err != nil {
		return err
	}
	for _, w := range m.wires {
		if _, err := m.web.WaitLine(ctx, func(line string) bool { return strings.HasPrefix(line, "nsm: "+w.name+" is up: ") }); err != nil {
			return err
		}
	}
	return nil
}

// probe starts the probes of all wires and waits until they flow.
func (m *mesh) probe(ctx context.Context) error {
	for _, w := range m.wires {
		at := netip.AddrPortFrom(netip.MustParseAddr(w.anycast), echoPort)
		var err error
		if w.ping, err = outage.Ping(m.client, at); err != nil {
			return err
		}
		if w.stream, err = outage.Stream(ctx, m.client, at); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	if err := m.flowing(ctx); err != nil {
		return err
	}
	for _, w := range m.wires {
		w.ping.Begin()
		w.stream.Begin()
	}
	return nil
}

// flowing waits until probes come back on all wires.
func (m *mesh) flowing(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return m.each(func(w *wire) error {
		if err := w.ping.Flowing(ctx, 5); err != nil {
			return err
		}
		return w.stream.Flowing(ctx, 5)
	})
}

// seen is what the probes of one wire have seen.
type seen struct {
	Kind   string
	Ping   outage.Result
	Stream outage.Result
}

// stop ends the probes.
func (m *mesh) stop() (all []seen) {
	all = make([]seen, len(m.wires))
	var wg sync.WaitGroup
	for i, w := range m.wires {
		all[i].Kind = w.name
		if w.ping != nil {
			wg.Go(func() { all[i].Ping = w.ping.Stop() })
		}
		if w.stream != nil {
			wg.Go(func() { all[i].Stream = w.stream.Stop() })
		}
	}
	wg.Wait()
	for _, w := range m.wires {
		w.ping, w.stream = nil, nil
	}
	return all
}

// close ends everything.
func (m *mesh) close() error {
	m.stop()
	for _, w := range m.wires {
		for _, s := range []*station{w.first, w.then} {
			if s != nil {
				s.silence()
			}
		}
	}
	return m.lab.Close()
}

// logs returns what daemons and workloads of the lab have printed.
func (m *mesh) logs() string {
	var b strings.Builder
	names, _ := filepath.Glob(filepath.Join(m.lab.Dir, "*.log"))
	for _, name := range names {
		text, _ := os.ReadFile(name)
		fmt.Fprintf(&b, "== %s\n%s", filepath.Base(name), text)
	}
	return b.String()
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/lab/blackhole"
)

// component is a part of the mesh that can fail.
type component string

const (
	registry        component = "registry"
	localManager    component = "local manager"
	remoteManager   component = "remote manager"
	localForwarder  component = "local forwarder"
	remoteForwarder component = "remote forwarder"
	authority       component = "identity authority"
	agent           component = "agent of the joined node"
	localHolder     component = "local WireGuard holder"
	remoteHolder    component = "remote WireGuard holder"
	endpoints       component = "endpoint"
	endpointsNode   component = "endpoint's node"
	clientsNode     component = "client's node"
	client          component = "client"
	domain          component = "domain"
	clocks          component = "clocks of all nodes"
	everything      component = "every process, one after another"
)

// daemons are where the components that are daemons run: node and part.
var daemons = map[component][2]string{
	registry:        {"a", "registry"},
	localManager:    {"a", "manager"},
	remoteManager:   {"b", "manager"},
	localForwarder:  {"a", "forwarder"},
	remoteForwarder: {"b", "forwarder"},
	authority:       {"a", "authority"},
	agent:           {"b", "authority"},
}

// holders and nodes are where the others are.
var (
	holders = map[component]string{localHolder: "a", remoteHolder: "b"}
	nodes   = map[component]string{endpointsNode: "b", clientsNode: "a"}
)

// fault is what happens to a component.
type fault string

const (
	kill         fault = "SIGKILL"
	killAndStart fault = "SIGKILL, started at once"
	freeze       fault = "SIGSTOP"
	restart      fault = "SIGTERM, started at once"
	gone         fault = "gone, no FIN"
	linkDown     fault = "link down"
	dropAll      fault = "packets dropped"
	dropUDP      fault = "UDP dropped"
	dropTCP      fault = "TCP dropped"
	diskFull     fault = "disk full"
	upgrade      fault = "replaced by another build"
	drained      fault = "drained, then gone"
	rotateCA     fault = "CA rotated"
	clockStep    fault = "set forward by an hour"
	clockBack    fault = "set back by an hour"
)

// lasts is how long a fault lasts that is undone.
const lasts = 3 * time.Second

// undo ends a fault.
type undo func(context.Context) error

func nothing(context.Context) error { return nil }

// inject makes a fault happen. What it returns undoes it.
func (m *mesh) inject(ctx context.Context, c component, f fault) (undo, error) {
	if at, ok := daemons[c]; ok {
		return m.injectDaemon(ctx, m.lab.Daemon(at[0], at[1]), f)
	}
	if node, ok := holders[c]; ok {
		return m.injectHolder(node, f)
	}
	if node, ok := nodes[c]; ok {
		return m.injectNode(ctx, m.lab.Node(node), f)
	}
	switch c {
	case endpoints:
		return m.injectEndpoints(ctx, f)
	case client:
		return m.injectClient(ctx, f)
	case clocks:
		by := clockStepBy
		if f == clockBack {
			by = -by
		}
		return func(context.Context) error { return stepClock(-by) }, stepClock(by)
	case domain:
		return m.rotate(ctx)
	case everything:
		return nothing, m.upgrade(ctx)
	}
	return nil, fmt.Errorf("%s: no fault %s", c, f)
}

func (m *mesh) injectDaemon(ctx context.Context, p *lab.Process, f fault) (undo, error) {
	again := func(ctx context.Context) error {
		_, err := p.Restart(ctx)
		return err
	}
	switch f {
	case kill:
		p.Kill()
		return again, nil
	case killAndStart:
		p.Kill()
		return nothing, again(ctx)
	case restart:
		return nothing, again(ctx)
	case freeze:
		return func(context.Context) error { return p.Thaw() }, p.Freeze()
	case diskFull:
		n := m.lab.Node(p.Node)
		return func(context.Context) error { return n.FreeDisk(p.Part) }, n.FillDisk(p.Part)
	}
	return nil, fmt.Errorf("%s: no fault %s", p.Part, f)
}

// injectHolder: whoever killed it need not start it, the forwarder does.
func (m *mesh) injectHolder(node string, f fault) (undo, error) {
	h, err := m.lab.Node(node).Holder()
	if err != nil {
		return nil, err
	}
	switch f {
	case kill:
		return nothing, h.Kill()
	case freeze:
		return func(context.Context) error { return h.Thaw() }, h.Freeze()
	}
	return nil, fmt.Errorf("holder: no fault %s", f)
}

func (m *mesh) injectNode(ctx context.Context, n *lab.Node, f fault) (undo, error) {
	hole := map[fault]blackhole.Kind{dropAll: blackhole.All, dropUDP: blackhole.UDP, dropTCP: blackhole.TCP}
	switch f {
	case gone:
		return nothing, m.destroy(n)
	case drained:
		return nothing, m.drainNode(ctx, n)
	case linkDown:
		return func(context.Context) error { return n.LinkUp() }, n.LinkDown()
	case dropAll, dropUDP, dropTCP:
		h, err := blackhole.Dig(n.NetNS, lab.Underlay, hole[f])
		return func(context.Context) error { return h.Fill() }, err
	}
	return nil, fmt.Errorf("node: no fault %s", f)
}

// destroy ends a node as a loss of power does: first its cable, so that nothing
// that its processes would say in dying gets out.
func (m *mesh) destroy(n *lab.Node) error {
	err := n.LinkDown()
	for _, w := range m.wires {
		for _, s := range []*station{w.first, w.then} {
			if s != nil && s.node == n.Name {
				s.kill()
			}
		}
	}
	for _, p := range m.lab.Daemons() {
		if p.Node == n.Name {
			p.Kill()
		}
	}
	if h, holderErr := n.Holder(); holderErr == nil {
		err = errors.Join(err, h.Kill())
	}
	return err
}

func (m *mesh) injectEndpoints(ctx context.Context, f fault) (undo, error) {
	switch f {
	case kill:
		return nothing, m.each(func(w *wire) error { w.first.kill(); return nil })
	case killAndStart:
		return nothing, m.each(func(w *wire) error { return w.first.revive(ctx) })
	case drained:
		return nothing, m.drainEndpoints(ctx)
	case freeze:
		return func(context.Context) error {
			return m.each(func(w *wire) error { return w.first.process.Thaw() })
		}, m.each(func(w *wire) error { return w.first.process.Freeze() })
	}
	return nil, fmt.Errorf("endpoint: no fault %s", f)
}

func (m *mesh) injectClient(ctx context.Context, f fault) (undo, error) {
	again := func(ctx context.Context) (err error) {
		m.web, err = m.web.Restart(ctx)
		return err
	}
	switch f {
	case kill:
		m.web.Kill()
		return again, nil
	case killAndStart:
		m.web.Kill()
		return nothing, again(ctx)
	case restart: // it leaves its wires
		return nothing, again(ctx)
	case freeze:
		return func(context.Context) error { return m.web.Thaw() }, m.web.Freeze()
	}
	return nil, fmt.Errorf("client: no fault %s", f)
}

// clockStepBy is more than tokens and certificates live for.
const clockStepBy = time.Hour + time.Minute

// stepClock sets the machine's clock, which is that of all nodes, forward or back.
func stepClock(by time.Duration) error {
	ts, err := unix.TimeToTimespec(time.Now().Add(by))
	if err != nil {
		return err
	}
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

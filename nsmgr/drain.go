// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Drain takes the wires away from endpoints before they stop. An endpoint that is
// drained is known to this node only: the registry has it no more, so that nobody
// chooses it, and its wires live on until their clients, who are asked to, have
// found another one. The new path is made before the old one is closed
// (docs/protocol.md, P-92).
//
//	              Drain                          no wire left
//	registered ───────────▶ drained, asks its ───────────────▶ drained
//	    ▲                    clients to move                      │
//	    └────────────── undo, or a new manager ◀──────────────────┘
//
// The endpoint itself goes on registering with this manager, and notices nothing.

// drains says which endpoints of the node are drained.
type drains struct {
	service string // of forwarders, which are no endpoints in this sense

	mu    sync.RWMutex
	all   bool            // every endpoint; guarded by mu
	names map[string]bool // guarded by mu
}

// has reports whether the endpoint is drained.
func (d *drains) has(nse *registry.NetworkServiceEndpoint) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.names[nse.GetName()] || d.all && !slices.Contains(nse.GetNetworkServiceNames(), d.service)
}

// everything reports whether the whole node is drained.
func (d *drains) everything() bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.all
}

// set begins or ends to drain endpoints; no names means all.
func (d *drains) set(names []string, drained bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(names) == 0 {
		d.all = drained
		d.names = nil
		return
	}
	if d.names == nil {
		d.names = make(map[string]bool)
	}
	for _, name := range names {
		if drained {
			d.names[name] = true
		} else {
			delete(d.names, name)
		}
	}
}

// forget drops what is known of an endpoint that has gone.
func (d *drains) forget(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.names, name)
}

// Drain implements the admin API's call of this name.
func (m *Manager) Drain(ctx context.Context, who string, req *adminv1.DrainRequest, report func(*adminv1.DrainProgress) error) error {
	locals, err := m.drainable(who, req.GetEndpoints())
	if err != nil {
		return err
	}
	if req.GetUndo() && len(req.GetEndpoints()) > 0 && m.drains.everything() {
		return nserr.BadRequest.Errorf("the whole node of manager %s is drained, and with it %s", m.config.Name, strings.Join(req.GetEndpoints(), ", ")).
			WithFix("take that back: nsm drain node NAME --undo")
	}
	m.drains.set(req.GetEndpoints(), !req.GetUndo())
	d := &drain{m: m, mover: newMover(m.monitor, askAgain), seen: make(map[string]bool)}
	// A registry that is away, or frozen, does not keep clients from moving.
	publishing, cancel := context.WithTimeout(ctx, registryPatience)
	defer cancel()
	for _, e := range locals {
		name := e.nse.GetName()
		d.names = append(d.names, name)
		m.log.Info(drainText(req.GetUndo()), "endpoint", name, "operator", who)
		if err := m.publishDrain(publishing, name); err != nil {
			return err
		}
	}
	if req.GetUndo() {
		return report(&adminv1.DrainProgress{Endpoints: d.names})
	}
	return d.run(ctx, report)
}

// isDrained reports whether an endpoint is one of this node that is drained.
func (m *Manager) isDrained(nse *registry.NetworkServiceEndpoint) bool {
	_, here := m.locals.get(nse.GetName())
	return here && m.drains.has(nse)
}

func drainText(undo bool) string {
	if undo {
		return "drain taken back"
	}
	return "endpoint is drained"
}

// drainable returns the endpoints of this node that are meant, if who may drain them.
func (m *Manager) drainable(who string, names []string) (meant []*local, err error) {
	for _, e := range m.locals.all() {
		if e.forwards(m.config.ForwarderService) || len(names) > 0 && !slices.Contains(names, e.nse.GetName()) {
			continue
		}
		if e.by.owner != who && !m.config.MayDrain(who) {
			return nil, nserr.NotAllowed.Errorf("%s may not drain endpoint %q of %s", who, e.nse.GetName(), e.by.owner).
				WithFix("ask as its owner or as root, or name the identity with --operators at its manager")
		}
		meant = append(meant, e)
	}
	for _, name := range names {
		if !slices.ContainsFunc(meant, func(e *local) bool { return e.nse.GetName() == name }) {
			return nil, nserr.UnknownEndpoint.Errorf("manager %s has no endpoint %q", m.config.Name, name).
				WithFix("see 'nsm get endpoints' for its node, and ask the manager there")
		}
	}
	if len(names) == 0 && !m.config.MayDrain(who) {
		return nil, nserr.NotAllowed.Errorf("%s may not drain the node of manager %s", who, m.config.Name).
			WithFix("ask as root, or name the identity with --operators at its manager")
	}
	return meant, nil
}

// publishDrain tells the registry whether the endpoint can be had. One that is away is no
// error, nor is a renewal that waits for it and keeps others from the endpoint.
func (m *Manager) publishDrain(ctx context.Context, name string) error {
	s := &endpointRegistry{m: m}
	err := m.locals.turns.Do(ctx, name, func(t *conn.Turn[local]) error {
		if t.Record == nil {
			return nil // it has gone meanwhile
		}
		public := proto.CloneOf(t.Record.nse)
		public.Url = m.config.URL
		ctx := t.Record.by.path.ToOutgoing(ctx)
		var err error
		if m.drains.has(public) {
			_, err = s.upstream().Unregister(ctx, public)
		} else {
			_, err = s.upstream().Register(ctx, public)
		}
		return err
	})
	if err != nil && away(err) {
		m.log.Warn("registry is away, it learns of the drain with the endpoint's next renewal", "endpoint", name, "error", err)
		return nil
	}
	return err
}

// drain is one call of Drain under way.
type drain struct {
	m     *Manager
	names []string
	mover *mover
	seen  map[string]bool // wires by id; also those that have gone
}

// run asks the clients of the endpoints to move until no wire is left.
func (d *drain) run(ctx context.Context, report func(*adminv1.DrainProgress) error) error {
	var last *adminv1.DrainProgress
	tick := time.NewTicker(movingTick)
	defer tick.Stop()
	for {
		now := d.look(time.Now())
		if !proto.Equal(now, last) {
			if err := report(now); err != nil {
				return err
			}
			last = now
		}
		if now.GetWires() == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nserr.TimedOut.Errorf("%d wires are still there: %s", now.GetWires(), strings.Join(now.GetStuck(), ", ")).
				WithFix("their services have no other endpoint that fits, or their clients do not move; what is drained stays so")
		}
	}
}

// look counts wires and asks clients to move.
func (d *drain) look(now time.Time) *adminv1.DrainProgress {
	p := &adminv1.DrainProgress{Endpoints: d.names}
	var ids []string
	for _, v := range d.m.monitor.All() {
		if !slices.Contains(d.names, v.Conn().GetNetworkServiceEndpointName()) {
			continue
		}
		id := v.Conn().GetId()
		ids = append(ids, id)
		d.seen[id] = true
		if d.mover.stuck(id, now) {
			p.Stuck = append(p.Stuck, v.FirstID())
		}
	}
	d.mover.move(ids, now)
	slices.Sort(p.Stuck)
	p.Wires = uint32(len(ids))
	p.Moved = uint32(len(d.seen)) - p.Wires
	return p
}

// checkDrained refuses what would be a new wire to an endpoint that is drained.
func (m *Manager) checkDrained(c *networkservice.Connection, known *wire) error {
	e, ok := m.locals.get(c.GetNetworkServiceEndpointName())
	if !ok || known != nil && !hop.Anew(known.next.Conn, c) || !m.drains.has(e.nse) {
		return nil
	}
	return nserr.Draining.Errorf("endpoint %s takes no new wires", e.nse.GetName())
}

// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/match"
	"github.com/openvwire/nsm/sdk/nserr"
)

// When the rules of a network service change, the wires that they now select other
// endpoints for move there (docs/protocol.md, P-93). It is the manager of the client
// that asks it to: the one whose forwarder chooses by the rules. It watches them for
// all wires together.

// placed is a wire as its service's rules see it.
type placed struct {
	id       string
	client   match.Labels
	endpoint string
}

// displaced returns the ids of the wires that have to move after the rules of their
// service have changed: to move are those that can, the others are stranded, since the
// rules select nobody for them. A wire stays that has one of the endpoints which the
// rules select for its client, with whatever weight; and one whose endpoint is not
// registered now: what is to become of it the rules do not say.
func displaced(rules []match.Match, endpoints []match.Endpoint, wires []placed) (move, stranded []string) {
	for _, w := range wires {
		has := func(name string) bool { return name == w.endpoint }
		if !slices.ContainsFunc(endpoints, func(e match.Endpoint) bool { return has(e.Name) }) {
			continue
		}
		selected := match.Endpoints(rules, w.client, endpoints)
		switch {
		case len(selected) == 0:
			stranded = append(stranded, w.id)
		case !slices.ContainsFunc(selected, func(c match.Candidate) bool { return has(c.Name) }):
			move = append(move, w.id)
		}
	}
	return move, stranded
}

// sameRules reports whether two states of a network service select the same endpoints.
func sameRules(a, b *registry.NetworkService) bool {
	return slices.EqualFunc(a.GetMatches(), b.GetMatches(), func(a, b *registry.Match) bool { return proto.Equal(a, b) })
}

// ruled are the wires whose endpoints are chosen by the rules of their services, and
// on this node.
type ruled struct {
	mu      sync.Mutex
	clients map[string]match.Labels // by id of the wire; guarded by mu, values are immutable
}

// note remembers for whom the endpoint of a wire is chosen, or that it is not.
func (r *ruled) note(c *networkservice.Connection, chosen bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !chosen {
		delete(r.clients, c.GetId())
		return
	}
	if r.clients == nil {
		r.clients = make(map[string]match.Labels)
	}
	r.clients[c.GetId()] = c.GetLabels()
}

func (r *ruled) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.clients, id)
}

func (r *ruled) client(id string) (match.Labels, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	labels, ok := r.clients[id]
	return labels, ok
}

// chooses reports whether the rules of this manager's services choose the endpoint for a
// Request that makes a wire, or one that the manager has not known before. It comes from
// a client of this node: the one that begins the path, or an endpoint that asks further
// on; the others come from managers that have chosen. And it does not name the endpoint
// that it wants, unless it is the refresh of a wire of before the manager's restart: that
// names the one that was chosen.
func (m *Manager) chooses(c *networkservice.Connection) bool {
	if index := int(c.GetPath().GetIndex()); index > 1 {
		e, here := m.locals.get(c.GetPath().GetPathSegments()[index-1].GetName())
		if !here || e.forwards(m.config.ForwarderService) {
			return false
		}
	}
	begins := c.GetNextPathSegment() == nil || c.GetState() == networkservice.State_RESELECT_REQUESTED
	return !begins || c.GetNetworkServiceEndpointName() == ""
}

const (
	// rulesSpread is for how long managers that hear of the same rules wait, each
	// another part of it.
	rulesSpread = time.Second
	// maxRulesPause is the longest time after which a client is asked again that has
	// not followed the rules.
	maxRulesPause = time.Minute
	// strandedTick is how often is looked whether there are endpoints for stranded
	// wires.
	strandedTick = time.Second
)

// follower makes wires follow the rules of their services.
type follower struct {
	m       *Manager
	last    map[string]*registry.NetworkService // rules as they were told last, also of services that are gone
	changed map[string]*change                  // services with wires that may have to move
}

// change is what has to be done since the rules of a service have changed.
type change struct {
	from     time.Time // not before then
	mover    *mover
	stranded bool // said already
}

// followRules runs until ctx ends.
func (m *Manager) followRules(ctx context.Context) {
	f := &follower{m: m, last: make(map[string]*registry.NetworkService), changed: make(map[string]*change)}
	for ctx.Err() == nil {
		f.watch(ctx) // again if more services have gone than a reader can be told of
	}
}

func (f *follower) watch(ctx context.Context) {
	r := f.m.catalog.services.objects.Reader()
	defer r.Close()
	tick := time.Duration(0)
	for {
		wait, cancel := ctx, context.CancelFunc(func() {})
		if tick > 0 {
			wait, cancel = context.WithTimeout(ctx, tick)
		}
		news, err := r.Next(wait)
		cancel()
		if ctx.Err() != nil || errors.Is(err, nserr.WatchLost) {
			return
		}
		now := time.Now()
		for _, n := range news {
			if n.Deleted {
				f.gone(n.Key)
			} else {
				f.learn(n.Value, now)
			}
		}
		tick = f.act(now)
	}
}

// learn compares a service with what it was.
func (f *follower) learn(ns *registry.NetworkService, now time.Time) {
	before, known := f.last[ns.GetName()]
	f.last[ns.GetName()] = ns
	if !known || sameRules(before, ns) {
		return
	}
	f.changed[ns.GetName()] = &change{
		from:  now.Add(time.Duration(rand.Float64() * float64(rulesSpread))),
		mover: newMover(f.m.monitor, maxRulesPause),
	}
}

// gone forgets a service, but not the rules of one that has wires: it may be deleted
// to be made anew, or the registry has lost it for a while.
func (f *follower) gone(name string) {
	if len(f.m.placed(name)) == 0 {
		delete(f.changed, name)
		delete(f.last, name)
	}
}

// act moves wires and returns when to look again; 0 means when there is news.
func (f *follower) act(now time.Time) (tick time.Duration) {
	for name, c := range f.changed {
		again := max(c.from.Sub(now), 0)
		if again == 0 {
			again = f.follow(name, c, now)
		}
		if again == 0 {
			delete(f.changed, name)
		} else if tick == 0 || again < tick {
			tick = again
		}
	}
	return tick
}

// follow moves the wires of one service, and returns when to look at it again; 0 means
// that all are where they belong.
func (f *follower) follow(name string, c *change, now time.Time) time.Duration {
	m := f.m
	if _, ok := m.catalog.services.objects.Get(name); !ok {
		return strandedTick
	}
	move, stranded := displaced(hop.MatchesOf(f.last[name]), hop.EndpointsOf(m.offered(name, now), name), m.placed(name))
	if len(move) > 0 && len(c.mover.asked) == 0 {
		m.log.Info("rules of a service have changed, wires move", "service", name, "count", len(move))
	}
	if len(stranded) > 0 && !c.stranded {
		m.log.Warn("rules of a service have changed and select nobody for some wires, which stay", "service", name, "count", len(stranded))
		c.stranded = true
	}
	c.mover.move(move, now)
	switch {
	case slices.ContainsFunc(move, func(id string) bool { return !c.mover.stuck(id, now) }):
		return movingTick
	case len(move)+len(stranded) > 0:
		return strandedTick
	}
	return 0
}

// offered returns the endpoints of a service that a client of this node may be
// connected to.
func (m *Manager) offered(service string, now time.Time) (out []*registry.NetworkServiceEndpoint) {
	for _, nse := range m.catalog.endpoints.group(service) {
		if here, ok := m.localise(nse, now); ok && !m.isDrained(here) {
			out = append(out, here)
		}
	}
	return out
}

// placed returns the wires of a service whose endpoints are chosen here, by its rules.
func (m *Manager) placed(service string) (out []placed) {
	for _, v := range m.monitor.All() {
		if v.Conn().GetNetworkService() != service {
			continue
		}
		if labels, ok := m.ruled.client(v.Conn().GetId()); ok {
			out = append(out, placed{id: v.Conn().GetId(), client: labels, endpoint: v.Conn().GetNetworkServiceEndpointName()})
		}
	}
	slices.SortFunc(out, func(a, b placed) int { return strings.Compare(a.id, b.id) })
	return out
}

// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/sdk/conn"
)

// locals are the endpoints, forwarders among them, that registered through this
// manager: where the node itself reaches them, while the rest of the domain is
// told the manager's address (protocol.md §3.6).
//
// turns serialises what happens to one name and holds its expiry; byName is what
// everybody else reads.
type locals struct {
	turns   *conn.Table[local]
	service string // of forwarders

	mu         sync.RWMutex
	byName     map[string]*local // guarded by mu; values are immutable
	forwarding []*local          // the forwarders among them, by name; guarded by mu, immutable
	changed    chan struct{}     // closed at the next change; nil while nobody waits; guarded by mu
}

// local is one endpoint of this node.
type local struct {
	nse     *registry.NetworkServiceEndpoint // as it registered, with its own URL; immutable
	by      *registration                    // who registered it
	expires time.Time
	alone   bool   // the registry was away when it registered last
	release func() // lets go of its Unix socket
}

func newLocals(forwarderService string, expired func(ctx context.Context, name string)) *locals {
	return &locals{turns: conn.NewTable[local](expired), service: forwarderService, byName: make(map[string]*local)}
}

func (l *locals) get(name string) (*local, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	e, ok := l.byName[name]
	return e, ok
}

// set publishes e under its name, nil to remove it. The turn of the name must be
// held.
func (l *locals) set(name string, e *local) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	old := l.byName[name]
	if e == nil {
		delete(l.byName, name)
	} else {
		l.byName[name] = e
	}
	if !old.forwards(l.service) && !e.forwards(l.service) {
		return
	}
	others := slices.DeleteFunc(slices.Clone(l.forwarding), func(f *local) bool { return f.nse.GetName() == name })
	if e.forwards(l.service) {
		at, _ := slices.BinarySearchFunc(others, name, func(f *local, name string) int { return strings.Compare(f.nse.GetName(), name) })
		others = slices.Insert(others, at, e)
	}
	l.forwarding = others
}

// changes returns what is closed at the next change.
func (l *locals) changes() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

func (e *local) forwards(service string) bool {
	return e != nil && slices.Contains(e.nse.GetNetworkServiceNames(), service)
}

// forwarders returns the forwarders of this node by name. A node may have a
// thousand endpoints beside them.
func (l *locals) forwarders(now time.Time) []forwarder {
	l.mu.RLock()
	forwarding := l.forwarding
	l.mu.RUnlock()
	out := make([]forwarder, 0, len(forwarding))
	for _, e := range forwarding {
		if e.expires.After(now) {
			out = append(out, forwarder{nse: e.nse, url: e.nse.GetUrl()})
		}
	}
	return out
}

// all returns the endpoints of this node, forwarders included, by name.
func (l *locals) all() []*local {
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := slices.Collect(maps.Values(l.byName))
	slices.SortFunc(out, func(a, b *local) int { return strings.Compare(a.nse.GetName(), b.nse.GetName()) })
	return out
}

func (l *locals) close() {
	l.turns.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.byName {
		e.release()
	}
	clear(l.byName)
	l.forwarding = nil
}

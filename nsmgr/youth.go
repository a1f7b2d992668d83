// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"slices"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/sdk/query"
)

// youth is how long a manager does not know yet who is on its node: endpoints and
// forwarders of before its start notice and register again, with a back-off of up to
// 3 s if it was away for long. Whoever is missing is waited for until then. Else a
// wire would be moved away from an endpoint that is well.
const youth = 4 * time.Second

// await waits while the manager is young, until nothing is missing or ctx ends.
// missing is asked again when somebody has registered.
func (m *Manager) await(ctx context.Context, missing func() bool) {
	if !time.Now().Before(m.grownUp) {
		return
	}
	ctx, cancel := context.WithDeadline(ctx, m.grownUp)
	defer cancel()
	for {
		changed := m.locals.changes()
		if !missing() {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// awaitForwarder waits for the forwarder that a connection has been through before,
// or for any.
func (m *Manager) awaitForwarder(ctx context.Context, c *networkservice.Connection) {
	before := nextSegment(c)
	m.await(ctx, func() bool {
		all := m.locals.forwarders(time.Now())
		return len(all) == 0 || before != "" && !slices.ContainsFunc(all, func(f forwarder) bool { return f.nse.GetName() == before })
	})
}

// absence is how long a Request waits, in all, for a forwarder that has died and is
// started again. The client would ask again and again, with more and more time in
// between, and notice late that it is back.
const absence = 4 * time.Second

// awaitReturn waits, if nobody listens any more where the forwarders were that have
// been asked in vain and there are no others, until one of them registers again. It
// reports whether one has by the deadline.
func (m *Manager) awaitReturn(ctx context.Context, asked []forwarder, deadline time.Time) bool {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	for {
		changed := m.locals.changes()
		for _, f := range m.locals.forwarders(time.Now()) {
			i := slices.IndexFunc(asked, func(a forwarder) bool { return a.nse.GetName() == f.nse.GetName() })
			switch {
			case i < 0: // there is another one
				return false
			case asked[i].nse != f.nse:
				return ctx.Err() == nil
			case !m.config.Abandoned(ctx, f.url):
				return false
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// awaitEndpoints waits for what the registry has told of the node's endpoints, and
// then, if none of those that are asked for can be reached, for one of them that is
// of this node and has yet to register again.
func (s *endpointRegistry) awaitEndpoints(ctx context.Context, template *registry.NetworkServiceEndpoint) {
	if !time.Now().Before(s.m.grownUp) {
		return
	}
	ready, cancel := context.WithDeadline(ctx, s.m.grownUp)
	defer cancel()
	select {
	case <-s.m.catalog.endpoints.ready:
	case <-ready.Done():
		return
	}
	s.m.await(ctx, func() bool {
		now, late := time.Now(), false
		for _, nse := range s.known(template) {
			if _, ok := s.m.localise(nse, now); ok {
				return false
			}
			at := query.Expiry(s.m.clock.translated(nse))
			late = late || nse.GetUrl() == s.m.config.URL && (at.IsZero() || at.After(now))
		}
		return late
	})
}

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

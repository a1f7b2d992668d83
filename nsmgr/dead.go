// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"log/slog"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/conn"
)

// unregisterTimeout bounds the Unregister of an endpoint that cannot do it itself.
const unregisterTimeout = 2 * time.Second

// confirm finds out whether an endpoint of this node is dead, as a forwarder takes it
// to be that asks for it by its address. If nobody listens there any more it is
// forgotten, here at once and then in the registry, so that the whole domain knows
// long before its registration expires. One that lives after all notices and registers
// again (sdk/registration).
func (m *Manager) confirm(ctx context.Context, name, url string) {
	if e, ok := m.locals.get(name); !ok || e.nse.GetUrl() != url || !m.config.Abandoned(ctx, url) {
		return
	}
	_ = m.locals.turns.Do(ctx, name, func(t *conn.Turn[local]) error {
		if t.Record == nil || t.Record.nse.GetUrl() != url {
			return nil // it has gone, or is back, meanwhile
		}
		m.log.Log(ctx, m.deaths.Level(slog.LevelWarn, name, dies), "endpoint is dead, nobody listens at its address", "endpoint", name)
		dead := t.Record
		m.forgetLocal(t)
		m.catalog.endpoints.delete(name)
		m.running.Go(func() { m.unregister(name, dead) })
		return nil
	})
}

// What is said of an endpoint that is found dead: that it dies, and that it is back. One
// that comes and goes does so once.
const dies, returns = "dies", "returns"

// unregister removes an endpoint from the registry with the tokens that it has
// registered with, unless it has come back meanwhile.
func (m *Manager) unregister(name string, dead *local) {
	ctx, cancel := context.WithTimeout(context.Background(), unregisterTimeout)
	defer cancel()
	_ = m.locals.turns.Do(ctx, name, func(t *conn.Turn[local]) error {
		if t.Record != nil {
			return nil
		}
		public := proto.CloneOf(dead.nse)
		public.Url, public.PathIds = m.config.URL, dead.by.ids
		_, err := registry.NewNetworkServiceEndpointRegistryClient(m.config.Registry).Unregister(dead.by.path.ToOutgoing(ctx), public)
		if err != nil {
			m.log.Debug("dead endpoint not unregistered, it will expire", "endpoint", name, "error", err)
		}
		return nil
	})
}

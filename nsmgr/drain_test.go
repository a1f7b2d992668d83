// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// frozen is a registry that answers no Unregister.
type frozen struct{ upstream }

func (f *frozen) Unregister(ctx context.Context, _ *registry.NetworkServiceEndpoint) (*emptypb.Empty, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// An operator who drains an endpoint does not wait for a registry that is frozen, nor for
// a renewal that does.
func TestDrainWithFrozenRegistry(t *testing.T) {
	t.Run("frozen", func(t *testing.T) { drainFrozen(t, false) })
	t.Run("renewal", func(t *testing.T) { drainFrozen(t, true) })
}

func drainFrozen(t *testing.T, renewal bool) {
	synctest.Test(t, func(t *testing.T) {
		domain := rpc.NewLocal(rpc.LocalOptions{})
		defer domain.Close()
		regpath.RegisterEndpoints(domain, &frozen{})
		quiet := slog.New(slog.DiscardHandler)
		peers := peer.NewPool(peer.PoolConfig{Name: "manager", Logger: quiet, Dial: func(string) (grpc.ClientConnInterface, io.Closer, error) {
			return domain.Dial(rpc.LocalCaller{}), nil, nil
		}})
		defer peers.Close()
		m, err := New(Config{
			Name: "manager", URL: "tcp://192.0.2.1:5001", Tokens: token.NewGenerator(issue(t, "manager"), time.Hour),
			Peers: peers, Sockets: rpc.NewSockets(), Registry: domain.Dial(rpc.LocalCaller{}), Logger: quiet,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Stop()
		const owner = "spiffe://test/nse"
		if err := m.locals.turns.Do(t.Context(), "db-1", func(turn *conn.Turn[local]) error {
			turn.Record = &local{
				nse: &registry.NetworkServiceEndpoint{Name: "db-1", NetworkServiceNames: []string{"db"}},
				by:  &registration{owner: owner}, release: func() {},
			}
			m.locals.set("db-1", turn.Record)
			return nil
		}); err != nil {
			t.Fatal(err)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var renewing sync.WaitGroup
		defer renewing.Wait()
		if renewal {
			renewing.Go(func() {
				_ = m.locals.turns.Do(ctx, "db-1", func(*conn.Turn[local]) error { <-ctx.Done(); return nil })
			})
			synctest.Wait()
		}
		defer cancel() // before Wait

		start := time.Now()
		var last *adminv1.DrainProgress
		if err := m.Drain(ctx, owner, &adminv1.DrainRequest{Endpoints: []string{"db-1"}}, func(p *adminv1.DrainProgress) error {
			last = p
			return nil
		}); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > registryPatience || last == nil {
			t.Errorf("after %v the last that was reported is %v", took, last)
		}
	})
}

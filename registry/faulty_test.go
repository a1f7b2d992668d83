// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// faulty is a store that does not answer while down is set, as one behind a
// network may.
type faulty struct {
	registry.Store[*api.NetworkServiceEndpoint]
	down atomic.Bool
}

var errDown = nserr.PeerDown.Errorf("store is down")

func (f *faulty) Update(ctx context.Context, name string, change func(*api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error)) (*api.NetworkServiceEndpoint, error) {
	if f.down.Load() {
		return nil, errDown
	}
	return f.Store.Update(ctx, name, change)
}

func (f *faulty) Watch(ctx context.Context, template *api.NetworkServiceEndpoint) (registry.Watcher[*api.NetworkServiceEndpoint], error) {
	if f.down.Load() {
		return nil, errDown
	}
	return f.Store.Watch(ctx, template)
}

func (f *faulty) Find(ctx context.Context, template *api.NetworkServiceEndpoint) iter.Seq2[registry.Stored[*api.NetworkServiceEndpoint], error] {
	return f.Store.Find(ctx, template)
}

// TestExpiryOutlivesStoreFailure: what expires while the store is down is not
// shown, and is removed when it is back.
func TestExpiryOutlivesStoreFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		store := &faulty{Store: f.endpoints}
		srv := registry.New(registry.Config{Tokens: f.registry.tokens(), Services: f.services, Endpoints: store})
		f.srv.Close() // the other one would expire them
		defer srv.Close()
		local := rpc.NewLocal(rpc.LocalOptions{Identity: f.registry.identity})
		defer local.Close()
		srv.Register(local)
		nse := f.authority.issue(t, "nse")
		c := clientsOf(local.Dial(rpc.LocalCaller{Identity: nse.identity, Tokens: nse.tokens()}))

		if _, err := c.endpoints.Register(t.Context(), endpoint("e", "s")); err != nil {
			t.Fatal(err)
		}
		watching, err := c.endpoints.Find(t.Context(), &api.NetworkServiceEndpointQuery{Watch: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := watching.Recv(); err != nil {
			t.Fatal(err)
		}
		store.down.Store(true)
		time.Sleep(2 * time.Minute)
		stream, err := c.endpoints.Find(t.Context(), &api.NetworkServiceEndpointQuery{})
		if got := receive(t, stream, err); len(got) != 0 {
			t.Errorf("expired, but found: %v", got)
		}
		if _, err := c.endpoints.Register(t.Context(), endpoint("e2", "s")); !errors.Is(err, nserr.PeerDown) {
			t.Errorf("Register = %v, want the store's error", err)
		}
		store.down.Store(false)
		if e, err := watching.Recv(); err != nil || !e.Deleted || e.NetworkServiceEndpoint.Name != "e" {
			t.Errorf("the watch tells %v, %v", e, err)
		}
	})
}

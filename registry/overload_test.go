// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/registry/memory"
	"github.com/openvwire/nsm/sdk/gate"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// slow is a store that takes its time, so that many wait.
type slow struct {
	*memory.Store[*api.NetworkServiceEndpoint]
	work chan struct{} // closed when there is no more of it
}

func (s slow) Update(ctx context.Context, name string, f func(*api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error)) (*api.NetworkServiceEndpoint, error) {
	select {
	case <-s.work:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return s.Store.Update(ctx, name, f)
}

// Under more load than it can bear a registry refuses what is new, and says when to come
// again; renewals succeed, those of others are none, and nobody waits to watch.
func TestOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		ours, theirs := f.authority.issue(t, "ours"), f.authority.issue(t, "theirs")
		for i := range 10 {
			if _, err := f.as(ours).endpoints.Register(t.Context(), endpoint(fmt.Sprint("old-", i), "s")); err != nil {
				t.Fatal(err)
			}
		}
		store := slow{f.endpoints, make(chan struct{})}
		srv := registry.New(registry.Config{Name: "slow", Tokens: f.registry.tokens(), Services: f.services, Endpoints: store, Gate: gate.New(1)})
		defer srv.Close()
		local := rpc.NewLocal(rpc.LocalOptions{Identity: f.registry.identity})
		defer local.Close()
		srv.Register(local)
		as := func(p party) clients {
			return clientsOf(local.Dial(rpc.LocalCaller{Identity: p.identity, Tokens: p.tokens()}))
		}

		var mu sync.Mutex
		ended := make(map[string][]error)
		var calling sync.WaitGroup
		register := func(who party, what, name string) {
			calling.Go(func() {
				_, err := as(who).endpoints.Register(t.Context(), endpoint(name, "s"))
				mu.Lock()
				defer mu.Unlock()
				ended[what] = append(ended[what], err)
			})
		}
		register(ours, "first", "first") // has the place, for a second
		synctest.Wait()
		for i := range 20 {
			register(ours, "new", fmt.Sprint("new-", i))
		}
		for i := range 10 {
			register(ours, "renewal", fmt.Sprint("old-", i))
			register(theirs, "somebody else's", fmt.Sprint("old-", i))
		}
		watch, err := as(theirs).endpoints.Find(t.Context(), &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: endpointsOf("s"), Watch: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := watch.Recv(); err != nil {
			t.Errorf("a watch: %v", err)
		}
		time.Sleep(3 * time.Second)
		close(store.work)
		calling.Wait()
		for _, what := range []string{"new", "renewal", "somebody else's"} {
			refused := 0
			for _, err := range ended[what] {
				if errors.Is(err, nserr.Busy) && nserr.From(err).Retry > 0 {
					refused++
				} else if err != nil && !(what == "somebody else's" && errors.Is(err, nserr.NameOwned)) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if (refused == 0) != (what == "renewal") {
				t.Errorf("%s: %d of %d refused", what, refused, len(ended[what]))
			}
		}
	})
}

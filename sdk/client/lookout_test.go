// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/query"
	"github.com/openvwire/nsm/sdk/watch"
)

// endpointRegistry is the manager's registry of endpoints.
type endpointRegistry struct {
	registry.UnimplementedNetworkServiceEndpointRegistryServer
	all *watch.Map[string, *registry.NetworkServiceEndpoint]

	mu   sync.Mutex
	open int           // watches; guarded by mu
	ever int           // Finds of either kind; guarded by mu
	away bool          // answers no Find; guarded by mu
	end  chan struct{} // closed to end all watches; guarded by mu
}

func newEndpointRegistry() *endpointRegistry {
	return &endpointRegistry{all: watch.New[string, *registry.NetworkServiceEndpoint](), end: make(chan struct{})}
}

func (r *endpointRegistry) Find(q *registry.NetworkServiceEndpointQuery, stream registry.NetworkServiceEndpointRegistry_FindServer) error {
	r.mu.Lock()
	r.ever++
	away, end := r.away, r.end
	r.mu.Unlock()
	if away {
		return nserr.PeerDown.Errorf("away")
	}
	send := func(nse *registry.NetworkServiceEndpoint, deleted bool) error {
		if !query.Match(q.GetNetworkServiceEndpoint(), nse) {
			return nil
		}
		return stream.Send(&registry.NetworkServiceEndpointResponse{NetworkServiceEndpoint: nse, Deleted: deleted})
	}
	if !q.GetWatch() {
		for _, nse := range r.all.All() {
			if err := send(nse, false); err != nil {
				return err
			}
		}
		return nil
	}
	r.mu.Lock()
	r.open++
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.open--
		r.mu.Unlock()
	}()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		select {
		case <-end:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	reader := r.all.Reader()
	defer reader.Close()
	for {
		changes, err := reader.Next(ctx)
		if err != nil {
			return err
		}
		for _, c := range changes {
			if err := send(c.Value, c.Deleted); err != nil {
				return err
			}
		}
	}
}

// register puts an endpoint of the service into the registry, until a minute from now.
func (r *endpointRegistry) register(name, service string) {
	r.all.Put(name, &registry.NetworkServiceEndpoint{Name: name, NetworkServiceNames: []string{service}, ExpirationTime: timestamppb.New(time.Now().Add(time.Minute))})
}

// setAway has the registry break all watches and open no more.
func (r *endpointRegistry) setAway(away bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away = away; away {
		close(r.end)
		r.end = make(chan struct{})
	}
}

func (r *endpointRegistry) watches() (open, ever int) {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open, r.ever
}

// A thousand wires that wait for a service share one watch, ask ever more rarely,
// and all of them get the endpoint that comes at once, though not in the same
// moment.
func TestManyWiresWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 1000
		m, c := newManager(t)
		m.answer(nserr.NoEndpoint.Errorf("none yet"))
		var waiting sync.WaitGroup
		for range many {
			waiting.Go(func() {
				if _, err := c.Request(t.Context(), Request{Service: "db", Retry: true}); err != nil {
					t.Error(err)
				}
			})
		}
		pass(20 * time.Second)
		if open, ever := m.endpoints.watches(); open != 1 || ever != 2 {
			t.Errorf("%d watches are open, %d looks, want 1 watch and 1 look before it", open, ever)
		}
		m.take()
		pass(10 * time.Second)
		if n := len(m.take()); n > many {
			t.Errorf("%d wires asked %d times in 10 s", many, n)
		}
		m.endpoints.register("elsewhere", "lan")
		pass(100 * time.Millisecond)
		if n := len(m.take()); n > many/10 {
			t.Errorf("%d wires asked %d times when an endpoint of another service came", many, n)
		}
		m.answer(nil)
		came := time.Now()
		m.endpoints.register("one", "db")
		pass(100 * time.Millisecond)
		asked := m.take()
		moments := make(map[time.Duration]int)
		for _, a := range asked {
			moments[a.at.Sub(came)/(10*time.Millisecond)]++
		}
		if len(asked) != many {
			t.Errorf("%d wires asked %d times", many, len(asked))
		}
		for _, n := range moments {
			if n > many/2 {
				t.Errorf("%d of %d asked within 10 ms", n, many)
			}
		}
		waiting.Wait()
		if d := time.Since(came); d > 100*time.Millisecond {
			t.Errorf("all were up after %v", d)
		}
		if open, _ := m.endpoints.watches(); open != 0 {
			t.Errorf("%d watches are open when nobody waits", open)
		}
	})
}

// What wakes a wire that waits, and what does not.
func TestWhatWiresWaitFor(t *testing.T) {
	none, unknown := nserr.NoEndpoint, nserr.UnknownService
	for _, tt := range []struct {
		name   string
		reason *nserr.Reason
		pinned string
		event  func(*endpointRegistry)
		wakes  bool
	}{
		{"an endpoint comes", none, "", func(r *endpointRegistry) { r.register("two", "db") }, true},
		{"a service that was not known", unknown, "", func(r *endpointRegistry) { r.register("two", "db") }, true},
		{"an endpoint gets other labels", nserr.NoMatch, "", func(r *endpointRegistry) {
			r.all.Put("one", &registry.NetworkServiceEndpoint{Name: "one", NetworkServiceNames: []string{"db"},
				NetworkServiceLabels: map[string]*registry.NetworkServiceLabels{"db": {Labels: map[string]string{"app": "web"}}}})
		}, true},
		{"one that does not match registers again", nserr.NoMatch, "", func(r *endpointRegistry) { r.register("one", "db") }, false},
		{"one that failed registers again", nserr.EndpointsFailed, "", func(r *endpointRegistry) { r.register("one", "db") }, true},
		{"one that was gone registers again", nserr.EndpointGone, "", func(r *endpointRegistry) { r.register("one", "db") }, true},
		{"one leaves", nserr.EndpointsFailed, "", func(r *endpointRegistry) { r.all.Delete("one") }, false},
		{"one that left comes again", none, "", func(r *endpointRegistry) { r.all.Delete("one"); pass(time.Millisecond); r.register("one", "db") }, true},
		{"the one that is wanted comes", nserr.UnknownEndpoint, "two", func(r *endpointRegistry) { r.register("two", "db") }, true},
		{"another than the one that is wanted", nserr.UnknownEndpoint, "two", func(r *endpointRegistry) { r.register("three", "db") }, false},
		{"nothing to wait for", nserr.NoForwarder, "", func(r *endpointRegistry) { r.register("two", "db") }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, c := newManager(t)
				m.endpoints.register("one", "db")
				m.answer(tt.reason.Errorf("not now"))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended := make(chan error, 1)
				go func() {
					_, err := c.Request(ctx, Request{Service: "db", Endpoint: tt.pinned, Retry: true})
					ended <- err
				}()
				pass(time.Minute)
				m.take()
				for len(m.take()) == 0 { // until it has just asked in vain
					pass(10 * time.Millisecond)
				}
				pass(time.Second)
				m.take()
				tt.event(m.endpoints)
				pass(100 * time.Millisecond)
				if asked := m.take(); len(asked) > 0 != tt.wakes {
					t.Errorf("asked %d times", len(asked))
				}
				cancel()
				if err := <-ended; !errors.Is(err, tt.reason) {
					t.Errorf("in the end: %v", err)
				}
				if open, _ := m.endpoints.watches(); open != 0 {
					t.Errorf("%d watches are left", open)
				}
			})
		})
	}
}

// Each service has a watch of its own; one of another domain has none, and is asked
// for more often instead; so it is while the registry cannot be watched, and what
// came meanwhile is found when it can.
func TestWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newManager(t)
		m.answer(nserr.NoEndpoint.Errorf("none"))
		for i, service := range []string{"db", "db", "lan", "db@elsewhere"} {
			w := connectWaiting(t, m, c, service)
			if i == 1 {
				defer w.Close(t.Context())
			}
		}
		pass(2 * time.Minute)
		if open, _ := m.endpoints.watches(); open != 2 {
			t.Errorf("%d watches for two services of this domain", open)
		}
		rates := func() (out map[string]int) {
			m.take()
			pass(2 * time.Minute)
			out = make(map[string]int)
			for _, a := range m.take() {
				out[a.service]++
			}
			return out
		}
		if n := rates(); n["lan"] > 2*6 || n["db@elsewhere"] < 2*24 { // each attempt is two Requests
			t.Errorf("asked %v in 2 minutes", n)
		}
		m.endpoints.setAway(true)
		if n := rates(); n["lan"] < 2*20 {
			t.Errorf("asked %v in 2 minutes without a watch", n)
		}
		m.endpoints.register("one", "lan")
		m.endpoints.setAway(false)
		pass(6 * time.Second) // the next attempt to watch
		if open, _ := m.endpoints.watches(); open != 2 {
			t.Errorf("%d watches for two services of this domain", open)
		}
		m.take()
		m.answer(nil)
		m.endpoints.register("two", "db")
		pass(100 * time.Millisecond)
		for _, a := range m.take() {
			if a.service == "lan" {
				t.Errorf("%s is asked for", a.service)
			}
		}
		if open, _ := m.endpoints.watches(); open != 1 {
			t.Errorf("%d watches when one service is waited for", open)
		}
	})
}

// connectWaiting makes a wire that is up and has just lost its endpoint.
func connectWaiting(t *testing.T, m *manager, c *Client, service string) *Wire {
	t.Helper()
	m.mu.Lock()
	fail := m.fail
	m.fail = nil
	m.mu.Unlock()
	w, err := c.Request(t.Context(), Request{Service: service})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	m.answer(fail)
	m.tell(w.ID(), networkservice.State_DOWN)
	synctest.Wait()
	return w
}

// A wire that is closed while it waits is not heard of again.
func TestCloseWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newManager(t)
		m.answer(nserr.EndpointsFailed.Errorf("none"))
		var wires []*Wire
		for i := range 3 {
			wires = append(wires, connectWaiting(t, m, c, fmt.Sprint("db-", i)))
		}
		pass(time.Minute)
		if open, _ := m.endpoints.watches(); open != 3 {
			t.Errorf("%d watches", open)
		}
		_ = wires[0].Close(t.Context())
		wires[1].Leave()
		if open, _ := m.endpoints.watches(); open != 1 {
			t.Errorf("%d watches are left for one wire", open)
		}
		m.take()
		m.endpoints.register("one", "db-0")
		m.endpoints.register("two", "db-1")
		pass(200 * time.Millisecond)
		for _, a := range m.take() {
			if !strings.HasSuffix(a.service, "-2") {
				t.Errorf("%s is asked for", a.service)
			}
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package registration

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a registry that does what a test wants.
type fake struct {
	registry.UnimplementedNetworkServiceEndpointRegistryServer
	t    *testing.T
	life time.Duration // of an entry

	mu         sync.Mutex
	refuse     error                               // of Register; guarded by mu
	blind      bool                                // refuses watches; guarded by mu
	entry      *registry.NetworkServiceEndpoint    // guarded by mu
	registered []time.Time                         // guarded by mu
	gone       chan struct{}                       // closed when the entry is gone; guarded by mu
	services   map[string]*registry.NetworkService // guarded by mu
}

func newFake(t *testing.T, life time.Duration) (*fake, *rpc.Local) {
	f := &fake{t: t, life: life, gone: make(chan struct{}), services: make(map[string]*registry.NetworkService)}
	l := rpc.NewLocal(rpc.LocalOptions{Logger: slog.New(slog.DiscardHandler)})
	regpath.RegisterEndpoints(l, f)
	regpath.RegisterServices(l, &fakeServices{fake: f})
	t.Cleanup(l.Close)
	return f, l
}

func (f *fake) Register(_ context.Context, nse *registry.NetworkServiceEndpoint) (*registry.NetworkServiceEndpoint, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return nil, f.refuse
	}
	now := time.Now()
	f.registered = append(f.registered, now)
	nse = proto.CloneOf(nse)
	nse.ExpirationTime = timestamppb.New(now.Add(f.life))
	if nse.InitialRegistrationTime == nil {
		nse.InitialRegistrationTime = timestamppb.New(now)
	}
	f.entry = nse
	return nse, nil
}

func (f *fake) Find(q *registry.NetworkServiceEndpointQuery, s registry.NetworkServiceEndpointRegistry_FindServer) error {
	f.mu.Lock()
	entry, gone, blind := f.entry, f.gone, f.blind
	f.mu.Unlock()
	if blind {
		return nserr.NotAllowed.Errorf("no watches")
	}
	if err := s.Send(&registry.NetworkServiceEndpointResponse{NetworkServiceEndpoint: entry}); err != nil {
		return err
	}
	select {
	case <-s.Context().Done():
		return nil
	case <-gone:
		return s.Send(&registry.NetworkServiceEndpointResponse{NetworkServiceEndpoint: entry, Deleted: true})
	}
}

func (f *fake) Unregister(context.Context, *registry.NetworkServiceEndpoint) (*emptypb.Empty, error) {
	f.lose()
	return &emptypb.Empty{}, nil
}

// lose forgets the entry and tells whoever watches.
func (f *fake) lose() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entry = nil
	close(f.gone)
	f.gone = make(chan struct{})
}

func (f *fake) set(refuse error, blind bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse, f.blind = refuse, blind
}

// since returns how many registrations have come after the given time.
func (f *fake) since(at time.Time) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.registered {
		if r.After(at) {
			n++
		}
	}
	return n
}

type fakeServices struct {
	registry.UnimplementedNetworkServiceRegistryServer
	*fake
}

func (f *fakeServices) Register(_ context.Context, ns *registry.NetworkService) (*registry.NetworkService, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.services[ns.GetName()] = ns
	return ns, nil
}

func (f *fakeServices) Find(q *registry.NetworkServiceQuery, s registry.NetworkServiceRegistry_FindServer) error {
	f.mu.Lock()
	ns := f.services[q.GetNetworkService().GetName()]
	f.mu.Unlock()
	if ns == nil {
		return nil
	}
	return s.Send(&registry.NetworkServiceResponse{NetworkService: ns})
}

func (f *fakeServices) Unregister(context.Context, *registry.NetworkService) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func config(l *rpc.Local) Config {
	return Config{
		Registry: l.Dial(rpc.LocalCaller{}),
		Endpoint: &registry.NetworkServiceEndpoint{Name: "db-1", Url: "tcp://x:1", NetworkServiceNames: []string{"db"}},
		Services: []*registry.NetworkService{{Name: "db", Payload: "IP"}},
		Logger:   slog.New(slog.DiscardHandler),
	}
}

func start(t *testing.T, c Config) *Registration {
	t.Helper()
	r, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// An entry is renewed at a third of its life, or up to a tenth of that earlier.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l := newFake(t, time.Minute)
		r := start(t, config(l))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		times := f.registered
		if n := len(times); n < 31 || n > 34 {
			t.Errorf("%d registrations in ten minutes", n)
		}
		for i := 1; i < len(times); i++ {
			if d := times[i].Sub(times[i-1]); d < 18*time.Second || d > 20*time.Second {
				t.Errorf("renewal after %v", d)
			}
		}
		if got := f.entry.GetInitialRegistrationTime().AsTime(); !got.Equal(times[0]) {
			t.Errorf("initial registration time %v, want that of the first", got)
		}
		if err := r.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if f.entry != nil {
			t.Error("the entry is left")
		}
	})
}

// An entry that is gone is registered again within a tenth of a second, and once
// more when everybody has heard of the loss; then the usual pace is taken up again.
func TestLostEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l := newFake(t, time.Minute)
		r := start(t, config(l))
		defer r.Abandon()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		lost := time.Now()
		f.mu.Lock()
		clear(f.services)
		f.mu.Unlock()
		f.lose()
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if n := f.since(lost); n != 1 || f.services["db"] == nil {
			t.Errorf("%d registrations a tenth of a second later, services %v", n, f.services)
		}
		time.Sleep(confirmAfter)
		synctest.Wait()
		if n := f.since(lost); n != 2 {
			t.Errorf("%d registrations %v later", n, confirmAfter)
		}
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if n := f.since(lost); n != 2 {
			t.Errorf("%d registrations after 15 s", n)
		}
	})
}

// While the registry is away the attempts back off; when it is back one of them
// succeeds.
func TestRegistryAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l := newFake(t, time.Minute)
		r := start(t, config(l))
		defer r.Abandon()
		f.set(nserr.PeerDown.Errorf("away"), true)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		back := time.Now()
		f.set(nil, false)
		time.Sleep(retry.Max)
		synctest.Wait()
		if n := f.since(back); n < 1 || n > 2 { // it may be confirmed
			t.Errorf("%d registrations when the registry was back at %v: %v", n, back, f.registered)
		}
		if f.entry == nil {
			t.Error("not registered again")
		}
	})
}

// wired is a connection that there is only while the registry is there. As gRPC's it
// refuses a call meanwhile, unless that wants to wait.
type wired struct {
	grpc.ClientConnInterface
	mu sync.Mutex
	up chan struct{} // closed while there is a connection; guarded by mu
}

func (w *wired) set(up bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if up {
		close(w.up)
	} else {
		w.up = make(chan struct{})
	}
}

func (w *wired) reach(ctx context.Context, opts []grpc.CallOption) error {
	w.mu.Lock()
	up := w.up
	w.mu.Unlock()
	select {
	case <-up:
		return nil
	default:
	}
	for _, o := range opts {
		if o, ok := o.(grpc.FailFastCallOption); ok && !o.FailFast {
			select {
			case <-up:
				return nil
			case <-ctx.Done():
				return nserr.TimedOut.Errorf("no connection")
			}
		}
	}
	return nserr.PeerDown.Errorf("no connection")
}

func (w *wired) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if err := w.reach(ctx, opts); err != nil {
		return err
	}
	return w.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
}

func (w *wired) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := w.reach(ctx, opts); err != nil {
		return nil, err
	}
	return w.ClientConnInterface.NewStream(ctx, desc, method, opts...)
}

// A registry that was away for some time is registered at the moment that there is a
// connection to it again, the first time as well as later.
func TestRegisteredAsSoonAsConnected(t *testing.T) {
	for _, away := range []time.Duration{time.Second, 7 * time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			f, l := newFake(t, time.Minute)
			c := config(l)
			w := &wired{ClientConnInterface: c.Registry, up: make(chan struct{})}
			c.Registry = w
			comeBack := func() {
				time.Sleep(away)
				synctest.Wait()
				w.set(true)
			}
			back := time.Now().Add(away)
			go comeBack()
			r := start(t, c)
			defer r.Abandon()
			if late := time.Since(back); late > retry.Max && away > callTimeout || late > 0 && away < callTimeout {
				t.Errorf("away for %v at first: registered %v late", away, late)
			}
			time.Sleep(30 * time.Second)
			f.set(nil, false)
			w.set(false)
			f.lose()
			back = time.Now().Add(away)
			comeBack()
			synctest.Wait()
			if late := f.registered[len(f.registered)-1].Sub(back); away < callTimeout && late != 0 {
				t.Errorf("away for %v: registered %v late", away, late)
			}
		})
	}
}

// Neither a registry that does not let itself be watched nor one whose clock is
// behind is asked all the time.
func TestNoBusyLoop(t *testing.T) {
	for name, spoil := range map[string]func(*fake){
		"no watches":           func(f *fake) { f.set(nil, true) },
		"entries have expired": func(f *fake) { f.life = -time.Hour },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, l := newFake(t, time.Minute)
				spoil(f)
				r := start(t, config(l))
				defer r.Abandon()
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if n := len(f.registered); n < 10 || n > 700 {
					t.Errorf("%d registrations in ten minutes", n)
				}
			})
		})
	}
}

// Start waits for a registry that is away, but not for one that refuses.
func TestStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l := newFake(t, time.Minute)
		f.set(nserr.NameOwned.Errorf("somebody else's"), false)
		if _, err := Start(t.Context(), config(l)); !errors.Is(err, nserr.NameOwned) {
			t.Errorf("refused: %v", err)
		}
		f.set(nserr.PeerDown.Errorf("away"), false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := Start(ctx, config(l)); !errors.Is(err, nserr.PeerDown) {
			t.Errorf("away: %v", err)
		}
		go func() {
			time.Sleep(time.Minute)
			f.set(nil, false)
		}()
		r := start(t, config(l))
		r.Abandon()
		if f.entry == nil {
			t.Error("Abandon has unregistered")
		}
	})
}

// A service that exists is left as it is; one with another payload is a mistake.
func TestServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l := newFake(t, time.Minute)
		matches := []*registry.Match{{Fallthrough: true}}
		f.services["db"] = &registry.NetworkService{Name: "db", Payload: "IP", Matches: matches}
		r := start(t, config(l))
		r.Abandon()
		if len(f.services["db"].GetMatches()) != 1 {
			t.Error("the operator's matches are gone")
		}
		f.services["db"].Payload = "ETHERNET"
		if _, err := Start(t.Context(), config(l)); !errors.Is(err, nserr.PayloadMismatch) {
			t.Errorf("another payload: %v", err)
		}
	})
}

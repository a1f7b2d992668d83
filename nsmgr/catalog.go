// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/internal/backoff"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/query"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/watch"
)

// catalog is the manager's view of the domain's registry: one watch for
// services and one for endpoints keep it current, so that a Request asks nobody.
// What the registry said stays known while the registry is away.
type catalog struct {
	services  *view[*registry.NetworkService]
	endpoints *view[*registry.NetworkServiceEndpoint]
}

func newCatalog() *catalog {
	return &catalog{
		services:  newView[*registry.NetworkService](func(*registry.NetworkService) []string { return nil }),
		endpoints: newView((*registry.NetworkServiceEndpoint).GetNetworkServiceNames),
	}
}

// view holds the objects of one kind by name and, for endpoints, by service.
type view[T query.Object] struct {
	objects *watch.Map[string, T] // immutable messages
	groups  func(T) []string

	// gone, if not nil, is told what the registry has come back without.
	gone func(names map[string]bool)

	ready     chan struct{} // closed when the first snapshot is complete
	readyOnce sync.Once

	mu      sync.Mutex
	byGroup map[string]map[string]struct{} // names by service; guarded by mu
	dropped map[string]bool                // names that the last replace has not found again; guarded by mu
}

func newView[T query.Object](groups func(T) []string) *view[T] {
	return &view[T]{objects: watch.New[string, T](), groups: groups, ready: make(chan struct{}), byGroup: make(map[string]map[string]struct{})}
}

// learn takes in what the registry tells. It tells all that it has whenever a watch is
// opened: what is known already is no news for those who watch the view.
func (v *view[T]) learn(object T) {
	if old, known := v.objects.Get(object.GetName()); !known || !proto.Equal(old, object) {
		v.put(object)
	}
}

func (v *view[T]) put(object T) {
	name := object.GetName()
	v.mu.Lock()
	defer v.mu.Unlock()
	if old, ok := v.objects.Get(name); ok {
		v.unindex(old)
	}
	for _, g := range v.groups(object) {
		names := v.byGroup[g]
		if names == nil {
			names = make(map[string]struct{})
			v.byGroup[g] = names
		}
		names[name] = struct{}{}
	}
	v.objects.Put(name, object)
}

func (v *view[T]) delete(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if old, ok := v.objects.Get(name); ok {
		v.unindex(old)
		v.objects.Delete(name)
	}
}

// unindex wants mu held.
func (v *view[T]) unindex(object T) {
	for _, g := range v.groups(object) {
		delete(v.byGroup[g], object.GetName())
		if len(v.byGroup[g]) == 0 {
			delete(v.byGroup, g)
		}
	}
}

// group returns the objects of one service, in the order of their names.
func (v *view[T]) group(g string) []T {
	v.mu.Lock()
	names := slices.Sorted(maps.Keys(v.byGroup[g]))
	v.mu.Unlock()
	out := make([]T, 0, len(names))
	for _, n := range names {
		if object, ok := v.objects.Get(n); ok {
			out = append(out, object)
		}
	}
	return out
}

// replace makes the view exactly what a complete answer of the registry says.
func (v *view[T]) replace(all []T) {
	keep := make(map[string]bool, len(all))
	for _, object := range all {
		keep[object.GetName()] = true
		v.learn(object)
	}
	dropped := make(map[string]bool)
	for name := range v.objects.All() {
		if !keep[name] {
			dropped[name] = true
		}
	}
	v.mu.Lock()
	v.dropped = dropped // before they are seen to be gone
	v.mu.Unlock()
	for name := range dropped {
		v.delete(name)
	}
	if v.gone != nil && len(dropped) > 0 {
		v.gone(dropped)
	}
	v.readyOnce.Do(func() { close(v.ready) })
}

// lost reports whether an object is gone since the registry came back without it,
// and not since somebody has deleted it.
func (v *view[T]) lost(name string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.dropped[name]
}

// finder is how one kind of object is got from a registry.
type finder[T query.Object] func(ctx context.Context, watch bool, opts ...grpc.CallOption) (stream[T], error)

// stream gives one object after the other; deleted is only set when watching.
type stream[T query.Object] func() (object T, deleted bool, err error)

func findServices(cc grpc.ClientConnInterface) finder[*registry.NetworkService] {
	client := registry.NewNetworkServiceRegistryClient(cc)
	return finderOf(func(ctx context.Context, watching bool, opts ...grpc.CallOption) (received[*registry.NetworkServiceResponse], error) {
		return client.Find(ctx, &registry.NetworkServiceQuery{NetworkService: &registry.NetworkService{}, Watch: watching}, opts...)
	}, (*registry.NetworkServiceResponse).GetNetworkService)
}

func findEndpoints(cc grpc.ClientConnInterface) finder[*registry.NetworkServiceEndpoint] {
	client := registry.NewNetworkServiceEndpointRegistryClient(cc)
	return finderOf(func(ctx context.Context, watching bool, opts ...grpc.CallOption) (received[*registry.NetworkServiceEndpointResponse], error) {
		return client.Find(ctx, &registry.NetworkServiceEndpointQuery{NetworkServiceEndpoint: &registry.NetworkServiceEndpoint{}, Watch: watching}, opts...)
	}, (*registry.NetworkServiceEndpointResponse).GetNetworkServiceEndpoint)
}

// received is the stream of a Find.
type received[R any] interface {
	grpc.ClientStream
	Recv() (R, error)
}

// finderOf makes a finder of a Find that asks for everything.
func finderOf[T query.Object, R interface{ GetDeleted() bool }](find func(ctx context.Context, watching bool, opts ...grpc.CallOption) (received[R], error), object func(R) T) finder[T] {
	return func(ctx context.Context, watching bool, opts ...grpc.CallOption) (stream[T], error) {
		s, err := find(ctx, watching, opts...)
		if err != nil {
			return nil, err
		}
		if watching {
			waitOpened(ctx, s)
		}
		return func() (T, bool, error) {
			r, err := s.Recv()
			return object(r), r.GetDeleted(), err
		}, nil
	}
}

// openedTimeout bounds waitOpened: the reference says that it watches only with its
// first object.
const openedTimeout = 300 * time.Millisecond

// waitOpened waits until the registry has begun to watch, so that a snapshot taken
// afterwards misses nothing.
func waitOpened(ctx context.Context, s grpc.ClientStream) {
	opened := make(chan struct{})
	go func() { // ends with the stream at the latest, which ends with follow's context
		defer close(opened)
		_, _ = s.Header()
	}()
	select {
	case <-opened:
	case <-ctx.Done():
	case <-time.After(openedTimeout):
	}
}

var watchRetry = backoff.Policy{Min: 50 * time.Millisecond, Max: 2 * time.Second}

// steady is how long a watch must have lived for the back-off to start over.
const steady = 5 * time.Second

// follow keeps v current until ctx ends.
func follow[T query.Object](ctx context.Context, log *slog.Logger, kind string, v *view[T], find finder[T]) {
	var breaks nserr.Book
	for attempt := 0; ; attempt++ {
		began := time.Now()
		watching, cancel := context.WithCancelCause(ctx)
		err := followOnce(watching, v, find, rpc.EndSuperseded(cancel))
		cancel(nil)
		if ctx.Err() != nil {
			return
		}
		if context.Cause(watching) == rpc.ErrSuperseded {
			continue
		}
		if time.Since(began) >= steady {
			attempt = 0
		}
		log.Log(ctx, breaks.Level(slog.LevelWarn, kind, ""), "registry watch broke, what is known stays known", "kind", kind, "error", err)
		if watchRetry.Wait(ctx, attempt) != nil {
			return
		}
	}
}

// followOnce opens a watch, then takes a complete snapshot, then applies what
// the watch tells: in this order nothing falls between the two. The streams end with
// ctx.
func followOnce[T query.Object](ctx context.Context, v *view[T], find finder[T], watchOptions ...grpc.CallOption) error {
	changes, err := find(ctx, true, watchOptions...)
	if err != nil {
		return err
	}
	snapshot, err := find(ctx, false)
	if err != nil {
		return err
	}
	var all []T
	for {
		object, _, err := snapshot()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		all = append(all, object)
	}
	v.replace(all)
	for {
		object, deleted, err := changes()
		switch {
		case err != nil:
			return err
		case deleted:
			v.delete(object.GetName())
		default:
			v.learn(object)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"maps"
	"slices"
	"sync"
	"testing"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/openvwire/nsm/test/interop/ref"
)

// startAloneRegistry starts a registry that keeps what it is told and does nothing else:
// gRPC, with its generated code and default options. None that encodes what it sends takes less.
func startAloneRegistry(t testing.TB) (url string) {
	r := &aloneRegistry{
		byName:    make(map[string]*api.NetworkServiceEndpoint),
		byService: make(map[string]map[string]*api.NetworkServiceEndpoint),
		watchers:  make(map[string]map[chan *api.NetworkServiceEndpoint]bool),
	}
	return ref.Serve(t, "gRPC", nil, []string{ref.Loopback}, func(context.Context, []string) func(*grpc.Server) {
		return func(server *grpc.Server) { api.RegisterNetworkServiceEndpointRegistryServer(server, r) }
	}).URL()
}

// aloneRegistry finds by a whole name, or by the only service that an endpoint has.
type aloneRegistry struct {
	mu        sync.Mutex // guards all below
	byName    map[string]*api.NetworkServiceEndpoint
	byService map[string]map[string]*api.NetworkServiceEndpoint
	watchers  map[string]map[chan *api.NetworkServiceEndpoint]bool // of each service
}

func (r *aloneRegistry) Register(_ context.Context, e *api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error) {
	service := e.GetNetworkServiceNames()[0]
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byName[e.GetName()] = e
	if r.byService[service] == nil {
		r.byService[service] = make(map[string]*api.NetworkServiceEndpoint)
	}
	r.byService[service][e.GetName()] = e
	for told := range r.watchers[service] {
		select {
		case told <- e:
		default: // slower than its socket: it is told of the next
		}
	}
	return e, nil
}

func (*aloneRegistry) Unregister(context.Context, *api.NetworkServiceEndpoint) (*emptypb.Empty, error) {
	return new(emptypb.Empty), nil
}

func (r *aloneRegistry) Find(q *api.NetworkServiceEndpointQuery, stream api.NetworkServiceEndpointRegistry_FindServer) error {
	var told chan *api.NetworkServiceEndpoint
	var found []*api.NetworkServiceEndpoint
	r.mu.Lock()
	if services := q.GetNetworkServiceEndpoint().GetNetworkServiceNames(); len(services) > 0 {
		found = slices.Collect(maps.Values(r.byService[services[0]]))
		if q.GetWatch() {
			told = make(chan *api.NetworkServiceEndpoint, 16)
			if r.watchers[services[0]] == nil {
				r.watchers[services[0]] = make(map[chan *api.NetworkServiceEndpoint]bool)
			}
			r.watchers[services[0]][told] = true
			defer r.forget(services[0], told)
		}
	} else if e := r.byName[q.GetNetworkServiceEndpoint().GetName()]; e != nil {
		found = append(found, e)
	}
	r.mu.Unlock()
	for _, e := range found {
		if err := stream.Send(&api.NetworkServiceEndpointResponse{NetworkServiceEndpoint: e}); err != nil {
			return err
		}
	}
	for told != nil {
		select {
		case e := <-told:
			if err := stream.Send(&api.NetworkServiceEndpointResponse{NetworkServiceEndpoint: e}); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
	return nil
}

func (r *aloneRegistry) forget(service string, told chan *api.NetworkServiceEndpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.watchers[service], told)
}

// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"

	"github.com/networkservicemesh/api/pkg/api/networkservice/payload"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/watch"
)

// Services lists the network services of the domain. How many endpoints a service
// has is as of the event; an endpoint that comes or goes makes none.
func (s *Server) Services(req *adminv1.ServicesRequest, stream grpc.ServerStreamingServer[adminv1.ServiceEvent]) error {
	ctx := stream.Context()
	if _, err := identify(ctx); err != nil {
		return err
	}
	f := req.GetFilter()
	l := newList(f, func(t adminv1.EventType, x *adminv1.Service) error {
		return stream.Send(&adminv1.ServiceEvent{Type: t, Service: x})
	})
	return end(ctx, follow(ctx, s.config.Services, func(initial bool, changes []watch.Change[string, *registry.NetworkService]) error {
		for _, c := range changes {
			var err error
			if c.Deleted || !selectsService(f, c.Value) {
				err = l.hide(c.Key)
			} else {
				err = l.show(c.Key, s.service(c.Value))
			}
			if err != nil {
				return err
			}
		}
		if initial {
			return l.synced()
		}
		return nil
	}))
}

// selectsService: a service has the labels of any of its matches' metadata.
func selectsService(f *adminv1.Filter, ns *registry.NetworkService) bool {
	if f.GetName() != "" && f.GetName() != ns.GetName() {
		return false
	}
	if len(f.GetLabels()) == 0 {
		return true
	}
	for _, m := range ns.GetMatches() {
		if has(m.GetMetadata().GetLabels(), f.GetLabels()) {
			return true
		}
	}
	return false
}

// ApplyService registers the service in the caller's name.
func (s *Server) ApplyService(ctx context.Context, req *adminv1.ApplyServiceRequest) (*adminv1.ApplyServiceResponse, error) {
	if req.GetService().GetName() == "" {
		return nil, nserr.BadService.Errorf("the request has no service with a name")
	}
	if _, err := identify(ctx); err != nil {
		return nil, err
	}
	before, err := s.lookUp(ctx, req.GetService().GetName())
	if err != nil {
		return nil, err
	}
	after, err := s.config.Proxy.Register(withoutHeader(ctx), registryService(req.GetService()))
	if err != nil {
		return nil, err
	}
	result := adminv1.ApplyServiceResponse_RESULT_CONFIGURED
	switch {
	case before == nil:
		result = adminv1.ApplyServiceResponse_RESULT_CREATED
	case sameService(before, after):
		result = adminv1.ApplyServiceResponse_RESULT_UNCHANGED
	}
	return &adminv1.ApplyServiceResponse{Result: result, Service: s.service(after)}, nil
}

// DeleteService unregisters the service in the caller's name.
func (s *Server) DeleteService(ctx context.Context, req *adminv1.DeleteServiceRequest) (*adminv1.DeleteServiceResponse, error) {
	if _, err := identify(ctx); err != nil {
		return nil, err
	}
	ns, err := s.lookUp(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if ns == nil {
		return nil, nserr.UnknownService.Errorf("network service %q is not found", req.GetName())
	}
	if _, err := s.config.Proxy.Unregister(withoutHeader(ctx), ns); err != nil {
		return nil, err
	}
	return &adminv1.DeleteServiceResponse{}, nil
}

// withoutHeader keeps the path of the registration, tokens and all, out of the
// header of our reply.
func withoutHeader(ctx context.Context) context.Context {
	return grpc.NewContextWithServerTransportStream(ctx, nil)
}

// lookUp asks the registry itself, nil if it has no such service.
func (s *Server) lookUp(ctx context.Context, name string) (*registry.NetworkService, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := registry.NewNetworkServiceRegistryClient(s.config.Registry).Find(ctx, &registry.NetworkServiceQuery{
		NetworkService: &registry.NetworkService{Name: name},
	})
	if err != nil {
		return nil, err
	}
	var found *registry.NetworkService
	err = rpc.Drain(stream, func(r *registry.NetworkServiceResponse) error {
		if r.GetNetworkService().GetName() == name {
			found = r.GetNetworkService()
		}
		return nil
	})
	return found, err
}

// sameService leaves out who registered it.
func sameService(a, b *registry.NetworkService) bool {
	a, b = proto.CloneOf(a), proto.CloneOf(b)
	a.PathIds, b.PathIds = nil, nil
	return proto.Equal(a, b)
}

func (s *Server) service(ns *registry.NetworkService) *adminv1.Service {
	out := &adminv1.Service{
		Name: ns.GetName(), Payload: ns.GetPayload(), PathIds: ns.GetPathIds(),
		Endpoints: uint32(len(s.config.Offering(ns.GetName()))),
	}
	if out.Payload == "" {
		out.Payload = payload.IP
	}
	for _, m := range ns.GetMatches() {
		x := &adminv1.Match{SourceSelector: m.GetSourceSelector(), Fallthrough: m.GetFallthrough()}
		for _, r := range m.GetRoutes() {
			x.Routes = append(x.Routes, &adminv1.Destination{DestinationSelector: r.GetDestinationSelector(), Weight: r.GetWeight()})
		}
		if m.GetMetadata() != nil {
			x.Metadata = &adminv1.Metadata{Labels: m.GetMetadata().GetLabels()}
		}
		out.Matches = append(out.Matches, x)
	}
	return out
}

func registryService(x *adminv1.Service) *registry.NetworkService {
	ns := &registry.NetworkService{Name: x.GetName(), Payload: x.GetPayload()}
	for _, m := range x.GetMatches() {
		out := &registry.Match{SourceSelector: m.GetSourceSelector(), Fallthrough: m.GetFallthrough()}
		for _, r := range m.GetRoutes() {
			out.Routes = append(out.Routes, &registry.Destination{DestinationSelector: r.GetDestinationSelector(), Weight: r.GetWeight()})
		}
		if m.GetMetadata() != nil {
			out.Metadata = &registry.Metadata{Labels: m.GetMetadata().GetLabels()}
		}
		ns.Matches = append(ns.Matches, out)
	}
	return ns
}

// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice/payload"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/query"
)

// serviceServer is the Server as registry.NetworkServiceRegistry.
type serviceServer struct{ *Server }

// Register creates or replaces a network service. The payload is IP unless
// another is given.
func (s serviceServer) Register(ctx context.Context, in *api.NetworkService) (*api.NetworkService, error) {
	if err := checkService(in); err != nil {
		return nil, err
	}
	return register(ctx, s.Server, s.services, in.GetName(), func(now time.Time, a admission) *api.NetworkService {
		ns := proto.CloneOf(in)
		ns.PathIds = a.ids
		if ns.Payload == "" {
			ns.Payload = payload.IP
		}
		return ns
	}, nil)
}

// Unregister removes a network service. An unknown one is gone already.
func (s serviceServer) Unregister(ctx context.Context, in *api.NetworkService) (*emptypb.Empty, error) {
	return unregister(ctx, s.Server, s.services, in.GetName())
}

// endpointServer is the Server as registry.NetworkServiceEndpointRegistry.
type endpointServer struct{ *Server }

// Register creates, renews or replaces an endpoint. The reply says until when
// it is registered: until the caller's token or ours expires, for MaxExpiry,
// or as long as asked for, whichever is shortest. An expiration_time in the
// past is not what anybody asks for and counts as none.
func (s endpointServer) Register(ctx context.Context, in *api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error) {
	if err := checkEndpoint(in); err != nil {
		return nil, err
	}
	return register(ctx, s.Server, s.endpoints, in.GetName(), func(now time.Time, a admission) *api.NetworkServiceEndpoint {
		nse := proto.CloneOf(in)
		nse.PathIds = a.ids
		expires := query.Earlier(a.expires, now.Add(s.maxExpiry))
		if t := in.GetExpirationTime(); t != nil && t.AsTime().After(now) {
			expires = query.Earlier(expires, t.AsTime())
		}
		nse.ExpirationTime = timestamppb.New(expires)
		if t := in.GetInitialRegistrationTime(); t == nil || t.AsTime().After(now) {
			nse.InitialRegistrationTime = timestamppb.New(now)
		}
		return nse
	}, func(old, nse *api.NetworkServiceEndpoint) error {
		found, err := s.rivals.meet(nse.GetName(), old.GetUrl(), nse.GetUrl(), time.Now(), s.maxExpiry)
		if found {
			s.log.Error("two run under one name: the one that came second is refused", "endpoint", nse.GetName(), "address", nse.GetUrl(), "refused", old.GetUrl())
		}
		nse.InitialRegistrationTime = old.GetInitialRegistrationTime()
		return err
	})
}

// Unregister removes an endpoint. An unknown one is gone already.
func (s endpointServer) Unregister(ctx context.Context, in *api.NetworkServiceEndpoint) (*emptypb.Empty, error) {
	return unregister(ctx, s.Server, s.endpoints, in.GetName())
}

// register admits the caller, answers the path and stores what build makes. If
// the name is registered already, inherit hands on what a renewal keeps, or refuses it.
func register[T Object](
	ctx context.Context, s *Server, store Store[T], name string,
	build func(now time.Time, a admission) T, inherit func(old, next T) error,
) (T, error) {
	var none T
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return none, err
	}
	defer leave()
	now := time.Now()
	a, err := s.admit(ctx, now)
	if err != nil {
		return none, err
	}
	if err := a.path.SetHeader(ctx); err != nil {
		return none, err
	}
	return store.Update(ctx, name, func(old T) (T, error) {
		next := build(now, a)
		if old == none || Expired(old, now) {
			return next, nil
		}
		if err := mayChange(s, old, a); err != nil {
			return none, err
		}
		if inherit != nil {
			if err := inherit(old, next); err != nil {
				return none, err
			}
		}
		return next, nil
	})
}

func unregister[T Object](ctx context.Context, s *Server, store Store[T], name string) (*emptypb.Empty, error) {
	var none T
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	now := time.Now()
	a, err := s.admit(ctx, now)
	if err != nil {
		return nil, err
	}
	if err := a.path.SetHeader(ctx); err != nil {
		return nil, err
	}
	_, err = store.Update(ctx, name, func(old T) (T, error) {
		if old == none || Expired(old, now) {
			return none, nil
		}
		return none, mayChange(s, old, a)
	})
	if err != nil {
		return nil, err
	}
	return new(emptypb.Empty), nil
}

// mayChange enforces that the first owner keeps a name (§4.2). A name without
// an owner is anybody's. An operator may change services: who has made one may be
// gone for ever. Endpoints go by themselves.
func mayChange[T Object](s *Server, old T, a admission) error {
	owner := Owner(old)
	if owner == "" || owner == a.ids[0] {
		return nil
	}
	if _, service := any(old).(*api.NetworkService); service && s.operates(a.ids[0]) {
		return nil
	}
	return nserr.NameOwned.Errorf("%q is owned by %s, not by %q", old.GetName(), owner, a.ids[0])
}

// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Find streams the network services that match the query and, to watch, what
// becomes of them.
func (s serviceServer) Find(q *api.NetworkServiceQuery, out api.NetworkServiceRegistry_FindServer) error {
	template := q.GetNetworkService()
	if err := checkServiceBounds(template); err != nil {
		return err
	}
	return find(s.Server, s.services, template, q.GetWatch(), out)
}

// Find streams the endpoints that match the query and, to watch, what becomes
// of them.
func (s endpointServer) Find(q *api.NetworkServiceEndpointQuery, out api.NetworkServiceEndpointRegistry_FindServer) error {
	template := q.GetNetworkServiceEndpoint()
	if err := checkEndpointBounds(template); err != nil {
		return err
	}
	return find(s.Server, s.endpoints, template, q.GetWatch(), out)
}

// find is not authorised, as in the reference (§4.2): whoever can connect may
// look. An endpoint that has expired is not sent, even when its removal is late.
func find[T Object](s *Server, store Store[T], template T, following bool, out grpc.ServerStream) error {
	ctx, leave, err := s.enter(out.Context())
	if err != nil {
		return err
	}
	defer leave()
	if following {
		return follow(ctx, store, template, out)
	}
	now := time.Now()
	for v, err := range store.Find(ctx, template) {
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if isPast(v.Expires, now) {
			continue
		}
		if err := out.SendMsg(v.Found); err != nil {
			return sendError(ctx, err)
		}
	}
	return nil
}

// follow sends the header as soon as the watch stands: a client that has the
// header misses nothing that happens from then on.
func follow[T Object](ctx context.Context, store Store[T], template T, out grpc.ServerStream) error {
	w, err := store.Watch(ctx, template)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := out.SendHeader(nil); err != nil {
		return sendError(ctx, err)
	}
	for {
		events, err := w.Next(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		for _, e := range events {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if !e.Deleted && isPast(e.Expires, now) {
				continue // its deletion follows
			}
			if err := out.SendMsg(e.answer()); err != nil {
				return sendError(ctx, err)
			}
		}
	}
}

// sendError says why a stream broke: because it was ended, or by itself.
func sendError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nserr.PeerDown.Errorf("sending to a client: %w", err)
}

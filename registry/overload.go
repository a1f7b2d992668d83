// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"slices"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/sdk/gate"
	"github.com/openvwire/nsm/sdk/rpc"
)

// gatedServices and gatedEndpoints are the services as others call them: what registers
// and looks up passes a gate (docs/protocol.md, P-96). What unregisters and watches does not.
type (
	gatedServices  struct{ serviceServer }
	gatedEndpoints struct{ endpointServer }
)

func (g gatedServices) Register(ctx context.Context, in *api.NetworkService) (*api.NetworkService, error) {
	leave, err := letIn(ctx, g.gate, g.services, &api.NetworkService{Name: in.GetName()})
	if err != nil {
		return nil, err
	}
	defer leave()
	return g.serviceServer.Register(ctx, in)
}

func (g gatedServices) Find(q *api.NetworkServiceQuery, out api.NetworkServiceRegistry_FindServer) error {
	return letLook(g.gate, q.GetWatch(), out, func() error { return g.serviceServer.Find(q, out) })
}

func (g gatedEndpoints) Register(ctx context.Context, in *api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error) {
	leave, err := letIn(ctx, g.gate, g.endpoints, &api.NetworkServiceEndpoint{Name: in.GetName()})
	if err != nil {
		return nil, err
	}
	defer leave()
	return g.endpointServer.Register(ctx, in)
}

func (g gatedEndpoints) Find(q *api.NetworkServiceEndpointQuery, out api.NetworkServiceEndpointRegistry_FindServer) error {
	return letLook(g.gate, q.GetWatch(), out, func() error { return g.endpointServer.Find(q, out) })
}

// letIn waits until what is to be registered under named's name may be. It is a renewal
// if the caller, as TLS has proved, is one of those through whom what stands there has
// come.
func letIn[T Object](ctx context.Context, g *gate.Gate, store Store[T], named T) (leave func(), err error) {
	caller := rpc.CallerFrom(ctx).ID
	return g.Enter(ctx, caller, func() gate.Visit {
		for v, err := range store.Find(ctx, named) {
			if err == nil && v.Object.GetName() == named.GetName() && slices.Contains(v.Object.GetPathIds(), caller) {
				return gate.Visit{Class: gate.Refresh, Of: v.Object.GetName()}
			}
		}
		return gate.Visit{Class: gate.Fresh}
	})
}

// letLook waits until a question may be answered, which most often somebody asks on
// behalf of a Request that was let in.
func letLook(g *gate.Gate, watch bool, out grpc.ServerStream, find func() error) error {
	if watch {
		return find()
	}
	ctx := out.Context()
	caller := rpc.CallerFrom(ctx).ID
	leave, err := g.Enter(ctx, caller, func() gate.Visit { return gate.Visit{Class: gate.Transit} })
	if err != nil {
		return err
	}
	defer leave()
	return find()
}

// SPDX-License-Identifier: Apache-2.0

package regpath

import (
	"context"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
)

// The generated Register functions of the api module accept a *grpc.Server and
// nothing else. The two below accept whatever can serve, an in-process peer
// included, and describe the same services.

// RegisterServices registers the service registry.NetworkServiceRegistry.
func RegisterServices(r grpc.ServiceRegistrar, srv registry.NetworkServiceRegistryServer) {
	r.RegisterService(describe("registry.NetworkServiceRegistry",
		registry.NetworkServiceRegistryServer.Register,
		func(srv registry.NetworkServiceRegistryServer, q *registry.NetworkServiceQuery, s grpc.ServerStream) error {
			return srv.Find(q, &grpc.GenericServerStream[registry.NetworkServiceQuery, registry.NetworkServiceResponse]{ServerStream: s})
		},
		registry.NetworkServiceRegistryServer.Unregister), srv)
}

// RegisterEndpoints registers the service registry.NetworkServiceEndpointRegistry.
func RegisterEndpoints(r grpc.ServiceRegistrar, srv registry.NetworkServiceEndpointRegistryServer) {
	r.RegisterService(describe("registry.NetworkServiceEndpointRegistry",
		registry.NetworkServiceEndpointRegistryServer.Register,
		func(srv registry.NetworkServiceEndpointRegistryServer, q *registry.NetworkServiceEndpointQuery, s grpc.ServerStream) error {
			return srv.Find(q, &grpc.GenericServerStream[registry.NetworkServiceEndpointQuery, registry.NetworkServiceEndpointResponse]{ServerStream: s})
		},
		registry.NetworkServiceEndpointRegistryServer.Unregister), srv)
}

// describe makes the description of a registry service: S is the interface of
// its server, T what is registered, Q what is asked, E the empty reply.
func describe[S, T, Q, E any](
	name string,
	register func(S, context.Context, *T) (*T, error),
	find func(S, *Q, grpc.ServerStream) error,
	unregister func(S, context.Context, *T) (*E, error),
) *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: name,
		HandlerType: (*S)(nil),
		Metadata:    "registry.proto",
		Methods: []grpc.MethodDesc{
			{MethodName: "Register", Handler: unary("/"+name+"/Register", register)},
			{MethodName: "Unregister", Handler: unary("/"+name+"/Unregister", unregister)},
		},
		Streams: []grpc.StreamDesc{{
			StreamName:    "Find",
			ServerStreams: true,
			Handler: func(srv any, stream grpc.ServerStream) error {
				q := new(Q)
				if err := stream.RecvMsg(q); err != nil {
					return err
				}
				return find(srv.(S), q, stream)
			},
		}},
	}
}

func unary[S, In, Out any](method string, call func(S, context.Context, *In) (*Out, error)) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := new(In)
		if err := decode(in); err != nil {
			return nil, err
		}
		if intercept == nil {
			return call(srv.(S), ctx, in)
		}
		info := &grpc.UnaryServerInfo{Server: srv, FullMethod: method}
		return intercept(ctx, in, info, func(ctx context.Context, req any) (any, error) {
			return call(srv.(S), ctx, req.(*In))
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package regpath

import (
	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/sdk/rpc"
)

// The generated Register functions of the api module accept a *grpc.Server and
// nothing else. The two below accept whatever can serve, an in-process peer
// included, and describe the same services.

// RegisterServices registers the service registry.NetworkServiceRegistry.
func RegisterServices(r grpc.ServiceRegistrar, srv registry.NetworkServiceRegistryServer) {
	const name = "registry.NetworkServiceRegistry"
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: name,
		HandlerType: (*registry.NetworkServiceRegistryServer)(nil),
		Metadata:    "registry.proto",
		Methods: []grpc.MethodDesc{
			rpc.Unary(name, "Register", registry.NetworkServiceRegistryServer.Register),
			rpc.Unary(name, "Unregister", registry.NetworkServiceRegistryServer.Unregister),
		},
		Streams: []grpc.StreamDesc{rpc.ServerStream("Find", findServices)},
	}, srv)
}

func findServices(srv registry.NetworkServiceRegistryServer, q *registry.NetworkServiceQuery,
	out *grpc.GenericServerStream[registry.NetworkServiceQuery, registry.NetworkServiceResponse]) error {
	return srv.Find(q, out)
}

// RegisterEndpoints registers the service registry.NetworkServiceEndpointRegistry.
func RegisterEndpoints(r grpc.ServiceRegistrar, srv registry.NetworkServiceEndpointRegistryServer) {
	const name = "registry.NetworkServiceEndpointRegistry"
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: name,
		HandlerType: (*registry.NetworkServiceEndpointRegistryServer)(nil),
		Metadata:    "registry.proto",
		Methods: []grpc.MethodDesc{
			rpc.Unary(name, "Register", registry.NetworkServiceEndpointRegistryServer.Register),
			rpc.Unary(name, "Unregister", registry.NetworkServiceEndpointRegistryServer.Unregister),
		},
		Streams: []grpc.StreamDesc{rpc.ServerStream("Find", findEndpoints)},
	}, srv)
}

func findEndpoints(srv registry.NetworkServiceEndpointRegistryServer, q *registry.NetworkServiceEndpointQuery,
	out *grpc.GenericServerStream[registry.NetworkServiceEndpointQuery, registry.NetworkServiceEndpointResponse]) error {
	return srv.Find(q, out)
}

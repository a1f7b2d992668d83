// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/sdk/rpc"
)

// RegisterServices puts a hop's services on whatever serves: a *grpc.Server or
// an in-process rpc.Local.
func RegisterServices(r grpc.ServiceRegistrar, server networkservice.NetworkServiceServer, monitor *Monitor) {
	type ns = networkservice.NetworkServiceServer
	const name = "networkservice.NetworkService"
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: name,
		HandlerType: (*ns)(nil),
		Methods: []grpc.MethodDesc{
			rpc.UnaryMethod(name, "Request", ns.Request),
			rpc.UnaryMethod(name, "Close", ns.Close),
		},
		Metadata: "networkservice.proto",
	}, server)

	type mc = networkservice.MonitorConnectionServer
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "connection.MonitorConnection",
		HandlerType: (*mc)(nil),
		Streams: []grpc.StreamDesc{rpc.StreamMethod("MonitorConnections",
			func(s mc, in *networkservice.MonitorScopeSelector, stream grpc.ServerStreamingServer[networkservice.ConnectionEvent]) error {
				return s.MonitorConnections(in, stream)
			})},
		Metadata: "connection.proto",
	}, monitor)
}

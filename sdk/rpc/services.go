// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
)

// The Register functions that the api module generates accept a *grpc.Server and
// nothing else. Those below accept a Local as well and describe the same services.
// Package regpath has the ones of the registry.

// RegisterNetworkService registers the service networkservice.NetworkService.
func RegisterNetworkService(r grpc.ServiceRegistrar, srv networkservice.NetworkServiceServer) {
	const name = "networkservice.NetworkService"
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: name,
		HandlerType: (*networkservice.NetworkServiceServer)(nil),
		Metadata:    "networkservice.proto",
		Methods: []grpc.MethodDesc{
			Unary(name, "Request", networkservice.NetworkServiceServer.Request),
			Unary(name, "Close", networkservice.NetworkServiceServer.Close),
		},
	}, srv)
}

// RegisterMonitorConnection registers the service connection.MonitorConnection.
func RegisterMonitorConnection(r grpc.ServiceRegistrar, srv networkservice.MonitorConnectionServer) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "connection.MonitorConnection",
		HandlerType: (*networkservice.MonitorConnectionServer)(nil),
		Metadata:    "connection.proto",
		Streams:     []grpc.StreamDesc{ServerStream("MonitorConnections", monitorConnections)},
	}, srv)
}

func monitorConnections(srv networkservice.MonitorConnectionServer, in *networkservice.MonitorScopeSelector,
	out *grpc.GenericServerStream[networkservice.MonitorScopeSelector, networkservice.ConnectionEvent]) error {
	return srv.MonitorConnections(in, out)
}

// Unary describes a unary method, for services whose description is not exported.
func Unary[S, In, Out any](service, method string, call func(S, context.Context, *In) (*Out, error)) grpc.MethodDesc {
	full := "/" + service + "/" + method
	handler := func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		growStack()
		in := new(In)
		if err := decode(in); err != nil {
			return nil, err
		}
		if intercept == nil {
			return call(srv.(S), ctx, in)
		}
		info := &grpc.UnaryServerInfo{Server: srv, FullMethod: full}
		return intercept(ctx, in, info, func(ctx context.Context, in any) (any, error) {
			return call(srv.(S), ctx, in.(*In))
		})
	}
	return grpc.MethodDesc{MethodName: method, Handler: handler}
}

// ServerStream describes a method that answers with a stream, likewise.
func ServerStream[S, In, Out any](method string, call func(S, *In, *grpc.GenericServerStream[In, Out]) error) grpc.StreamDesc {
	handler := func(srv any, stream grpc.ServerStream) error {
		in := new(In)
		if err := stream.RecvMsg(in); err != nil {
			return err
		}
		return call(srv.(S), in, &grpc.GenericServerStream[In, Out]{ServerStream: stream})
	}
	return grpc.StreamDesc{StreamName: method, Handler: handler, ServerStreams: true}
}

// growStack makes the stack of a handler's goroutine large enough for most of what it
// calls, while there is little on it. It would get there by doubling, and be copied each
// time: that was a twentieth of what a refresh takes. (The idea is CockroachDB's.)
func growStack() {
	var frame [8 << 10]byte
	keep(&frame)
}

//go:noinline
func keep(*[8 << 10]byte) {}

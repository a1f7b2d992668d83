// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"

	"google.golang.org/grpc"
)

// The generated Register functions of the api module accept a *grpc.Server and
// nothing else. With the two functions below a service can be described again,
// for whatever serves: a Local too.

// UnaryMethod describes a unary method of the service called name. S is the
// interface of its servers.
func UnaryMethod[S, In, Out any](service, method string, call func(S, context.Context, *In) (*Out, error)) grpc.MethodDesc {
	handler := func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := new(In)
		if err := decode(in); err != nil {
			return nil, err
		}
		if intercept == nil {
			return call(srv.(S), ctx, in)
		}
		info := &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + service + "/" + method}
		return intercept(ctx, in, info, func(ctx context.Context, req any) (any, error) {
			return call(srv.(S), ctx, req.(*In))
		})
	}
	return grpc.MethodDesc{MethodName: method, Handler: handler}
}

// StreamMethod describes a server-streaming method.
func StreamMethod[S, In, Out any](method string, call func(S, *In, grpc.ServerStreamingServer[Out]) error) grpc.StreamDesc {
	return grpc.StreamDesc{
		StreamName:    method,
		ServerStreams: true,
		Handler: func(srv any, stream grpc.ServerStream) error {
			in := new(In)
			if err := stream.RecvMsg(in); err != nil {
				return err
			}
			return call(srv.(S), in, &grpc.GenericServerStream[In, Out]{ServerStream: stream})
		},
	}
}

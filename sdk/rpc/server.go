// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/openvwire/nsm/sdk/nserr"
)

// ServerOptions say how to serve.
type ServerOptions struct {
	Credentials credentials.TransportCredentials // of MutualTLS or Plaintext; required
	Logger      *slog.Logger                     // nil: slog.Default()
	MaxMessage  int                              // bytes of a request; 0: 512 KiB
	Ready       func() bool                      // what the health service answers; nil: always ready
	Options     []grpc.ServerOption              // anything more
}

// NewServer returns a server whose handlers may panic, which fails that one call,
// and may return errors of package nserr, which reach the caller with their reason.
// It serves grpc.health.v1 for the services registered with it.
func NewServer(o ServerOptions) *grpc.Server {
	if o.MaxMessage == 0 {
		o.MaxMessage = maxRequest
	}
	g := guard{logger(o.Logger)}
	options := []grpc.ServerOption{
		grpc.Creds(o.Credentials),
		grpc.ForceServerCodecV2(protobuf),
		grpc.MaxRecvMsgSize(o.MaxMessage),
		grpc.ConnectionTimeout(connectTimeout),
		grpc.StaticStreamWindowSize(streamWindowBytes),
		grpc.StaticConnWindowSize(connWindowBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minClientPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.ChainUnaryInterceptor(g.unary, inTime),
		grpc.ChainStreamInterceptor(g.stream),
	}
	s := grpc.NewServer(append(options, o.Options...)...)
	healthpb.RegisterHealthServer(s, &health{services: s, ready: o.Ready})
	return s
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.Default()
	}
	return l
}

// guard stands around every handler.
type guard struct{ log *slog.Logger }

func (g guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (reply any, err error) {
	defer func() {
		if p := recover(); p != nil {
			reply, err = nil, g.panicked(info.FullMethod, p)
		}
		err = EncodeError(err)
	}()
	return handle(ctx, req)
}

// inTime has a handler give up while its caller still listens. A caller in the same process
// (Local) waits for its handler's last word instead: a timer for each call would keep what
// the call has used until it is due.
func inTime(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(context.WithValue(ctx, deadlineKey{}, deadline), deadline.Add(-keptBack(time.Until(deadline))))
		defer cancel()
	}
	return handle(ctx, req)
}

// keptBack is how much sooner than its caller a handler gives up: so whoever waits for
// it still hears from it what it has waited for in vain. It is what an error takes on its
// way many times over, and so little that five hops in a row leave the last one three
// quarters of a short time, and of a long one all but a second or so.
func keptBack(left time.Duration) time.Duration { return min(left/20, 250*time.Millisecond) }

func (g guard) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = g.panicked(info.FullMethod, p)
		}
		err = EncodeError(err)
	}()
	return handle(srv, ss)
}

func (g guard) panicked(method string, p any) error {
	g.log.Error("handler panicked", "method", method, "panic", p, "stack", string(debug.Stack()))
	return nserr.Internal.Errorf("%s panicked", method)
}

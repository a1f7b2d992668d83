// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/token"
)

// Identity is who a part is when no TLS handshake says so.
type Identity struct {
	ID   string            // SPIFFE ID
	Cert *x509.Certificate // leaf of the SVID; nil in tests without identities
}

// LocalOptions say how to serve calls within the process.
type LocalOptions struct {
	// Identity returns who serves, at the time of a call since SVIDs rotate. Callers
	// see it in grpc.Peer and make their tokens for it. nil: nobody.
	Identity func() Identity
	Logger   *slog.Logger // nil: slog.Default()
	Ready    func() bool  // as in ServerOptions
}

// LocalCaller is who calls within the process.
type LocalCaller struct {
	Identity func() Identity // what CallerFrom returns to the handler; nil: nobody
	Tokens   token.Generator // nil: calls carry no token

	// Share has the two sides of a unary call share what connections in its messages
	// refer to, as Shallow does. So neither may change it, but only put something else in
	// its place. Copies of it would be a sixth of what a refresh allocates.
	Share bool
}

// Local serves calls of the same process: register services with it as with a
// grpc.Server, call them through the connections of Dial.
//
// Handlers and clients find everything a socket would give them: deadlines and
// cancellation, metadata both ways, status codes and reasons, the peer, messages of
// their own to keep and change (but see LocalCaller.Share), descriptors. Only the
// context values of the caller stay behind, as they would on a socket. Each call runs in
// a goroutine of its own, so a caller that gives up does not wait for the handler.
type Local struct {
	guard    guard
	identity func() Identity
	methods  map[string]*localMethod // by full method; fixed once calls are made
	services map[string]grpc.ServiceInfo

	mu     sync.Mutex
	closed bool
	calls  map[*localCall]struct{} // being served
	served sync.WaitGroup          // of calls; Add under mu and only while not closed
}

// localMethod is a method of a registered service: unary or a stream.
type localMethod struct {
	impl   any
	unary  *grpc.MethodDesc
	stream *grpc.StreamDesc
}

// NewLocal returns a Local that serves health only. Register services before the
// first call; Close it.
func NewLocal(o LocalOptions) *Local {
	l := &Local{
		guard:    guard{logger(o.Logger)},
		identity: o.Identity,
		methods:  make(map[string]*localMethod),
		services: make(map[string]grpc.ServiceInfo),
		calls:    make(map[*localCall]struct{}),
	}
	healthpb.RegisterHealthServer(l, &health{services: l, ready: o.Ready})
	return l
}

// RegisterService implements grpc.ServiceRegistrar.
func (l *Local) RegisterService(desc *grpc.ServiceDesc, impl any) {
	if _, taken := l.services[desc.ServiceName]; taken {
		panic("rpc: service " + desc.ServiceName + " registered twice")
	}
	l.services[desc.ServiceName] = grpc.ServiceInfo{Metadata: desc.Metadata}
	for i := range desc.Methods {
		d := &desc.Methods[i]
		l.methods["/"+desc.ServiceName+"/"+d.MethodName] = &localMethod{impl: impl, unary: d}
	}
	for i := range desc.Streams {
		d := &desc.Streams[i]
		l.methods["/"+desc.ServiceName+"/"+d.StreamName] = &localMethod{impl: impl, stream: d}
	}
}

// GetServiceInfo returns the names of the registered services.
func (l *Local) GetServiceInfo() map[string]grpc.ServiceInfo { return l.services }

// Dial returns a connection for generated clients. It needs no closing.
func (l *Local) Dial(caller LocalCaller) grpc.ClientConnInterface {
	return &localConn{server: l, caller: caller}
}

// Close cancels the calls being served, waits for their handlers and refuses more.
func (l *Local) Close() {
	l.mu.Lock()
	l.closed = true
	for c := range l.calls {
		c.cancel()
	}
	l.mu.Unlock()
	l.served.Wait()
}

// localInfo is the AuthInfo of a call within the process: who is at the other end.
type localInfo struct {
	id   string
	cert *x509.Certificate
	link *link
}

// AuthType implements credentials.AuthInfo.
func (localInfo) AuthType() string { return "local" }

// GetCommonAuthInfo says that nobody can listen in.
func (localInfo) GetCommonAuthInfo() credentials.CommonAuthInfo {
	return credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
}

// localAddr is the address of both ends.
type localAddr struct{}

func (localAddr) Network() string { return "local" }
func (localAddr) String() string  { return "local" }

// localConn implements grpc.ClientConnInterface.
type localConn struct {
	server *Local
	caller LocalCaller
}

// Invoke implements grpc.ClientConnInterface.
func (c *localConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	call, err := c.begin(ctx, method, opts)
	if err != nil {
		return DecodeError(EncodeError(err))
	}
	if call.method.unary == nil {
		call.end(nil)
		return wrongKind(method)
	}
	decoded := make(chan struct{})
	call.decoded = decoded
	go call.serveUnary(args.(proto.Message))
	select {
	case <-call.done:
	case <-ctx.Done():
		if call.hasLastWord(ctx) {
			break
		}
		call.cancel() // known before what the caller does next, as on a connection
		select {
		case <-decoded:
		case <-call.done:
		}
	}
	if err := call.result(ctx); err != nil {
		return err
	}
	call.copy(reply.(proto.Message), call.answer)
	return nil
}

// serveUnary is the goroutine of a unary call.
func (c *localCall) serveUnary(args proto.Message) {
	var err error
	defer func() {
		c.letGo()
		c.end(err)
	}()
	decode := func(into any) error {
		c.copy(into.(proto.Message), args)
		c.letGo()
		return nil
	}
	var answer any
	answer, err = c.method.unary.Handler(c.method.impl, c.ctx, decode, c.server.guard.unary)
	if err != nil {
		return
	}
	var ok bool
	if c.answer, ok = answer.(proto.Message); !ok {
		err = nserr.Internal.Errorf("%s answered %T", c.name, answer)
	}
}

// NewStream implements grpc.ClientConnInterface.
func (c *localConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	call, err := c.begin(ctx, method, opts)
	if err != nil {
		return nil, DecodeError(EncodeError(err))
	}
	if call.method.stream == nil {
		call.end(nil)
		return nil, wrongKind(method)
	}
	call.header = make(chan struct{})
	s := &localStream{
		call:     call,
		client:   ctx,
		requests: make(chan proto.Message, streamWindow),
		replies:  make(chan proto.Message, streamWindow),
		single:   !desc.ServerStreams,
	}
	go s.serve()
	return localClientStream{s}, nil
}

func wrongKind(method string) error {
	return status.Errorf(codes.Internal, "%s is called as what it is not, unary or a stream", method)
}

// begin makes a call ready to be served: who, what, until when.
func (c *localConn) begin(ctx context.Context, method string, opts []grpc.CallOption) (*localCall, error) {
	m, ok := c.server.methods[method]
	if !ok {
		return nil, status.Errorf(codes.Unimplemented, "method %s is not served here", method)
	}
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	server, caller := who(c.server.identity), who(c.caller.Identity)
	boxes := new([2]inbox)
	toServer, toClient := &boxes[0], &boxes[1]
	call := &localCall{
		server: c.server, name: method, since: time.Now(), method: m, opts: opts, copy: copyMessage,
		done:  make(chan struct{}),
		files: toServer,
		peer:  localInfo{server.ID, server.Cert, &link{send: toServer.sendTo, inbox: toClient}},
	}
	if c.caller.Share {
		call.copy = shareMessage
	}
	md, err := c.metadata(ctx, call)
	if err != nil {
		toServer.close()
		return nil, err
	}
	base := detached{ctx}
	call.ctx, call.cancel = context.WithCancel(base)
	call.ctx = peer.NewContext(call.ctx, &peer.Peer{
		Addr: localAddr{}, LocalAddr: localAddr{},
		AuthInfo: localInfo{caller.ID, caller.Cert, &link{send: toClient.sendTo, inbox: toServer}},
	})
	call.ctx = metadata.NewIncomingContext(call.ctx, md)
	call.ctx = grpc.NewContextWithServerTransportStream(call.ctx, call)
	if !c.server.admit(call) {
		call.cancel()
		toServer.close()
		return nil, nserr.Stopping.Errorf("%s is not served any more", method)
	}
	return call, nil
}

func who(identity func() Identity) Identity {
	if identity == nil {
		return Identity{}
	}
	return identity()
}

// admit counts a call in, unless l is closed.
func (l *Local) admit(c *localCall) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.calls[c] = struct{}{}
	l.served.Add(1)
	return true
}

func (l *Local) dismiss(c *localCall) (closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.calls, c)
	return l.closed
}

// metadata returns what the handler will see, and sends the files of WithFiles.
func (c *localConn) metadata(ctx context.Context, call *localCall) (metadata.MD, error) {
	if err := sendWith(ctx, call.peer); err != nil {
		return nil, err
	}
	outgoing, _ := metadata.FromOutgoingContext(ctx)
	md := outgoing.Copy()
	if md == nil {
		md = make(metadata.MD, 2)
	}
	if c.caller.Tokens != nil {
		raw, expires, err := tokenFor(c.caller.Tokens, call.peer.cert)
		if err != nil {
			return nil, err
		}
		md.Append(tokenKey, raw)
		md.Append(tokenExpiresKey, expires)
	}
	for _, o := range call.opts {
		per, ok := o.(grpc.PerRPCCredsCallOption)
		if !ok {
			continue
		}
		info := credentials.RequestInfo{Method: call.name, AuthInfo: call.peer}
		more, err := per.Creds.GetRequestMetadata(credentials.NewContextWithRequestInfo(ctx, info), "local")
		if err != nil {
			return nil, fmt.Errorf("per-call credentials: %w", err)
		}
		for k, v := range more {
			md.Append(k, v)
		}
	}
	return md, nil
}

// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/openvwire/nsm/sdk/token"
)

// DialOptions say how to call.
type DialOptions struct {
	Credentials credentials.TransportCredentials // of MutualTLS or Plaintext; required
	Tokens      token.Generator                  // nil: calls carry no token
	Options     []grpc.DialOption                // anything more
}

// Dial returns a client connection to unix:///path or tcp://host:port. It connects
// with the first call, again after failures with back-off, and with the first call
// after the own SVID has changed: then calls that are under way finish on the old
// connection, and streams that would not finish are told (WhenSuperseded). Errors of
// calls are decoded by DecodeError.
func Dial(rawURL string, o DialOptions) (*grpc.ClientConn, error) {
	return dialAs(rawURL, rawURL, o)
}

// dialAs is Dial to a peer that errors call whom.
func dialAs(rawURL, whom string, o DialOptions) (*grpc.ClientConn, error) {
	a, err := parseAddress(rawURL)
	if err != nil {
		return nil, err
	}
	authority, longest := a.name, redialMax
	if a.network == "unix" {
		authority, longest = "localhost", redialMaxUnix // the former as gRPC has it for Unix sockets
	}
	r := &redialer{address: a, whom: whom}
	if t, ok := o.Credentials.(*transport); ok {
		r.leaf = t.leaf
	}
	secure := o.Credentials.Info().SecurityProtocol == "tls"
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(o.Credentials),
		grpc.WithPerRPCCredentials(&perCall{o.Tokens, secure}),
		grpc.WithResolvers(r),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, a.network, a.name)
		}),
		grpc.WithAuthority(authority),
		grpc.WithDisableServiceConfig(),
		grpc.WithStaticStreamWindowSize(streamWindowBytes),
		grpc.WithStaticConnWindowSize(connWindowBytes),
		grpc.WithIdleTimeout(0), // whoever holds the connection decides
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: connectTimeout,
			Backoff:           backoff.Config{BaseDelay: redialMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: longest},
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.ForceCodecV2(protobuf)),
		grpc.WithChainUnaryInterceptor(r.unary),
		grpc.WithChainStreamInterceptor(r.stream),
	}
	if a.network == "unix" {
		most := paceOfPlaintext
		if secure {
			most = paceOfTLS
		}
		options = append(options, grpc.WithChainUnaryInterceptor(newPace(most).unary))
	}
	return grpc.NewClient(redialScheme+":///peer", append(options, o.Options...)...)
}

// dialer opens connections that notice when the other node is gone: TCP asks for
// signs of life, which any peer's kernel gives. Pings of HTTP/2 would not do: gRPC
// servers that were told nothing else, the reference's among them, close a
// connection that pings more than once in five minutes. Whether the process is
// there, too, package peer asks.
var dialer = net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepaliveTime, Interval: keepaliveTimeout / 3, Count: 3},
	Control: func(network, _ string, raw syscall.RawConn) (err error) {
		if network == "unix" {
			return nil // the kernel knows whether the other end is there
		}
		if e := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(keepaliveTimeout.Milliseconds()))
		}); e != nil {
			return e
		}
		return err
	},
}

// beforeCall encodes an error of per-call credentials. gRPC lets them fail with
// some codes only (gRFC A54) and hides the rest; the reason survives.
func beforeCall(err error) error {
	st, _ := status.FromError(EncodeError(err))
	switch st.Code() {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition,
		codes.Aborted, codes.OutOfRange, codes.DataLoss:
		p := st.Proto()
		p.Code = int32(codes.Internal)
		return status.FromProto(p).Err()
	}
	return st.Err()
}

// redialer is the resolver of one client connection. It always resolves to the one
// address, with an attribute that counts the SVIDs used: when that changes, gRPC
// opens a new connection for new calls and drains the old one.
type redialer struct {
	address address
	whom    string                   // in errors
	leaf    func() *x509.Certificate // the certificate of the next handshake; nil without TLS

	mu     sync.Mutex
	cc     resolver.ClientConn // nil until the channel leaves idle
	latest *epoch              // nil before the first call
}

// epoch is the time of one SVID.
type epoch struct {
	number  int
	leaf    *x509.Certificate
	begun   chan struct{}          // closed when new calls no longer go to the previous connection
	streams map[*superseded]func() // what tells those of its end that want to know; nil then; guarded by redialer.mu
}

// WhenSuperseded is an option for a stream that stays open for long: f is called once
// when new calls go over another connection than the stream's, since the own SVID has
// changed. The old connection stays open as long as there is a stream on it, so whoever
// goes on watching opens another stream, then ends this one. f must not block. It is not
// called once the context of the call has ended, which is to end with the stream, nor
// where no connection is ever replaced: in process and without TLS.
func WhenSuperseded(f func()) grpc.CallOption { return &superseded{f: f} }

type superseded struct {
	grpc.EmptyCallOption
	f func()
}

// ErrSuperseded is why a context has ended that was given to EndSuperseded.
var ErrSuperseded = errors.New("calls go over another connection, since the own SVID has changed")

// EndSuperseded is WhenSuperseded for a stream that may have a gap: it cancels the
// context of the call, and whoever watches opens another stream at once.
func EndSuperseded(cancel context.CancelCauseFunc) grpc.CallOption {
	return WhenSuperseded(func() { cancel(ErrSuperseded) })
}

const redialScheme = "nsm"

type epochKey struct{}

func (r *redialer) Scheme() string { return redialScheme }

// Build implements resolver.Builder.
func (r *redialer) Build(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	r.mu.Lock()
	r.cc = cc
	number := 0
	if r.latest != nil {
		number = r.latest.number
	}
	r.mu.Unlock()
	return r, cc.UpdateState(r.state(number))
}

// ResolveNow and Close implement resolver.Resolver.
func (r *redialer) ResolveNow(resolver.ResolveNowOptions) {}
func (r *redialer) Close()                                {}

func (r *redialer) state(number int) resolver.State {
	return resolver.State{Addresses: []resolver.Address{{
		Addr:       r.address.name,
		Attributes: attributes.New(epochKey{}, number),
	}}}
}

// prepare makes sure that the next call goes over a connection that shows the
// current SVID. It returns the epoch of that, nil if there is none.
func (r *redialer) prepare() *epoch {
	if r.leaf == nil {
		return nil
	}
	leaf := r.leaf()
	if leaf == nil {
		return nil // the handshake or the token will say why
	}
	e, previous := r.epoch(leaf)
	if previous != nil {
		r.supersede(previous, e)
	}
	<-e.begun
	return e
}

// epoch returns the epoch of leaf, and if it has just begun the one before it.
func (r *redialer) epoch(leaf *x509.Certificate) (e, previous *epoch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	previous = r.latest
	if previous != nil && previous.leaf.Equal(leaf) {
		return previous, nil
	}
	e = &epoch{leaf: leaf, begun: make(chan struct{}), streams: make(map[*superseded]func())}
	if previous == nil {
		close(e.begun)
	} else {
		e.number = previous.number + 1
	}
	r.latest = e
	return e, previous
}

// supersede has calls go over a connection of e's from now on. A channel that is idle
// yet learns the number when it builds its resolver.
func (r *redialer) supersede(previous, e *epoch) {
	r.mu.Lock()
	cc := r.cc
	r.mu.Unlock()
	if cc != nil {
		_ = cc.UpdateState(r.state(e.number)) // fails only for a closed channel
	}
	close(e.begun)
	r.mu.Lock()
	told := previous.streams
	previous.streams = nil
	r.mu.Unlock()
	for _, f := range told {
		f()
	}
}

// tell has s told of the end of e, which may be over, until ctx ends.
func (r *redialer) tell(ctx context.Context, e *epoch, s *superseded) {
	f := func() {
		if ctx.Err() == nil {
			s.f()
		}
	}
	r.mu.Lock()
	over := e.streams == nil
	if !over {
		e.streams[s] = f
	}
	r.mu.Unlock()
	if over {
		f()
		return
	}
	context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(e.streams, s)
	})
}

func (r *redialer) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	call := ask(ctx, r.whom)
	r.prepare()
	return call.decode(invoke(ctx, method, req, reply, cc, opts...))
}

func (r *redialer) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	call := ask(ctx, r.whom)
	if e := r.prepare(); e != nil {
		for _, o := range opts {
			if s, ok := o.(*superseded); ok {
				r.tell(ctx, e, s)
			}
		}
	}
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, call.decode(err)
	}
	return decodingStream{s, call}, nil
}

// decodingStream decodes the errors of a stream.
type decodingStream struct {
	grpc.ClientStream
	call asked
}

func (s decodingStream) SendMsg(m any) error { return s.call.decode(s.ClientStream.SendMsg(m)) }
func (s decodingStream) RecvMsg(m any) error { return s.call.decode(s.ClientStream.RecvMsg(m)) }
func (s decodingStream) CloseSend() error    { return s.call.decode(s.ClientStream.CloseSend()) }

// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"crypto/x509"
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
// with the first call, again after failures with back-off, and once the own SVID has
// changed: then calls that are under way finish on the old connection. Errors of
// calls are decoded by DecodeError.
func Dial(rawURL string, o DialOptions) (*grpc.ClientConn, error) {
	a, err := parseAddress(rawURL)
	if err != nil {
		return nil, err
	}
	authority, longest := a.name, redialMax
	if a.network == "unix" {
		authority, longest = "localhost", redialMaxUnix // the former as gRPC has it for Unix sockets
	}
	r := &redialer{address: a}
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
		grpc.WithIdleTimeout(0), // whoever holds the connection decides
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: connectTimeout,
			Backoff:           backoff.Config{BaseDelay: redialMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: longest},
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
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
	leaf    func() *x509.Certificate // the certificate of the next handshake; nil without TLS

	mu     sync.Mutex
	cc     resolver.ClientConn // nil until the channel leaves idle
	latest *epoch              // nil before the first call
}

// epoch is the time of one SVID.
type epoch struct {
	number int
	leaf   *x509.Certificate
	begun  chan struct{} // closed when new calls no longer go to the previous connection
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
// current SVID.
func (r *redialer) prepare() {
	if r.leaf == nil {
		return
	}
	leaf := r.leaf()
	if leaf == nil {
		return // the handshake or the token will say why
	}
	e, cc := r.epoch(leaf)
	if cc != nil {
		_ = cc.UpdateState(r.state(e.number)) // fails only for a closed channel
		close(e.begun)
	}
	<-e.begun
}

// epoch returns the epoch of leaf, and the channel to announce it to if it is new.
// A channel that is idle yet learns the number when it builds its resolver.
func (r *redialer) epoch(leaf *x509.Certificate) (*epoch, resolver.ClientConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.latest != nil && r.latest.leaf.Equal(leaf) {
		return r.latest, nil
	}
	e := &epoch{leaf: leaf, begun: make(chan struct{})}
	if r.latest != nil {
		e.number = r.latest.number + 1
	}
	cc := r.cc
	if r.latest == nil || cc == nil {
		close(e.begun)
		cc = nil
	}
	r.latest = e
	return e, cc
}

func (r *redialer) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	r.prepare()
	return DecodeError(invoke(ctx, method, req, reply, cc, opts...))
}

func (r *redialer) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	r.prepare()
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, DecodeError(err)
	}
	return decodingStream{s}, nil
}

// decodingStream decodes the errors of a stream.
type decodingStream struct{ grpc.ClientStream }

func (s decodingStream) SendMsg(m any) error { return DecodeError(s.ClientStream.SendMsg(m)) }
func (s decodingStream) RecvMsg(m any) error { return DecodeError(s.ClientStream.RecvMsg(m)) }
func (s decodingStream) CloseSend() error    { return DecodeError(s.ClientStream.CloseSend()) }

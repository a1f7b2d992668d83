// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/openvwire/nsm/sdk/nserr"
)

// descriptorsKey is a response header with which our health service says that any
// number of calls that pass descriptors may be under way on one connection.
const descriptorsKey = "nsm-descriptors"

// How many unary calls may be under way on one Unix socket to a server that has
// not said so. grpcfd sends the descriptors of its replies with the first bytes of
// whatever it writes next, one with each, and panics, and with it the reference's
// process, when more wait than the write has bytes. The least it writes is an
// HTTP/2 frame: 9 bytes, or 31 as a TLS record. Its own clients open a connection
// per wire; ours share one.
const (
	paceOfPlaintext = 8
	paceOfTLS       = 24
)

// pace bounds the calls under way on one client connection.
type pace struct {
	asked chan struct{} // holds a token once the server has been asked, and while it is
	free  chan struct{} // closed when the server has said that there is no bound
	slots chan struct{} // one for each call under way
}

func newPace(most int) *pace {
	return &pace{asked: make(chan struct{}, 1), free: make(chan struct{}), slots: make(chan struct{}, most)}
}

// unary is an interceptor.
func (p *pace) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if method == healthpb.Health_Check_FullMethodName {
		// Has no descriptors, and who asks whether the peer is alive must not wait for
		// what it does else.
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	p.ask(ctx, cc, invoke)
	leave, err := p.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return invoke(ctx, method, req, reply, cc, opts...)
}

// ask finds out before the first call who the server is. Calls that come meanwhile
// do not wait for the answer. A server that is not there is asked again.
func (p *pace) ask(ctx context.Context, cc *grpc.ClientConn, invoke grpc.UnaryInvoker) {
	select {
	case p.asked <- struct{}{}:
	default:
		return
	}
	var header metadata.MD
	err := invoke(WithFiles(ctx), healthpb.Health_Check_FullMethodName, &healthpb.HealthCheckRequest{}, new(healthpb.HealthCheckResponse), cc, grpc.Header(&header))
	if len(header.Get(descriptorsKey)) > 0 {
		close(p.free)
		return
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
		<-p.asked
	}
}

// enter waits until another call may be made. It is over when leave is called.
func (p *pace) enter(ctx context.Context) (leave func(), err error) {
	select {
	case <-p.free: // chosen before a slot
		return func() {}, nil
	default:
	}
	select {
	case <-p.free:
		return func() {}, nil
	case p.slots <- struct{}{}:
		return func() { <-p.slots }, nil
	case <-ctx.Done():
		return nil, nserr.TimedOut.Errorf("%d calls to the peer are under way, which is all it bears: %w", cap(p.slots), context.Cause(ctx))
	}
}

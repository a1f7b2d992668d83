// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/nserr"
)

// detached is the caller's context as it would cross a socket: deadline and
// cancellation, but no values.
type detached struct{ context.Context }

// Value implements context.Context.
func (detached) Value(any) any { return nil }

// AfterFunc lets package context follow the cancellation without a goroutine.
func (d detached) AfterFunc(f func()) (stop func() bool) { return context.AfterFunc(d.Context, f) }

// localCall is one call being served, seen from both sides. It implements
// grpc.ServerTransportStream, by which handlers set header and trailer.
type localCall struct {
	server *Local
	name   string // full method
	since  time.Time
	method *localMethod
	opts   []grpc.CallOption
	copy   func(dst, src proto.Message) // of a unary call's messages
	peer   localInfo                    // what the client sees
	files  *inbox                       // what the client sent

	ctx    context.Context // the handler's
	cancel context.CancelFunc

	mu         sync.Mutex
	headerMD   metadata.MD // what the client sees once header is closed
	trailerMD  metadata.MD // what the client sees once done is closed
	headerSent bool

	// decoded is closed once the arguments of a unary call are no longer looked at: from then
	// on they are the caller's again. The handler's goroutine owns it; nil = it is closed.
	decoded chan struct{}

	header chan struct{} // of a stream: closed when headerMD is final
	done   chan struct{} // closed when the handler has returned; err and trailerMD are final
	err    error         // decoded
	answer proto.Message // of a unary call without error
}

// letGo is called by the handler's goroutine when it does not need the arguments any more.
func (c *localCall) letGo() {
	if c.decoded != nil {
		close(c.decoded)
		c.decoded = nil
	}
}

// end is called by the handler's goroutine when the handler has returned.
func (c *localCall) end(err error) {
	interrupted := c.ctx.Err() != nil
	c.cancel()
	closed := c.server.dismiss(c)
	if closed && interrupted && status.Code(err) == codes.Canceled {
		err = EncodeError(nserr.Stopping.Errorf("%s was interrupted", c.name))
	}
	_ = c.SendHeader(nil) // fails when it is sent already
	c.err = DecodeError(EncodeError(err))
	c.files.close()
	close(c.done)
	c.server.served.Done()
}

// result returns what the client gets once the handler is done or ctx is, and fills
// in the call options.
func (c *localCall) result(ctx context.Context) error {
	select {
	case <-c.done:
	default:
		return c.givenUp(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.opts {
		switch o := o.(type) {
		case grpc.HeaderCallOption:
			*o.HeaderAddr = c.headerMD.Copy()
		case grpc.TrailerCallOption:
			*o.TrailerAddr = c.trailerMD.Copy()
		case grpc.PeerCallOption:
			*o.PeerAddr = peer.Peer{Addr: localAddr{}, LocalAddr: localAddr{}, AuthInfo: c.peer}
		}
	}
	return c.err
}

// hasLastWord waits a moment for a handler whose time has ended together with its caller's,
// and reports whether it has said for whom it has waited in vain. A caller that serves a call
// itself has been given time for that (inTime).
func (c *localCall) hasLastWord(ctx context.Context) bool {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return false
	}
	timer := time.NewTimer(lastWord)
	defer timer.Stop()
	select {
	case <-c.done:
		return c.err == nil || errors.Is(c.err, context.DeadlineExceeded)
	case <-timer.C:
		return false
	}
}

// givenUp is the error of a caller whose ctx has ended.
func (c *localCall) givenUp(ctx context.Context) error {
	call := ask(ctx, "this process's own "+c.name)
	call.since = c.since
	return call.decode(status.FromContextError(ctx.Err()).Err())
}

// Method implements grpc.ServerTransportStream.
func (c *localCall) Method() string { return c.name }

// SetHeader implements grpc.ServerTransportStream.
func (c *localCall) SetHeader(md metadata.MD) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.headerSent {
		return status.Errorf(codes.Internal, "the header of %s is sent already", c.name)
	}
	c.headerMD = metadata.Join(c.headerMD, md)
	return nil
}

// SendHeader implements grpc.ServerTransportStream.
func (c *localCall) SendHeader(md metadata.MD) error {
	if err := c.SetHeader(md); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.headerSent {
		c.headerSent = true
		if c.header != nil {
			close(c.header)
		}
	}
	return nil
}

// SetTrailer implements grpc.ServerTransportStream.
func (c *localCall) SetTrailer(md metadata.MD) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trailerMD = metadata.Join(c.trailerMD, md)
	return nil
}

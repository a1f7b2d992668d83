// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// localStream is a streaming call within the process: a bounded channel of messages
// each way. Messages are copied when they are sent, so what is in a channel belongs
// to nobody else.
type localStream struct {
	call     *localCall
	client   context.Context // the caller's, as grpc.ClientStream.Context must return it
	requests chan proto.Message
	replies  chan proto.Message
	half     bool // requests is closed; of the client's sending side
	single   bool // the server sends one message, then the status
}

// serve is the goroutine of the handler.
func (s *localStream) serve() {
	desc := s.call.method.stream
	info := &grpc.StreamServerInfo{
		FullMethod: s.call.name, IsClientStream: desc.ClientStreams, IsServerStream: desc.ServerStreams,
	}
	s.call.end(s.call.server.guard.stream(s.call.method.impl, localServerStream{s}, info, desc.Handler))
}

// localClientStream implements grpc.ClientStream.
type localClientStream struct{ *localStream }

func (s localClientStream) Context() context.Context { return s.client }

// Header waits until the server has sent it.
func (s localClientStream) Header() (metadata.MD, error) {
	select {
	case <-s.call.header:
		s.call.mu.Lock()
		defer s.call.mu.Unlock()
		return s.call.headerMD.Copy(), nil
	case <-s.client.Done():
		return nil, s.call.givenUp(s.client)
	}
}

func (s localClientStream) Trailer() metadata.MD {
	s.call.mu.Lock()
	defer s.call.mu.Unlock()
	return s.call.trailerMD.Copy()
}

func (s localClientStream) CloseSend() error {
	if !s.half {
		s.half = true
		close(s.requests)
	}
	return nil
}

// SendMsg returns io.EOF when the server is done; RecvMsg then says why.
func (s localClientStream) SendMsg(m any) error {
	if s.half {
		return status.Error(codes.Internal, "SendMsg after CloseSend")
	}
	select {
	case <-s.call.done:
		return io.EOF
	case <-s.client.Done():
		return s.call.givenUp(s.client)
	default:
	}
	select {
	case s.requests <- Clone(m.(proto.Message)):
		return nil
	case <-s.call.done:
		return io.EOF
	case <-s.client.Done():
		return s.call.givenUp(s.client)
	}
}

// RecvMsg returns the messages that were sent, then the status of the call: io.EOF
// when it is good.
func (s localClientStream) RecvMsg(m any) error {
	reply, err := s.next()
	if err != nil {
		return err
	}
	copyMessage(m.(proto.Message), reply)
	if !s.single {
		return nil
	}
	if _, err := s.next(); err != io.EOF {
		return err
	}
	return nil
}

func (s localClientStream) next() (proto.Message, error) {
	select {
	case reply := <-s.replies:
		return reply, nil
	default:
	}
	select {
	case reply := <-s.replies:
		return reply, nil
	case <-s.client.Done():
		return nil, s.call.givenUp(s.client)
	case <-s.call.done:
	}
	select {
	case reply := <-s.replies: // sent just before the handler returned
		return reply, nil
	default:
	}
	if err := s.call.result(s.client); err != nil {
		return nil, err
	}
	return nil, io.EOF
}

// localServerStream implements grpc.ServerStream.
type localServerStream struct{ *localStream }

func (s localServerStream) Context() context.Context        { return s.call.ctx }
func (s localServerStream) SetHeader(md metadata.MD) error  { return s.call.SetHeader(md) }
func (s localServerStream) SendHeader(md metadata.MD) error { return s.call.SendHeader(md) }
func (s localServerStream) SetTrailer(md metadata.MD)       { _ = s.call.SetTrailer(md) }

func (s localServerStream) SendMsg(m any) error {
	if err := s.call.ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	_ = s.call.SendHeader(nil) // fails when it is sent already
	select {
	case s.replies <- Clone(m.(proto.Message)):
		return nil
	case <-s.call.ctx.Done():
		return status.FromContextError(s.call.ctx.Err()).Err()
	}
}

// RecvMsg returns io.EOF once the client has closed its side.
func (s localServerStream) RecvMsg(m any) error {
	select {
	case request, ok := <-s.requests:
		if !ok {
			return io.EOF
		}
		copyMessage(m.(proto.Message), request)
		return nil
	case <-s.call.ctx.Done():
		return status.FromContextError(s.call.ctx.Err()).Err()
	}
}

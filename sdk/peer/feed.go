// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"io"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/openvwire/nsm/sdk/rpc"
)

// feed is one stream of events from a peer.
type feed struct {
	events     chan *networkservice.ConnectionEvent
	failed     chan error    // gets why it has ended
	superseded chan struct{} // holds one element when calls no longer go over its connection
	end        context.CancelFunc
}

// noFeed is one of which nothing ever comes.
var noFeed = &feed{}

// newFeed returns one that routineReceive is to fill, and the context of that.
func newFeed(ctx context.Context) (*feed, context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	return &feed{
		events: make(chan *networkservice.ConnectionEvent), failed: make(chan error, 1), superseded: make(chan struct{}, 1),
		end: cancel,
	}, ctx
}

// routineReceive opens the stream and passes on what comes until it ends.
func (f *feed) routineReceive(ctx context.Context, client networkservice.MonitorConnectionClient, name string, opts ...grpc.CallOption) {
	defer f.end()
	f.failed <- f.receive(ctx, client, name, opts...)
}

func (f *feed) receive(ctx context.Context, client networkservice.MonitorConnectionClient, name string, opts ...grpc.CallOption) error {
	ctx = metadata.AppendToOutgoingContext(ctx, ChangesOnly, "1")
	stream, err := client.MonitorConnections(ctx, &networkservice.MonitorScopeSelector{
		PathSegments: []*networkservice.PathSegment{{Name: name}},
	}, append(opts, grpc.MaxCallRecvMsgSize(maxState), rpc.WhenSuperseded(func() { f.superseded <- struct{}{} }))...)
	if err != nil {
		return err
	}
	for {
		e, err := stream.Recv()
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF // a peer has no reason to end a stream in peace
			}
			return err
		}
		select {
		case f.events <- e:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

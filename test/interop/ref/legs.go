// SPDX-License-Identifier: Apache-2.0

package ref

import (
	"context"
	"maps"
	"sync"

	"github.com/golang/protobuf/ptypes/empty"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/cls"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/next"
	"google.golang.org/grpc"
)

// Legs are the mechanisms that a forwarder has seen last, as they stand on the
// wire. It is for a forwarder with one connection.
type Legs struct {
	mu                       sync.Mutex
	left, right              *networkservice.Mechanism // of the last reply
	leftOffered, rightOffers *networkservice.Mechanism // first preference of the last request
}

// Left returns what the forwarder answered to its caller, and what that had
// offered; nil if there was no call.
func (l *Legs) Left() (answered, offered *networkservice.Mechanism) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left, l.leftOffered
}

// Right returns what the next hop answered, and what the forwarder had offered.
func (l *Legs) Right() (answered, offered *networkservice.Mechanism) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.right, l.rightOffers
}

func (l *Legs) note(answer, offer **networkservice.Mechanism, preferences []*networkservice.Mechanism, conn *networkservice.Connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*answer = conn.GetMechanism().Clone()
	if len(preferences) > 0 {
		*offer = preferences[0].Clone()
	}
}

func cloned(preferences []*networkservice.Mechanism) (out []*networkservice.Mechanism) {
	for _, m := range preferences {
		out = append(out, m.Clone())
	}
	return out
}

type leftOf struct{ legs *Legs }

func (l leftOf) Request(ctx context.Context, request *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	offered := cloned(request.GetMechanismPreferences())
	conn, err := next.Server(ctx).Request(ctx, request)
	if err == nil {
		l.legs.note(&l.legs.left, &l.legs.leftOffered, offered, conn)
	}
	return conn, err
}

func (leftOf) Close(ctx context.Context, conn *networkservice.Connection) (*empty.Empty, error) {
	return next.Server(ctx).Close(ctx, conn)
}

type rightOf struct{ legs *Legs }

func (l rightOf) Request(ctx context.Context, request *networkservice.NetworkServiceRequest, opts ...grpc.CallOption) (*networkservice.Connection, error) {
	offered := cloned(request.GetMechanismPreferences())
	conn, err := next.Client(ctx).Request(ctx, request, opts...)
	if err == nil {
		l.legs.note(&l.legs.right, &l.legs.rightOffers, offered, conn)
	}
	return conn, err
}

func (rightOf) Close(ctx context.Context, conn *networkservice.Connection, opts ...grpc.CallOption) (*empty.Empty, error) {
	return next.Client(ctx).Close(ctx, conn, opts...)
}

// answer adds parameters to the tunnels that a forwarder answers with.
type answer map[string]string

func (a answer) Request(ctx context.Context, request *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	conn, err := next.Server(ctx).Request(ctx, request)
	if m := conn.GetMechanism(); err == nil && m.GetCls() == cls.REMOTE {
		maps.Copy(m.GetParameters(), a)
	}
	return conn, err
}

func (answer) Close(ctx context.Context, conn *networkservice.Connection) (*empty.Empty, error) {
	return next.Server(ctx).Close(ctx, conn)
}

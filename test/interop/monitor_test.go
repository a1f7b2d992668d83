// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
)

// changes is what a hop tells about one connection.
type changes struct {
	t      *testing.T
	stream networkservice.MonitorConnection_MonitorConnectionsClient
}

// watch asks a hop of either make about the connection that has the given segment,
// an empty name or id being any. It returns the first state, which has to come at
// once, with or without connections.
func watch(t *testing.T, cc grpc.ClientConnInterface, name, id string) (changes, []*networkservice.Connection) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := networkservice.NewMonitorConnectionClient(cc).MonitorConnections(ctx, &networkservice.MonitorScopeSelector{
		PathSegments: []*networkservice.PathSegment{{Name: name, Id: id}},
	})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		t.Fatalf("no first state: %v", err)
	}
	if first.GetType() != networkservice.ConnectionEventType_INITIAL_STATE_TRANSFER {
		t.Fatalf("the first event is %v", first)
	}
	var conns []*networkservice.Connection
	for _, c := range first.GetConnections() {
		conns = append(conns, c)
	}
	return changes{t, stream}, conns
}

// until returns the first connection told of from now on that is as wanted.
func (c changes) until(what string, want func(typ networkservice.ConnectionEventType, conn *networkservice.Connection) bool) *networkservice.Connection {
	c.t.Helper()
	var seen []string
	for {
		event, err := c.stream.Recv()
		if err != nil {
			c.t.Fatalf("waiting for %s: %v; until then %q", what, err, seen)
		}
		for _, conn := range event.GetConnections() {
			seen = append(seen, event.GetType().String()+" "+conn.GetState().String()+" "+conn.GetNetworkServiceEndpointName())
			if want(event.GetType(), conn) {
				return conn
			}
		}
	}
}

func (c changes) untilUp() *networkservice.Connection {
	c.t.Helper()
	return c.until("UP", func(typ networkservice.ConnectionEventType, conn *networkservice.Connection) bool {
		return typ == networkservice.ConnectionEventType_UPDATE && conn.GetState() == networkservice.State_UP
	})
}

func (c changes) untilDown() *networkservice.Connection {
	c.t.Helper()
	return c.until("DOWN", func(typ networkservice.ConnectionEventType, conn *networkservice.Connection) bool {
		return typ == networkservice.ConnectionEventType_UPDATE && conn.GetState() == networkservice.State_DOWN
	})
}

func (c changes) untilDeleted() {
	c.t.Helper()
	c.until("DELETE", func(typ networkservice.ConnectionEventType, _ *networkservice.Connection) bool {
		return typ == networkservice.ConnectionEventType_DELETE
	})
}

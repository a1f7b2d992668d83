// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// What is encoded goes as it is where bytes go, however often, and as the message where none do.
func TestEncoded(t *testing.T) {
	event := func(id string) *networkservice.ConnectionEvent {
		return &networkservice.ConnectionEvent{Connections: map[string]*networkservice.Connection{"c": {Id: id}}}
	}
	wire, err := proto.Marshal(event("wire"))
	if err != nil {
		t.Fatal(err)
	}
	sent := &Encoded{Message: event("message"), Wire: wire}
	s := &service{monitor: func(_ *networkservice.MonitorScopeSelector, out networkservice.MonitorConnection_MonitorConnectionsServer) error {
		for range 2 {
			if err := out.SendMsg(sent); err != nil {
				return err
			}
		}
		return out.Send(event("another"))
	}}
	clientCreds, serverCreds := Plaintext()
	local := NewLocal(LocalOptions{})
	defer local.Close()
	s.register(local)
	for name, tt := range map[string]struct {
		cc   grpc.ClientConnInterface
		want string
	}{
		"socket":  {dial(t, serve(t, unixURL(t), ServerOptions{Credentials: serverCreds}, s.register), DialOptions{Credentials: clientCreds}), "wire"},
		"process": {local.Dial(LocalCaller{}), "message"},
	} {
		stream, err := networkservice.NewMonitorConnectionClient(tt.cc).MonitorConnections(t.Context(), &networkservice.MonitorScopeSelector{})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{tt.want, tt.want, "another"} {
			if got, err := stream.Recv(); err != nil || !proto.Equal(got, event(want)) {
				t.Errorf("%s: %v, %v, want %s", name, got, err, want)
			}
		}
	}
}

// A client encodes as a server does, and its calls have the content type of everybody's.
func TestClientEncodes(t *testing.T) {
	wire, err := proto.Marshal(&networkservice.NetworkServiceRequest{Connection: &networkservice.Connection{Id: "wire"}})
	if err != nil {
		t.Fatal(err)
	}
	var contentType atomic.Value
	s := &service{request: func(ctx context.Context, r *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
		contentType.Store(metadata.ValueFromIncomingContext(ctx, "content-type"))
		return r.GetConnection(), nil
	}}
	clientCreds, serverCreds := Plaintext()
	cc := dial(t, serve(t, unixURL(t), ServerOptions{Credentials: serverCreds}, s.register), DialOptions{Credentials: clientCreds})
	got := new(networkservice.Connection)
	sent := &Encoded{Message: &networkservice.NetworkServiceRequest{Connection: &networkservice.Connection{Id: "message"}}, Wire: wire}
	if err := cc.Invoke(t.Context(), "/networkservice.NetworkService/Request", sent, got); err != nil || got.GetId() != "wire" {
		t.Errorf("%v, %v, want wire", got, err)
	}
	if got, _ := contentType.Load().([]string); !slices.Equal(got, []string{"application/grpc"}) {
		t.Errorf("content type %q", got)
	}
}

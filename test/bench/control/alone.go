// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"strings"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/openvwire/nsm/test/interop/ref"
)

// startAlone starts what carries a mesh's messages and does nothing else: gRPC, with its
// generated code and default options. No mesh takes less.
//
// A relay stands for the manager and the forwarder of each node, and an endpoint answers
// with answer, a connection that our mesh has made. They are called as ours are: the
// first node and the endpoint over Unix sockets, the second node over TCP. Answers and
// refreshes are as long as ours, while a first Request does not grow from hop to hop. It
// returns where the first is called.
func startAlone(t testing.TB, nodes int, answer []byte) (manager string, err error) {
	e := endpoint{answer: new(networkservice.Connection)}
	if err := proto.Unmarshal(answer, e.answer); err != nil {
		return "", err
	}
	serve := func(address string, s networkservice.NetworkServiceServer) (target string) {
		url := ref.Serve(t, "gRPC", nil, []string{address}, func(context.Context, []string) func(*grpc.Server) {
			return func(server *grpc.Server) { networkservice.RegisterNetworkServiceServer(server, s) }
		}).URL()
		return strings.TrimPrefix(url, "tcp://")
	}
	next := serve(ref.Socket(t), e)
	for node := nodes; node > 0; node-- {
		cc, err := grpc.NewClient(next, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return "", err
		}
		t.Cleanup(func() { _ = cc.Close() })
		address := ref.Socket(t)
		if node > 1 {
			address = ref.Loopback
		}
		next = serve(address, relay{networkservice.NewNetworkServiceClient(cc)})
	}
	return next, nil
}

// relay passes on what it is asked.
type relay struct {
	next networkservice.NetworkServiceClient
}

func (r relay) Request(ctx context.Context, in *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	return r.next.Request(ctx, in)
}

func (r relay) Close(ctx context.Context, in *networkservice.Connection) (*emptypb.Empty, error) {
	return r.next.Close(ctx, in)
}

// endpoint answers a Request with a connection that was made before, and a refresh with
// what it is for, which is as long.
type endpoint struct {
	answer *networkservice.Connection
}

func (e endpoint) Request(_ context.Context, in *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	c := in.GetConnection()
	if len(c.GetPath().GetPathSegments()) == len(e.answer.GetPath().GetPathSegments()) {
		return c, nil
	}
	made := proto.CloneOf(e.answer)
	made.Id = c.GetId()
	made.Path.PathSegments[0].Id = c.GetId()
	return made, nil
}

func (endpoint) Close(context.Context, *networkservice.Connection) (*emptypb.Empty, error) {
	return new(emptypb.Empty), nil
}

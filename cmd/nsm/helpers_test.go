// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

func exitStatus(err error) string {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return fmt.Sprint(exit.ExitCode())
	}
	return err.Error()
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// canned is an admin API whose answers a test has written down. It filters by
// name only; labels are recorded.
type canned struct {
	adminv1.UnimplementedAdminServer
	services  []*adminv1.Service
	wires     []*adminv1.WireSummary
	nodes     []*adminv1.Node
	endpoints []*adminv1.Endpoint
	detail    *adminv1.WireDescription
	later     []*adminv1.WireEvent // what happens to wires after SYNCED

	labels  map[string]string
	applied []*adminv1.Service
	deleted []string
}

func (c *canned) Services(r *adminv1.ServicesRequest, s grpc.ServerStreamingServer[adminv1.ServiceEvent]) error {
	for _, x := range c.services {
		if n := r.GetFilter().GetName(); n == "" || n == x.GetName() {
			if err := s.Send(&adminv1.ServiceEvent{Type: adminv1.EventType_EVENT_TYPE_ADDED, Service: x}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *canned) Endpoints(r *adminv1.EndpointsRequest, s grpc.ServerStreamingServer[adminv1.EndpointEvent]) error {
	c.labels = r.GetFilter().GetLabels()
	for _, x := range c.endpoints {
		if err := s.Send(&adminv1.EndpointEvent{Type: adminv1.EventType_EVENT_TYPE_ADDED, Endpoint: x}); err != nil {
			return err
		}
	}
	return nil
}

func (c *canned) Nodes(_ *adminv1.NodesRequest, s grpc.ServerStreamingServer[adminv1.NodeEvent]) error {
	for _, x := range c.nodes {
		if err := s.Send(&adminv1.NodeEvent{Type: adminv1.EventType_EVENT_TYPE_ADDED, Node: x}); err != nil {
			return err
		}
	}
	return nil
}

func (c *canned) Wires(r *adminv1.WiresRequest, s grpc.ServerStreamingServer[adminv1.WireEvent]) error {
	var events []*adminv1.WireEvent
	for _, x := range c.wires {
		events = append(events, &adminv1.WireEvent{Type: adminv1.EventType_EVENT_TYPE_ADDED, Wire: x})
	}
	if r.GetFilter().GetWatch() {
		events = append(events, &adminv1.WireEvent{Type: adminv1.EventType_EVENT_TYPE_SYNCED})
		events = append(events, c.later...)
	}
	for _, e := range events {
		if err := s.Send(e); err != nil {
			return err
		}
	}
	return nil
}

func (c *canned) DescribeWire(_ context.Context, r *adminv1.DescribeWireRequest) (*adminv1.WireDescription, error) {
	if c.detail == nil || !strings.HasPrefix(c.detail.GetSummary().GetId(), r.GetId()) {
		return nil, nserr.UnknownWire.Errorf("no wire begins with %q", r.GetId())
	}
	return c.detail, nil
}

func (c *canned) ApplyService(_ context.Context, r *adminv1.ApplyServiceRequest) (*adminv1.ApplyServiceResponse, error) {
	c.applied = append(c.applied, r.GetService())
	return &adminv1.ApplyServiceResponse{Result: adminv1.ApplyServiceResponse_RESULT_CREATED, Service: r.GetService()}, nil
}

func (c *canned) DeleteService(_ context.Context, r *adminv1.DeleteServiceRequest) (*adminv1.DeleteServiceResponse, error) {
	if r.GetName() == "locked" {
		return nil, nserr.NameOwned.Errorf("network service %q belongs to somebody else", r.GetName())
	}
	c.deleted = append(c.deleted, r.GetName())
	return &adminv1.DeleteServiceResponse{}, nil
}

// runAgainst runs nsm against server.
func runAgainst(t *testing.T, server adminv1.AdminServer, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	before := slog.Default()
	defer slog.SetDefault(before)
	local := rpc.NewLocal(rpc.LocalOptions{})
	defer local.Close()
	adminv1.RegisterAdminServer(local, server)

	var out, errs bytes.Buffer
	a := newApp()
	a.in, a.out, a.err = strings.NewReader(stdin), &out, &errs
	a.connect = func(context.Context, managerConfig) (*adminConn, error) {
		return &adminConn{adminv1.NewAdminClient(local.Dial(rpc.LocalCaller{})), func() error { return nil }}, nil
	}
	root := a.root()
	root.SetArgs(args)
	code = a.exit(root.ExecuteContext(t.Context()))
	return out.String(), errs.String(), code
}

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(-d)) }

func in(d time.Duration) *timestamppb.Timestamp {
	return timestamppb.New(time.Now().Add(d + 500*time.Millisecond)) // time passes before it is printed
}

// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/golang/protobuf/ptypes/empty"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/registry/memory"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/test/interop/ref"
)

// part is a running part of either make.
type part struct {
	url  string
	stop func() // as if killed; stopping twice is allowed
}

// ourRegistry runs our registry with empty stores in memory.
func ourRegistry(t *testing.T, s ref.Security, expiry time.Duration, address string) part {
	t.Helper()
	c := registry.Config{
		Name:      "registry",
		Tokens:    tokensOf(s),
		Services:  memory.New[*api.NetworkService](),
		Endpoints: memory.New[*api.NetworkServiceEndpoint](),
		Logger:    quiet,
		MaxExpiry: expiry,
		Policy:    registry.Strict{MaySpeakFor: spokesmen},
	}
	if !s.Checked {
		c.Policy = anybody{}
	}
	server := registry.New(c)
	p := serveOurs(t, s, address, func(g *grpc.Server) { server.Register(g) })
	stopServing := p.stop
	p.stop = sync.OnceFunc(func() {
		server.Close()
		stopServing()
		if err := c.Services.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
		if err := c.Endpoints.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	})
	t.Cleanup(p.stop)
	return p
}

// anybody is the policy for plaintext, where tokens have no audience.
type anybody struct{}

func (anybody) Check(rpc.Caller, []string, time.Time) error { return nil }

// refRegistry runs the reference's.
func refRegistry(t *testing.T, s ref.Security, expiry time.Duration, address string) part {
	t.Helper()
	server := ref.RegistryExpiring(t, s, expiry, address)
	return part{server.URL(), server.Stop}
}

// ourRegistryClient speaks to a registry as all our parts do: generated clients
// over package rpc, the path of package regpath kept per name.
func ourRegistryClient(t *testing.T, s ref.Security, url string) ref.RegistryClient {
	t.Helper()
	cc := dialOurs(t, s, url)
	return ref.RegistryClient{
		Services:  &serviceClient{api.NewNetworkServiceRegistryClient(cc), paths{}},
		Endpoints: &endpointClient{api.NewNetworkServiceEndpointRegistryClient(cc), paths{}},
	}
}

// paths holds the path of each name between calls. It serves one goroutine.
type paths map[string]regpath.Path

// call makes one call with the path of name and keeps the one of the reply.
func (p paths) call(ctx context.Context, name string, call func(context.Context, grpc.CallOption) error) error {
	var header metadata.MD
	if err := call(p[name].ToOutgoing(ctx), grpc.Header(&header)); err != nil {
		return err
	}
	path, err := regpath.FromHeader(header)
	if err == nil && len(path.PathSegments) > 0 {
		p[name] = path
	}
	return err
}

type serviceClient struct {
	api.NetworkServiceRegistryClient
	paths paths
}

func (c *serviceClient) Register(ctx context.Context, in *api.NetworkService, _ ...grpc.CallOption) (out *api.NetworkService, err error) {
	err = c.paths.call(ctx, in.GetName(), func(ctx context.Context, header grpc.CallOption) (err error) {
		out, err = c.NetworkServiceRegistryClient.Register(ctx, in, header)
		return err
	})
	return out, err
}

func (c *serviceClient) Unregister(ctx context.Context, in *api.NetworkService, _ ...grpc.CallOption) (*empty.Empty, error) {
	return &empty.Empty{}, c.paths.call(ctx, in.GetName(), func(ctx context.Context, header grpc.CallOption) error {
		_, err := c.NetworkServiceRegistryClient.Unregister(ctx, in, header)
		return err
	})
}

type endpointClient struct {
	api.NetworkServiceEndpointRegistryClient
	paths paths
}

func (c *endpointClient) Register(ctx context.Context, in *api.NetworkServiceEndpoint, _ ...grpc.CallOption) (out *api.NetworkServiceEndpoint, err error) {
	err = c.paths.call(ctx, in.GetName(), func(ctx context.Context, header grpc.CallOption) (err error) {
		out, err = c.NetworkServiceEndpointRegistryClient.Register(ctx, in, header)
		return err
	})
	return out, err
}

func (c *endpointClient) Unregister(ctx context.Context, in *api.NetworkServiceEndpoint, _ ...grpc.CallOption) (*empty.Empty, error) {
	return &empty.Empty{}, c.paths.call(ctx, in.GetName(), func(ctx context.Context, header grpc.CallOption) error {
		_, err := c.NetworkServiceEndpointRegistryClient.Unregister(ctx, in, header)
		return err
	})
}

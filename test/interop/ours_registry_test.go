// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"testing"
	"time"

	"github.com/golang/protobuf/ptypes/empty"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

// refRegistry runs the reference's.
func refRegistry(t testing.TB, s ref.Security, expiry time.Duration, address string) ours.Part {
	t.Helper()
	server := ref.RegistryExpiring(t, s, expiry, address)
	return ours.Part{URL: server.URL(), Stop: server.Stop}
}

// ourRegistryClient speaks to a registry as all our parts do: generated clients
// over package rpc, the path of package regpath kept per name.
func ourRegistryClient(t *testing.T, s ref.Security, url string) ref.RegistryClient {
	t.Helper()
	cc := ours.Dial(t, s, url)
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

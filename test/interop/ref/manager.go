// SPDX-License-Identifier: Apache-2.0

package ref

import (
	"context"
	"testing"
	"time"

	"github.com/networkservicemesh/sdk/pkg/networkservice/chains/nsmgr"
	"google.golang.org/grpc"
)

// dialTimeout is between the defaults of cmd-nsmgr, 750 ms, and of
// cmd-forwarder-vpp, 50 ms, which two busy cores and -race would exceed.
const dialTimeout = 500 * time.Millisecond

// ManagerConfig names what a manager needs.
type ManagerConfig struct {
	Name     string
	Registry string // URL of the registry, the reference's or ours
}

// Manager runs cmd-nsmgr's chain on a Unix socket (URLs[0]) and on a loopback
// TCP port (URLs[1], its public URL).
func Manager(t testing.TB, s Security, c ManagerConfig) *Server {
	t.Helper()
	addresses := []string{Socket(t), Loopback}
	return Serve(t, c.Name, []grpc.ServerOption{s.ServerOption()}, addresses, func(ctx context.Context, urls []string) func(*grpc.Server) {
		manager := nsmgr.NewServer(ctx, s.Tokens(),
			nsmgr.WithName(c.Name),
			nsmgr.WithURL(urls[1]),
			nsmgr.WithRegistry(parse(t, c.Registry)),
			nsmgr.WithDialTimeout(dialTimeout),
			nsmgr.WithDialOptions(s.hopDialOptions()...),
			nsmgr.WithAuthorizeServer(s.authorizeServer()),
			nsmgr.WithAuthorizeNSRegistryServer(s.authorizeNSServer()),
			nsmgr.WithAuthorizeNSERegistryServer(s.authorizeNSEServer()),
			nsmgr.WithAuthorizeNSRegistryClient(s.authorizeNSClient()),
			nsmgr.WithAuthorizeNSERegistryClient(s.authorizeNSEClient()),
		)
		return func(server *grpc.Server) {
			manager.(interface{ Register(*grpc.Server) }).Register(server)
		}
	})
}

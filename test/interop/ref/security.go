// SPDX-License-Identifier: Apache-2.0

package ref

import (
	"testing"
	"time"

	"github.com/edwarnicke/grpcfd"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/authorize"
	registryauthorize "github.com/networkservicemesh/sdk/pkg/registry/common/authorize"
	"github.com/networkservicemesh/sdk/pkg/tools/sandbox"
	"github.com/networkservicemesh/sdk/pkg/tools/spiffejwt"
	"github.com/networkservicemesh/sdk/pkg/tools/token"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// TokenLifetime is the reference's default NSM_MAX_TOKEN_LIFETIME. Requests
// need deadlines well below it: the reference's servers arm their time-out at
// token expiry minus what was left of the caller's deadline (§2.7).
const TokenLifetime = 10 * time.Minute

// The reference's default policy masks, its NSM_REGISTRY_{SERVER,CLIENT}_POLICIES.
var (
	serverPolicies = []string{"etc/nsm/opa/common/.*.rego", "etc/nsm/opa/registry/.*.rego", "etc/nsm/opa/server/.*.rego"}
	clientPolicies = []string{"etc/nsm/opa/common/.*.rego", "etc/nsm/opa/registry/.*.rego", "etc/nsm/opa/client/.*.rego"}
)

// Security is how one part of a mesh identifies itself and what it demands of
// its peers. Each part gets its own, as each process has its own SVID.
type Security struct {
	SVID   *x509svid.SVID
	Bundle *x509bundle.Bundle
	// Checked is whether the part runs the reference's default OPA policies
	// and mutual TLS. Unchecked parts speak plaintext and accept any token, as
	// the reference's own tests do; their tokens are real but have no audience.
	Checked bool
	// Lifetime is that of the part's tokens; 0 means TokenLifetime.
	Lifetime time.Duration
}

// Plain is a part on plaintext connections, without policies.
func (ca *CA) Plain(t testing.TB, path string) Security {
	t.Helper()
	return Security{SVID: ca.SVID(t, path), Bundle: ca.Bundle()}
}

// MutualTLS is a part as the reference deploys it: SPIFFE mutual TLS that
// accepts any member of the domain, tokens signed by its SVID, default policies.
func (ca *CA) MutualTLS(t testing.TB, path string) Security {
	t.Helper()
	return Security{SVID: ca.SVID(t, path), Bundle: ca.Bundle(), Checked: true}
}

// ID is the part's SPIFFE ID.
func (s Security) ID() string { return s.SVID.ID.String() }

// Tokens is the reference's token generator for this identity.
func (s Security) Tokens() token.GeneratorFunc {
	return spiffejwt.TokenGeneratorFunc(s.SVID, s.TokensFor())
}

// TokensFor is how long the part's tokens are good.
func (s Security) TokensFor() time.Duration {
	if s.Lifetime != 0 {
		return s.Lifetime
	}
	return TokenLifetime
}

// ServerOption is how the reference's servers are created: file descriptors
// below the transport security.
func (s Security) ServerOption() grpc.ServerOption {
	var creds credentials.TransportCredentials = insecure.NewCredentials()
	if s.Checked {
		creds = credentials.NewTLS(tlsconfig.MTLSServerConfig(s.SVID, s.Bundle, tlsconfig.AuthorizeAny()))
	}
	return grpc.Creds(grpcfd.TransportCredentials(creds))
}

// DialOptions is how the reference's clients dial.
func (s Security) DialOptions() []grpc.DialOption {
	var creds credentials.TransportCredentials = insecure.NewCredentials()
	if s.Checked {
		creds = credentials.NewTLS(tlsconfig.MTLSClientConfig(s.SVID, s.Bundle, tlsconfig.AuthorizeAny()))
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(grpcfd.TransportCredentials(creds)),
		grpc.WithDefaultCallOptions(
			grpc.WaitForReady(true),
			grpc.PerRPCCredentials(token.NewPerRPCCredentials(s.Tokens())),
		),
		grpcfd.WithChainStreamInterceptor(),
		grpcfd.WithChainUnaryInterceptor(),
	}
	if !s.Checked { // the token credentials demand TLS
		options = append(options, sandbox.WithInsecureRPCCredentials(), sandbox.WithInsecureStreamRPCCredentials())
	}
	return options
}

// hopDialOptions is how managers and forwarders dial: a hop that is gone is an
// error after the dial time-out, where a client's call waits for it.
func (s Security) hopDialOptions() []grpc.DialOption {
	//lint:ignore SA1019 the reference's commands dial so
	return append(s.DialOptions(), grpc.WithBlock())
}

func (s Security) authorizeServer() networkservice.NetworkServiceServer {
	if s.Checked {
		return authorize.NewServer()
	}
	return authorize.NewServer(authorize.Any())
}

func (s Security) authorizeClient() networkservice.NetworkServiceClient {
	if s.Checked {
		return authorize.NewClient()
	}
	return authorize.NewClient(authorize.Any())
}

func (s Security) registryServerPolicy() registryauthorize.Option {
	if s.Checked {
		return registryauthorize.WithPolicies(serverPolicies...)
	}
	return registryauthorize.Any()
}

func (s Security) registryClientPolicy() registryauthorize.Option {
	if s.Checked {
		return registryauthorize.WithPolicies(clientPolicies...)
	}
	return registryauthorize.Any()
}

func (s Security) authorizeNSServer() registry.NetworkServiceRegistryServer {
	return registryauthorize.NewNetworkServiceRegistryServer(s.registryServerPolicy())
}

func (s Security) authorizeNSEServer() registry.NetworkServiceEndpointRegistryServer {
	return registryauthorize.NewNetworkServiceEndpointRegistryServer(s.registryServerPolicy())
}

func (s Security) authorizeNSClient() registry.NetworkServiceRegistryClient {
	return registryauthorize.NewNetworkServiceRegistryClient(s.registryClientPolicy())
}

func (s Security) authorizeNSEClient() registry.NetworkServiceEndpointRegistryClient {
	return registryauthorize.NewNetworkServiceEndpointRegistryClient(s.registryClientPolicy())
}

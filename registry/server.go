// SPDX-License-Identifier: Apache-2.0

// Package registry is where endpoints say which network services they offer,
// and where clients' hops look them up: the gRPC services
// registry.NetworkServiceRegistry and registry.NetworkServiceEndpointRegistry
// of the published API (protocol.md §4).
//
//	srv := registry.New(registry.Config{
//		Tokens:    tokens,   // who we are
//		Services:  services, // stores, for example of package memory
//		Endpoints: endpoints,
//	})
//	defer srv.Close()
//	srv.Register(grpcServer)
//
// A Register or Unregister runs in one order: what is sent is validated
// (validate.go), the caller is admitted (admit.go), the store changes the
// object by its own atomic Update with the rules of ownership inside
// (register.go). A Find asks the store and, to watch, follows it (find.go).
// One goroutine removes endpoints when they expire (expire.go). The state is in
// the stores alone; several servers may share them.
package registry

import (
	"context"
	"log/slog"
	"sync"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/gate"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/profile"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/token"
)

// DefaultMaxExpiry is how long a registration of an endpoint lasts at most
// (§4.4). Ours renew it after half of that, the reference's after two thirds.
const DefaultMaxExpiry = time.Minute

// Config says what a Server is made of. The stores remain the caller's: close
// them after the server.
type Config struct {
	Name      string          // of this registry, for the log
	Tokens    token.Generator // makes the registry's own tokens; required
	Policy    Policy          // who may register; nil = Strict{}
	Services  Store[*api.NetworkService]
	Endpoints Store[*api.NetworkServiceEndpoint]
	Logger    *slog.Logger  // nil = slog.Default()
	MaxExpiry time.Duration // 0 = DefaultMaxExpiry

	// Gate bounds how much is worked on at once. nil means as much as suits the machine.
	Gate *gate.Gate

	// MayOperate reports whether an identity may replace and unregister network
	// services that others own. nil means nobody may.
	MayOperate func(id string) bool
	// MayProfile reports whether an identity may record profiles of this process. nil
	// means nobody may.
	MayProfile func(id string) bool
}

// Server serves both registry services.
type Server struct {
	// Constant after New.
	tokens    token.Generator
	policy    Policy
	services  Store[*api.NetworkService]
	endpoints Store[*api.NetworkServiceEndpoint]
	log       *slog.Logger
	maxExpiry time.Duration
	operates  func(id string) bool
	profile   profile.Server
	gate      *gate.Gate
	expirer   sync.WaitGroup // the goroutine of expireEndpoints

	mu     sync.Mutex
	calls  map[*call]struct{} // being served; guarded by mu
	closed bool               // guarded by mu

	rivals rivals // of endpoints
}

// call is one call being served, or the expiry loop.
type call struct{ cancel context.CancelCauseFunc }

// New returns a server that expires endpoints until Close. It panics without
// Tokens, Services or Endpoints.
func New(c Config) *Server {
	if c.Tokens == nil || c.Services == nil || c.Endpoints == nil {
		panic("registry: Config needs Tokens, Services and Endpoints")
	}
	if c.Policy == nil {
		c.Policy = Strict{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.MaxExpiry == 0 {
		c.MaxExpiry = DefaultMaxExpiry
	}
	if c.Gate == nil {
		c.Gate = gate.New(0)
	}
	if c.MayOperate == nil {
		c.MayOperate = func(string) bool { return false }
	}
	s := &Server{
		operates:  c.MayOperate,
		gate:      c.Gate,
		profile:   profile.Server{May: c.MayProfile, Logger: c.Logger},
		tokens:    c.Tokens,
		policy:    c.Policy,
		services:  c.Services,
		endpoints: c.Endpoints,
		log:       c.Logger.With("part", "registry", "name", c.Name),
		maxExpiry: c.MaxExpiry,
		calls:     make(map[*call]struct{}),
	}
	ctx, leave, _ := s.enter(context.Background()) // a new server is not closed
	s.expirer.Go(func() {
		defer leave()
		s.expireEndpoints(ctx)
	})
	return s
}

// Register registers both services, and of the admin API the profiles, with a gRPC
// server or an in-process peer.
// Handlers return errors of package nserr, which the servers of package rpc
// encode.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	regpath.RegisterServices(r, gatedServices{serviceServer{s}})
	regpath.RegisterEndpoints(r, gatedEndpoints{endpointServer{s}})
	adminv1.RegisterAdminServer(r, s.profile)
}

// Close ends every watch with nserr.Stopping, refuses new calls and stops
// expiring. A stream whose client does not read ends with its connection.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.calls {
		c.cancel(errStopping)
	}
	s.mu.Unlock()
	s.expirer.Wait()
}

var errStopping = nserr.Stopping.Errorf("registry is shutting down")

// enter begins a call: its context ends with Close too. leave must be called.
func (s *Server) enter(ctx context.Context) (_ context.Context, leave func(), _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, errStopping
	}
	ctx, cancel := context.WithCancelCause(ctx)
	c := &call{cancel: cancel}
	s.calls[c] = struct{}{}
	return ctx, func() {
		cancel(nil)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.calls, c)
	}, nil
}

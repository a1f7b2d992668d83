// SPDX-License-Identifier: Apache-2.0

// Package workload serves the SPIFFE Workload API on a Unix socket: the X.509
// part of the standard, so that any SPIFFE library is a client.
//
// A caller says nothing about itself. The kernel does, when it connects
// (attest.go), and the [Provider] behind the server (the authority of the
// domain, or the agent of a node) names the process and makes its SVIDs. A
// stream stays open: the server sends a new SVID in time and new bundles at
// once.
//
// Beside it the socket serves profiles of the process, as every daemon does, to
// those who could look into its memory anyway.
package workload

import (
	"context"
	"log/slog"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/profile"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Provider makes SVIDs for local processes.
type Provider interface {
	// SVID returns an SVID for a process with its key. It may be one that it
	// returned before to the same process.
	SVID(ctx context.Context, c Caller) (*x509svid.SVID, error)

	// Bundles is what SVIDs are checked against; always the same value.
	Bundles() *identity.Bundles
}

// Config says what to serve.
type Config struct {
	Socket   string // URL, unix:///path; any user may connect
	Provider Provider
	Logger   *slog.Logger                // nil = slog.Default()
	Also     func(grpc.ServiceRegistrar) // registers more services on the socket; may be nil
}

// Server is a running server.
type Server struct {
	grpc *grpc.Server
	done chan struct{} // closed when Serve has returned
}

// Listen starts to serve the Workload API.
func Listen(ctx context.Context, c Config) (*Server, error) {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	listener, err := rpc.Listen(ctx, c.Socket)
	if err != nil {
		return nil, err
	}
	s := &Server{
		grpc: rpc.NewServer(rpc.ServerOptions{
			Credentials: Attested(),
			Logger:      c.Logger,
			Options:     []grpc.ServerOption{grpc.WaitForHandlers(true), grpc.MaxConcurrentStreams(16)},
		}),
		done: make(chan struct{}),
	}
	workload.RegisterSpiffeWorkloadAPIServer(s.grpc, &service{provider: c.Provider, log: c.Logger})
	adminv1.RegisterAdminServer(s.grpc, profiles{log: c.Logger})
	if c.Also != nil {
		c.Also(s.grpc)
	}
	go func() {
		defer close(s.done)
		if err := s.grpc.Serve(listener); err != nil {
			c.Logger.Error("the Workload API has stopped", "address", c.Socket, "error", err)
		}
	}()
	return s, nil
}

// Close ends all streams, removes the socket and waits for both.
func (s *Server) Close() error {
	s.grpc.Stop()
	<-s.done
	return nil
}

// service answers the X.509 calls. The JWT and WIT ones are Unimplemented, as
// the standard allows (SPIFFE Workload API, section 4.4).
type service struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	provider Provider
	log      *slog.Logger
}

// FetchX509SVID sends the SVID of the caller, and each that replaces it.
func (s *service) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	ctx := stream.Context()
	if err := checkHeader(ctx); err != nil {
		return err
	}
	caller, err := CallerFrom(ctx)
	if err != nil {
		return err
	}
	mint := func(ctx context.Context) (*x509svid.SVID, error) { return s.provider.SVID(ctx, caller) }
	svid, err := mint(ctx)
	if err != nil {
		return err
	}
	s.log.Debug("identity given out", "spiffe_id", svid.ID, "pid", caller.PID, "uid", caller.UID, "exe", caller.Exe)
	err = identity.Follow(ctx, svid, mint, s.provider.Bundles(), s.log, func(svid *x509svid.SVID, set *x509bundle.Set) error {
		response, err := response(svid, set)
		if err != nil {
			return err
		}
		return stream.Send(response)
	})
	return ended(err)
}

// FetchX509Bundles sends the bundles, and again when they change.
func (s *service) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	ctx := stream.Context()
	if err := checkHeader(ctx); err != nil {
		return err
	}
	for {
		set, changed := s.provider.Bundles().Current()
		if err := stream.Send(&workload.X509BundlesResponse{Bundles: identity.MarshalBundles(set)}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ended(ctx.Err())
		}
	}
}

// ended is how a stream ends that the client did not give up. It must not be
// Canceled, at which clients give up for good.
func ended(cause error) error { return nserr.Stopping.Errorf("stream has ended: %w", cause) }

// checkHeader refuses calls that a client was tricked into sending (SPIFFE
// Workload Endpoint, section 6.1).
func checkHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if values := md.Get("workload.spiffe.io"); len(values) != 1 || values[0] != "true" {
		return nserr.BadRequest.Errorf("security header missing from request").
			WithFix("send the metadata workload.spiffe.io: true")
	}
	return nil
}

func response(svid *x509svid.SVID, set *x509bundle.Set) (*workload.X509SVIDResponse, error) {
	chain, key, err := svid.MarshalRaw()
	if err != nil {
		return nil, nserr.Internal.Errorf("encode SVID: %w", err)
	}
	bundles := identity.MarshalBundles(set)
	own := svid.ID.TrustDomain().IDString()
	answer := &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
		SpiffeId: svid.ID.String(), X509Svid: chain, X509SvidKey: key, Bundle: bundles[own],
	}}}
	delete(bundles, own)
	answer.FederatedBundles = bundles
	return answer, nil
}

// profiles serves Profile of nsm.admin.v1. Here nobody has an identity yet, so it is the
// kernel that says who asks.
type profiles struct {
	adminv1.UnimplementedAdminServer
	log *slog.Logger
}

func (p profiles) Profile(r *adminv1.ProfileRequest, out grpc.ServerStreamingServer[adminv1.ProfileChunk]) error {
	caller, err := Administrator(out.Context(), "record profiles here")
	if err != nil {
		return err
	}
	return profile.Send(r, out, p.log.With("uid", caller.UID, "pid", caller.PID))
}

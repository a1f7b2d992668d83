// SPDX-License-Identifier: Apache-2.0

// Package registration keeps an endpoint registered.
//
// A registration expires unless it is renewed. What Start returns renews it in
// time, and at once when the registry that held it comes back after a restart: it follows its
// own entry, so it notices when that is gone (protocol.md §4.5). Forwarders and
// endpoints alike use it.
package registration

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/internal/backoff"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Config says what to register where.
type Config struct {
	Registry grpc.ClientConnInterface // where to register: usually the connection to the node's manager
	Endpoint *registry.NetworkServiceEndpoint
	// Services are registered first, so that a service exists as soon as somebody
	// offers it. One that exists already with the same payload stays as it is.
	Services []*registry.NetworkService
	// Socket is the endpoint's Unix socket, opened with O_PATH, when its URL names
	// it as inode://dev/ino (§3.6). The caller keeps it open until Stop.
	Socket *os.File
	Logger *slog.Logger // nil means slog.Default()
}

// Registration is an endpoint that stays registered until Stop.
type Registration struct {
	c      Config
	cancel context.CancelFunc
	done   chan struct{}

	registered *registry.NetworkServiceEndpoint // the last answer; owned by run
	path       regpath.Path                     // the one of the last answer; owned by run
	hold       time.Duration                    // how long that answer holds; owned by run
	failures   nserr.Book                       // why it was not renewed; owned by run
}

const (
	callTimeout = 15 * time.Second // one attempt to register, as the reference (§4.5)
	stopTimeout = 2 * time.Second  // Unregister on the way out
	// renewAt is the share of the remaining life after which it is renewed. An entry lasts
	// a minute, half of it where the clock of the registry is ahead by query.ClockSkew: in
	// either case it is renewed once more before it ends. The reference renews at 2/3.
	renewAt     = 1.0 / 3
	longestLife = time.Minute // assumed when the registry names no expiry
	// shortestLife is assumed of an entry that has expired, by this machine's clock,
	// when it is registered: two clocks that differ must not make a busy loop.
	shortestLife = 3 * time.Second
	// confirmAfter is when a registration that followed a loss is made once more. A
	// registry that has forgotten all has forgotten the services too, and a manager
	// in between may hear of one 2 s before the other, which is how long its watches
	// pause at most.
	confirmAfter = 2500 * time.Millisecond
	// seenAfter is when an entry that one follows must have been seen.
	seenAfter = time.Second
)

var retry = backoff.Policy{Min: 50 * time.Millisecond, Max: 3 * time.Second}

// Start registers the endpoint and returns when that has succeeded, or failed
// for a reason that trying again would not change. While the registry cannot be
// reached it goes on trying until ctx ends.
func Start(ctx context.Context, c Config) (*Registration, error) {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	r := &Registration{c: c, done: make(chan struct{})}
	for attempt := 0; ; attempt++ {
		err := r.register(ctx, attempt > 0)
		if err == nil {
			break
		}
		if !transient(err) || ctx.Err() != nil {
			return nil, err
		}
		if attempt == 0 {
			c.Logger.Warn("not registered yet, trying on", "endpoint", c.Endpoint.GetName(), "error", err)
		}
		if retry.Wait(ctx, attempt) != nil {
			return nil, err
		}
	}
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.cancel = cancel
	go r.run(runCtx)
	return r, nil
}

// Stop unregisters the endpoint and ends its renewal.
func (r *Registration) Stop(ctx context.Context) error {
	r.cancel()
	<-r.done
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	_, err := registry.NewNetworkServiceEndpointRegistryClient(r.c.Registry).Unregister(r.path.ToOutgoing(ctx), r.registered)
	return err
}

// Abandon ends the renewal and leaves the entry to its expiry: another process
// is going to take it over.
func (r *Registration) Abandon() {
	r.cancel()
	<-r.done
}

// run renews until ctx ends.
func (r *Registration) run(ctx context.Context) {
	defer close(r.done)
	failed, lost := 0, 0     // in a row
	hint := time.Duration(0) // after what time who has refused the last attempt wants to be asked again
	level := slog.LevelDebug // of the line that says that all is well again: that of the one that said it is not
	for {
		switch {
		case failed > 0:
			_ = backoff.Policy{Min: max(retry.Min, 2*hint), Max: max(retry.Max, 2*hint)}.Wait(ctx, failed-1) // not before hint has passed
		case r.lostWithin(ctx, r.untilRenewal(lost > 0)):
			_ = retry.Wait(ctx, lost) // whoever went away needs a moment to come back
			lost++
		default:
			lost = 0
		}
		if ctx.Err() != nil {
			return
		}
		err := r.register(ctx, failed > 0)
		switch {
		case err == nil && failed > 0:
			r.c.Logger.Log(ctx, min(level, slog.LevelInfo), "registered again", "endpoint", r.c.Endpoint.GetName())
			failed = 0
		case err == nil:
		case ctx.Err() != nil:
			return
		default:
			hint = min(nserr.From(err).Retry, r.hold/4)
			if failed++; failed == 1 {
				level = r.failures.Level(slog.LevelWarn, "", "")
				r.c.Logger.Log(ctx, level, "registration not renewed, trying on", "endpoint", r.c.Endpoint.GetName(), "error", err)
			}
		}
	}
}

// untilRenewal is how long to wait before the next renewal. One that followed a
// loss is soon confirmed.
func (r *Registration) untilRenewal(lost bool) time.Duration {
	wait := time.Duration(float64(r.hold) * renewAt * (1 - 0.1*rand.Float64()))
	if lost {
		return min(wait, confirmAfter)
	}
	return wait
}

// lostWithin follows the own entry for the given time. It returns true at once
// when the entry is gone or can no longer be followed, and soon when it is not
// there at all.
func (r *Registration) lostWithin(ctx context.Context, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	watching, forget := context.WithCancel(ctx)
	defer forget()
	// A registry that came back empty before this watch was opened has nothing to
	// tell, ever.
	unseen := time.AfterFunc(seenAfter, forget)
	defer unseen.Stop()
	stream, err := registry.NewNetworkServiceEndpointRegistryClient(r.c.Registry).Find(watching, &registry.NetworkServiceEndpointQuery{
		NetworkServiceEndpoint: &registry.NetworkServiceEndpoint{Name: r.registered.GetName()},
		Watch:                  true,
	})
	for err == nil {
		var got *registry.NetworkServiceEndpointResponse
		if got, err = stream.Recv(); got.GetDeleted() {
			break
		}
		unseen.Stop()
	}
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		r.c.Logger.Debug("lost sight of the own registration", "endpoint", r.registered.GetName(), "error", err)
	}
	return true
}

// register makes one attempt. With patient it waits for a connection to the registry:
// after an attempt without one, which says what is wrong, the next is made the moment
// that there is one.
func (r *Registration) register(ctx context.Context, patient bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for _, ns := range r.c.Services {
		if err := r.registerService(ctx, ns, patient); err != nil {
			return err
		}
	}
	nse := proto.Clone(r.c.Endpoint).(*registry.NetworkServiceEndpoint)
	nse.InitialRegistrationTime = r.registered.GetInitialRegistrationTime()
	if r.c.Socket != nil {
		ctx = rpc.WithFiles(ctx, r.c.Socket)
	}
	var header metadata.MD
	got, err := registry.NewNetworkServiceEndpointRegistryClient(r.c.Registry).Register(r.path.ToOutgoing(ctx), nse, grpc.Header(&header), grpc.WaitForReady(patient))
	if err != nil {
		r.path = regpath.Path{} // its tokens may be what was refused
		return err
	}
	if p, err := regpath.FromHeader(header); err == nil {
		r.path = p
	}
	r.registered = got
	r.hold = longestLife
	if got.GetExpirationTime() != nil {
		r.hold = max(time.Until(got.GetExpirationTime().AsTime()), shortestLife)
	}
	return nil
}

// registerService registers ns unless it is there. Matches that an operator gave
// an existing service are not replaced.
func (r *Registration) registerService(ctx context.Context, ns *registry.NetworkService, patient bool) error {
	client := registry.NewNetworkServiceRegistryClient(r.c.Registry)
	if found, err := findService(ctx, client, ns, grpc.WaitForReady(patient)); found || err != nil {
		return err
	}
	_, err := client.Register(regpath.Path{}.ToOutgoing(ctx), ns)
	if status.Code(err) == codes.PermissionDenied {
		// Another endpoint of the service was quicker, and owns the name now.
		if found, _ := findService(ctx, client, ns); found {
			return nil
		}
	}
	return err
}

// findService reports whether ns is registered. It fails with
// nserr.PayloadMismatch if that has another payload.
func findService(ctx context.Context, client registry.NetworkServiceRegistryClient, ns *registry.NetworkService, opts ...grpc.CallOption) (found bool, err error) {
	stream, err := client.Find(ctx, &registry.NetworkServiceQuery{NetworkService: &registry.NetworkService{Name: ns.GetName()}}, opts...)
	if err != nil {
		return false, err
	}
	for {
		got, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return false, err
		}
		have := got.GetNetworkService()
		if have.GetName() != ns.GetName() {
			continue
		}
		if ns.GetPayload() != "" && have.GetPayload() != ns.GetPayload() {
			return false, nserr.PayloadMismatch.Errorf("network service %q exists with payload %s, this endpoint serves %s", ns.GetName(), have.GetPayload(), ns.GetPayload()).
				WithFix("serve it with --payload %s, or delete the service first", have.GetPayload())
		}
		found = true
	}
}

// transient reports whether trying again may help.
func transient(err error) bool {
	r := nserr.From(err).Reason
	return r.Unanswered() || r == nserr.Busy || r == nserr.StateDir
}

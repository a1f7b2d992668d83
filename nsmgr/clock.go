// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"log/slog"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/query"
	"github.com/openvwire/nsm/sdk/regpath"
)

// registryClock is what the registry's clock shows, as far as the answers to
// registrations tell. What expires does so by that clock. One that differs by what
// clocks may differ by (query.ClockSkew) counts as right.
type registryClock struct {
	log *slog.Logger

	mu    sync.Mutex
	ahead time.Duration // of this node's clock; 0: it is right; guarded by mu
}

// answered learns from an answer to a registration that was to last until wanted, and
// was sent at the one time and came at the other.
func (c *registryClock) answered(header metadata.MD, got *registry.NetworkServiceEndpoint, wanted, sent, came time.Time) {
	if at, ok := regpath.ClockFrom(header); ok {
		c.learn(at.Sub(sent.Add(came.Sub(sent) / 2)))
		return
	}
	// One that does not say: what lasts a minute and has ended before it has begun was
	// given a minute of another time.
	if at := query.Expiry(got); !at.IsZero() && !at.After(came) {
		c.learn(at.Sub(wanted))
	}
}

func (c *registryClock) learn(ahead time.Duration) {
	wrong := ahead.Abs() > query.ClockSkew
	c.mu.Lock()
	was := c.ahead != 0
	c.ahead = 0
	if wrong {
		c.ahead = ahead
	}
	c.mu.Unlock()
	switch {
	case wrong && !was:
		c.log.Warn("the registry's clock differs from this node's: set both, or nodes take what others say for expired", "ahead", ahead.Round(time.Second).String())
	case was && !wrong:
		c.log.Info("the registry's clock agrees with this node's again", "ahead", ahead.Round(time.Second).String())
	}
}

// here is a time of the registry's clock by this node's.
func (c *registryClock) here(at time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return at.Add(-c.ahead)
}

// there is a time of this node's clock by the registry's.
func (c *registryClock) there(at time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return at.Add(c.ahead)
}

// translated is an endpoint as the registry has it, with the expiry by this node's clock.
func (c *registryClock) translated(nse *registry.NetworkServiceEndpoint) *registry.NetworkServiceEndpoint {
	return expiringAt(nse, c.here)
}

// original is an endpoint of this node as the registry has it, or would have.
func (c *registryClock) original(nse *registry.NetworkServiceEndpoint) *registry.NetworkServiceEndpoint {
	return expiringAt(nse, c.there)
}

func expiringAt(nse *registry.NetworkServiceEndpoint, clock func(time.Time) time.Time) *registry.NetworkServiceEndpoint {
	at := query.Expiry(nse)
	if at.IsZero() || clock(at).Equal(at) {
		return nse
	}
	out := proto.CloneOf(nse)
	out.ExpirationTime = timestamppb.New(clock(at))
	return out
}

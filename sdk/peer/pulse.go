// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// A peer that has told nothing for PoolConfig.ProbeEvery is asked whether it is alive,
// and at once again after probeLimit without an answer. The second time it is lost: two
// seconds later.
const (
	defaultProbeEvery = 2 * time.Second
	probeLimit        = time.Second
)

// pulse tells a peer that is dead from one that has nothing to say: it calls
// grpc.health.v1, once for all that is subscribed to, and any answer will do.
//
// The connection cannot tell. The kernel of a process that is frozen goes on
// answering for it, and pings of HTTP/2 are too many for the servers of others
// (package rpc, dial.go). A call is none of these, and all gRPC servers answer it.
type pulse struct {
	health  healthpb.HealthClient
	every   time.Duration // without a sign of life
	due     *time.Timer   // fires when it is time to ask
	answers chan bool     // gets whether the call under way was answered
	next    time.Time     // when to ask, unless there is a sign of life
	silent  int           // calls in a row without an answer
}

func newPulse(conn grpc.ClientConnInterface, every time.Duration) *pulse {
	p := &pulse{health: healthpb.NewHealthClient(conn), every: every, due: time.NewTimer(every), answers: make(chan bool, 1)}
	p.heard()
	return p
}

func (p *pulse) stop() { p.due.Stop() }

// heard notes a sign of life. Peers that were lost together are not asked together
// for ever.
func (p *pulse) heard() {
	p.next, p.silent = time.Now().Add(p.every-rand.N(p.every/4)), 0
}

// isQuiet reports whether to ask now that due has fired.
func (p *pulse) isQuiet() bool {
	wait := time.Until(p.next)
	if wait > 0 {
		p.due.Reset(wait)
	}
	return wait <= 0
}

// ask makes one call.
func (p *pulse) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	_, _ = p.health.Check(ctx, &healthpb.HealthCheckRequest{})
	p.answers <- ctx.Err() == nil
}

// judge takes the outcome of a call and reports whether the peer may be alive.
func (p *pulse) judge(answered bool) bool {
	if answered {
		p.heard()
		p.due.Reset(time.Until(p.next))
		return true
	}
	p.silent++
	p.due.Reset(0)
	return p.silent < 2
}

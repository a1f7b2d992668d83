// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
)

// drought is a time without packets on a wire. The zero value is none.
type drought struct {
	since   time.Time // when an answer came last, or the path on which none came was made
	paths   int       // that were taken since, and carry nothing either; guarded by Wire.mu
	renewed bool      // a path was taken since packets were last found to have stopped
}

// notePackets keeps the drought, and says when it begins and ends: while it lasts the
// control plane may be well, and everything looks as it should.
func (w *Wire) notePackets(e conn.Event) {
	switch e {
	case conn.DataNone:
		c := w.Connection()
		w.client.log.Warn("no answer to a ping has ever come through the wire, which is not held against it", "connection", w.id, "service", w.service,
			"endpoint", c.GetNetworkServiceEndpointName(), "error", w.noPackets())
	case conn.DataLost:
		if w.dry.since.IsZero() {
			w.dry.since = w.prober.heard()
			if w.dry.since.IsZero() {
				w.dry.since = w.asked
			}
			w.sayDry(slog.LevelWarn, "no packets come back through the wire, asking for another path")
			return
		}
		if !w.dry.renewed {
			return
		}
		w.dry.renewed = false
		w.mu.Lock()
		w.dry.paths++
		n := w.dry.paths
		w.tellLocked()
		w.mu.Unlock()
		w.sayDry(reminder(n), "no packets come back on another path either, trying on")
	case conn.DataBack:
		if !w.dry.since.IsZero() {
			c := w.Connection()
			w.client.log.Info("packets come back through the wire again", "connection", w.id, "service", w.service,
				"endpoint", c.GetNetworkServiceEndpointName(), "addresses", w.Addrs(), "since", w.dry.since.Round(time.Millisecond))
			w.endDrought()
		}
	}
}

// reminder is the level of the line about attempt n of many in vain: ever fewer are loud.
func reminder(n int) slog.Level {
	if n >= 8 && n&(n-1) == 0 {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

func (w *Wire) sayDry(level slog.Level, what string) {
	c := w.Connection()
	w.client.log.Log(context.Background(), level, what, "connection", w.id, "service", w.service, "endpoint", c.GetNetworkServiceEndpointName(),
		"since", w.dry.since.Round(time.Millisecond), "attempt", w.dry.paths+1, "error", w.noPackets())
}

// noPackets is what is wrong with a wire through which no packets come back, and where
// to look.
func (w *Wire) noPackets() error {
	if tries := w.tries(); tries > 0 { // the control plane is not well either, and says so itself
		return nserr.NoPackets.Errorf("no answer comes through %s", w.Interface())
	}
	tunnel := w.tunnel()
	if tunnel == "" {
		return nserr.NoPackets.Errorf("no answer comes through %s; the control plane is well", w.Interface()).
			WithFix("see whether the workload of the endpoint runs and answers pings; 'nsm describe wire %s' shows what the wire is made of", w.id)
	}
	return nserr.NoPackets.Errorf("no answer comes through %s (%s); the control plane is well", w.Interface(), tunnel).
		WithFix("see with 'nsm describe wire %s' whether all is as it should be at both ends; if it is, that UDP passes between the nodes, in both directions, at the addresses and ports of the tunnel", w.id)
}

// tunnel is the mechanism by which the wire leaves this node, as the first forwarder
// says in its metrics (protocol.md §2.12); "" if it does not leave, or nobody says.
func (w *Wire) tunnel() string {
	for _, s := range w.Connection().GetPath().GetPathSegments() {
		if m, _, _ := strings.Cut(s.GetMetrics()["client_interface"], "/"); m != "" && m != mechanism.TypeKernel {
			return m
		}
	}
	return ""
}

// errNoPackets is why an attempt has failed that was answered.
var errNoPackets = nserr.NoPackets.Errorf("packets flow on no path that was taken")

// endDrought forgets what was about packets that have stopped.
func (w *Wire) endDrought() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dry.paths > 0 {
		w.tellLocked()
	}
	w.dry = drought{}
}

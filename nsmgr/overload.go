// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"log/slog"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/gate"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// gated is the manager as others call it: its Requests pass a gate, which keeps what is
// worked on at once to what the machine can do (docs/protocol.md, P-96). Closes and
// watches do not. Forwarders and endpoints have no gates: who asks them is a manager.
type gated struct{ *Manager }

// Request waits to be let in, and requests.
func (g gated) Request(ctx context.Context, req *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	caller := hop.Identity(rpc.CallerFrom(ctx))
	leave, err := g.config.Gate.Enter(ctx, caller, func() gate.Visit { return g.hop.Visit(ctx, req.GetConnection(), g.config.MayRelay) })
	if err != nil {
		g.refused(ctx, caller, req, err)
		return nil, err
	}
	defer leave()
	return g.Manager.Request(ctx, req)
}

// refused ends a Request that was not let in. Its descriptors would keep those of others
// out for a while; no more are closed than it names, since others send the same
// namespace. It is said of each caller: who asks for too much is among them.
func (g gated) refused(ctx context.Context, caller string, req *networkservice.NetworkServiceRequest, err error) {
	for _, url := range namedFiles(req, "") {
		rpc.DiscardFile(ctx, url)
	}
	reason := nserr.From(err).Reason.Code
	g.log.Log(ctx, g.overload.Level(slog.LevelWarn, caller, reason), "a Request was not let in", "spiffe_id", caller, "error", err)
}

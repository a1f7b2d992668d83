// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/query"
	"github.com/openvwire/nsm/sdk/rpc"
)

// MoveAway has the clients of this endpoint take others before it stops: nobody gets it
// any more, and each client has its new path before the old one is closed. It returns
// when no connection is left, when those that are left do not move, at once if there is
// no other endpoint of a service of theirs, and when ctx ends. left says how many
// connections are left. Only Stop is to follow.
//
// It needs a manager that can drain (nsm.admin.v1).
func (e *Endpoint) MoveAway(ctx context.Context) (left int, err error) {
	if e.Len() == 0 {
		return 0, nil
	}
	if others, err := e.hasOthers(ctx); err != nil || !others {
		return e.Len(), err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	stream, err := adminv1.NewAdminClient(e.manager).Drain(ctx, &adminv1.DrainRequest{Endpoints: []string{e.name}})
	for err == nil {
		var p *adminv1.DrainProgress
		p, err = stream.Recv()
		if err == nil && p.GetWires() > 0 && int(p.GetWires()) == len(p.GetStuck()) {
			return len(p.GetStuck()), nil
		}
	}
	if !errors.Is(err, io.EOF) {
		return e.Len(), err
	}
	e.awaitCloses(ctx)
	return e.Len(), nil
}

// closeWait is how long connections are waited for that have moved: the old paths are
// closed in the background.
const closeWait = time.Second

func (e *Endpoint) awaitCloses(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, closeWait)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for e.Len() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// hasOthers reports whether another endpoint is registered for a service of a
// connection.
func (e *Endpoint) hasOthers(ctx context.Context) (bool, error) {
	asked := make(map[string]bool)
	for _, v := range e.monitor.All() {
		service := v.Conn().GetNetworkService()
		if asked[service] {
			continue
		}
		asked[service] = true
		found, err := registry.NewNetworkServiceEndpointRegistryClient(e.manager).Find(ctx, &registry.NetworkServiceEndpointQuery{
			NetworkServiceEndpoint: &registry.NetworkServiceEndpoint{NetworkServiceNames: []string{service}},
		})
		if err != nil {
			return false, err
		}
		others := false
		err = rpc.Drain(found, func(r *registry.NetworkServiceEndpointResponse) error {
			nse := r.GetNetworkServiceEndpoint()
			others = others || nse.GetName() != e.name && !query.Ended(nse, time.Now())
			return nil
		})
		if err != nil || others {
			return others, err
		}
	}
	return false, nil
}

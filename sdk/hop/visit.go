// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"context"
	"slices"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/gate"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Visit tells a gate what comes with a Request that is not admitted yet. It costs little,
// since it is asked for when there is no time, and believes nothing but whom TLS has
// proved the caller to be, and what this hop knows itself:
//
//   - a refresh is of a connection that this hop has. Its id follows from the caller's
//     identity, so nobody has it but who has opened that connection through the same
//     neighbour. What somebody else claims to refresh is new.
//   - what has passed a hop before comes from somebody who may send Requests of others
//     (relays, nil = everybody), or has passed this hop, and is on its way through a
//     pass-through endpoint.
func (h Hop) Visit(ctx context.Context, conn *networkservice.Connection, relays func(id string) bool) gate.Visit {
	caller := rpc.CallerFrom(ctx)
	v, from := gate.Visit{Class: gate.Fresh}, Identity(caller)
	p, err := path.Enter(PathOf(conn), conn.GetId(), h.Name)
	if err != nil || p.Index < 1 {
		return v // Admit says what is wrong
	}
	first := p.Segments[0].Token
	if p.Index == 1 {
		first = caller.Token
	}
	b := Binding{Owner: subject(first), Caller: from}
	if id := b.id(h.Name, p.Segments[p.Index-1]); h.has(id, b.Owner) {
		v.Class, v.Of = gate.Refresh, id
		return v
	}
	if p.Index == 1 {
		return v
	}
	if relays == nil || relays(from) || h.passed(p, b.Owner) {
		v.Class = gate.Transit
	}
	return v
}

// has reports whether this hop has a connection of the given id and owner.
func (h Hop) has(id, owner string) bool {
	v, ok := h.Monitor.Get(id)
	return ok && len(v.Identities()) > 0 && v.Identities()[0] == owner
}

// Passed reports whether a connection has led through this hop before, on behalf of the
// same owner: the caller is a pass-through endpoint.
func (h Hop) Passed(call *Call) bool { return h.passed(PathOf(call.Conn), call.Binding.Owner) }

func (h Hop) passed(p path.Path, owner string) bool {
	return slices.ContainsFunc(p.Segments[:p.Index], func(s path.Segment) bool { return s.Name == h.Name && h.has(s.ID, owner) })
}

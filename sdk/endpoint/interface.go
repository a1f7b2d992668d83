// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"os"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Interface has each connection end in an interface in the network namespace
// netns, nil meaning that of this process. The file stays the caller's and must
// stay open for as long as the endpoint serves.
func Interface(netns *os.File) Middleware {
	return func(next Handler) Handler {
		return Funcs{
			OnRequest: func(ctx context.Context, r *Request) error {
				if err := offerInterface(ctx, r, netns); err != nil {
					return err
				}
				return next.Request(ctx, r)
			},
			OnClose: next.Close,
		}
	}
}

func offerInterface(ctx context.Context, r *Request, netns *os.File) error {
	choices, err := mechanism.Choose(hop.MechanismOf(r.Connection.GetMechanism()), hop.MechanismsOf(r.Preferences), func(m mechanism.Mechanism) bool {
		return m.Type == mechanism.TypeKernel && m.Class == mechanism.Local
	})
	if err != nil {
		return err
	}
	if netns == nil {
		own, err := os.Open("/proc/self/ns/net")
		if err != nil {
			return nserr.NoNetNS.Errorf("%w", err)
		}
		defer own.Close()
		netns = own
	}
	url, err := rpc.InodeURL(netns)
	if err != nil {
		return err
	}
	if err := rpc.SendFiles(ctx, netns); err != nil {
		return err
	}
	name := choices[0].Params["name"]
	if mechanism.CheckInterfaceName(name) != nil {
		name = mechanism.InterfaceName(r.Connection.GetNetworkService(), r.Connection.GetId())
	}
	r.Connection.Mechanism = hop.MechanismMessage(mechanism.Kernel{NetNS: url, Name: name}.With(choices[0]))
	return nil
}

// MTU limits the MTU of each connection, in bytes.
func MTU(mtu uint32) Middleware {
	return func(next Handler) Handler {
		return Funcs{
			OnRequest: func(ctx context.Context, r *Request) error {
				if r.Connection.Context == nil {
					r.Connection.Context = &networkservice.ConnectionContext{}
				}
				if c := r.Connection.Context; c.MTU == 0 || c.MTU > mtu {
					c.MTU = mtu
				}
				return next.Request(ctx, r)
			},
			OnClose: next.Close,
		}
	}
}

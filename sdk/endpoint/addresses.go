// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/ipam"
)

// AddressPolicy says what becomes of addresses in a request that are not out of
// the endpoint's pool (NSM_IPAM_POLICY).
type AddressPolicy string

const (
	// Strict removes them, and routes to them: they stem from another endpoint
	// that the client came from.
	Strict AddressPolicy = "strict"
	// Polite keeps them beside those of the pool.
	Polite AddressPolicy = "polite"
)

// awayFor is how long the addresses of a connection wait for it that is closed to be
// opened anew: until its client has tried a few times.
const awayFor = 30 * time.Second

// Addresses gives each connection a pair of addresses out of the pool and host
// routes to each other (protocol.md §6.3). A connection that is opened anew keeps
// them. One that comes back after a restart of the endpoint gets the addresses it says
// it has; see Leases for how nobody else gets them before.
func Addresses(pool *ipam.Pool, policy AddressPolicy) Middleware {
	return func(next Handler) Handler {
		return Funcs{
			OnRequest: func(ctx context.Context, r *Request) error {
				pool.Expire(time.Now())
				if err := giveAddresses(pool, policy, r); err != nil {
					return err
				}
				return next.Request(ctx, r)
			},
			OnClose: func(ctx context.Context, c *networkservice.Connection) {
				switch c.GetState() {
				case networkservice.State_RESELECT_REQUESTED:
					pool.Park(c.GetId(), time.Now().Add(awayFor))
				case networkservice.State_DOWN:
					pool.Return(c.GetId())
				default:
					pool.Release(c.GetId())
				}
				next.Close(ctx, c)
			},
		}
	}
}

func giveAddresses(pool *ipam.Pool, policy AddressPolicy, r *Request) error {
	c := r.Connection
	if c.Context == nil {
		c.Context = &networkservice.ConnectionContext{}
	}
	if c.Context.IpContext == nil {
		c.Context.IpContext = &networkservice.IPContext{}
	}
	ip := c.Context.IpContext
	src, err := hop.ParsePrefixes(ip.SrcIpAddrs)
	if err != nil {
		return err
	}
	dst, err := hop.ParsePrefixes(ip.DstIpAddrs)
	if err != nil {
		return err
	}
	excluded, err := hop.ParsePrefixes(ip.ExcludedPrefixes)
	if err != nil {
		return err
	}
	lease, err := pool.Allocate(c.GetId(), ipam.Want{Src: src, Dst: dst}, excluded)
	if err != nil {
		return err
	}
	if policy == Strict {
		src, dst = nil, nil
		ip.SrcRoutes, ip.DstRoutes = nil, nil
	} else {
		ours := func(p netip.Prefix) bool { return pool.Contains(p.Addr()) }
		src, dst = slices.DeleteFunc(src, ours), slices.DeleteFunc(dst, ours)
		stale := func(r *networkservice.Route) bool {
			p, err := hop.ParsePrefix(r.GetPrefix())
			return err != nil || pool.Contains(p.Addr())
		}
		ip.SrcRoutes, ip.DstRoutes = slices.DeleteFunc(ip.SrcRoutes, stale), slices.DeleteFunc(ip.DstRoutes, stale)
	}
	ip.SrcIpAddrs = texts(append(slices.Clone(lease.Src), src...))
	ip.DstIpAddrs = texts(append(slices.Clone(lease.Dst), dst...))
	for _, p := range lease.Dst {
		ip.SrcRoutes = append(ip.SrcRoutes, &networkservice.Route{Prefix: p.String()})
	}
	for _, p := range lease.Src {
		ip.DstRoutes = append(ip.DstRoutes, &networkservice.Route{Prefix: p.String()})
	}
	return nil
}

func texts(ps []netip.Prefix) []string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.String()
	}
	return out
}

// SPDX-License-Identifier: Apache-2.0

// Package ipam gives each connection its pair of point-to-point addresses
// (docs/protocol.md, "IPAM"): the lowest free address of a pool is the
// endpoint's (dst), the next free one the client's (src), each as a host
// prefix, /32 or /128. A pool's network and broadcast address are used like
// any other, since the wire is no subnet.
//
//	groups, err := ipam.ParseGroups("10.0.0.0/24,fd00::/64")
//	pool, err := ipam.New(groups)
//	lease, err := pool.Allocate(conn.ID, ipam.Want{}, excluded)
//	// lease.Dst = 10.0.0.0/32, fd00::/128   the endpoint's
//	// lease.Src = 10.0.0.1/32, fd00::1/128  the client's
//	pool.Release(conn.ID)
//
// Pools come in groups: a connection gets one pair from every group (so two
// groups make a wire dual-stack), taken from the first prefix of the group that
// has room.
//
// A lease whose connection is away for a moment is parked: nobody else gets its
// addresses until a given time. So is one that [Pool.Restore] brings over from before a
// restart.
package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Lease is the addresses of one connection, one of each side per group, in the
// order of the groups.
type Lease struct {
	Src []netip.Prefix // the client's
	Dst []netip.Prefix // the endpoint's
}

// Want is the addresses found in a request. They are those of an earlier lease
// when the endpoint has restarted, or of another endpoint when the client has
// come over from it.
type Want struct {
	Src []netip.Prefix
	Dst []netip.Prefix
}

// Pool hands out addresses and never the same one twice. It may be used by
// several goroutines.
type Pool struct {
	groups [][]*space // immutable; the spaces in it are guarded by mu

	mu     sync.Mutex
	leases map[string][]pair  // by connection id; one pair per group
	parked map[string]parking // the leases that have been parked, until they are used twice
}

// parking is how long a lease is kept whose connection is away.
type parking struct {
	until time.Time
	back  bool // the connection is; it has yet to stay
}

// pair is what a lease holds of one group.
type pair struct {
	from     *space // nil: nothing yet
	dst, src netip.Addr
}

// New makes a pool of groups of prefixes, each prefix with room for a pair, no
// two of them overlapping. Bits behind a prefix's length are ignored.
func New(groups [][]netip.Prefix) (*Pool, error) {
	if len(groups) == 0 {
		return nil, nserr.BadFlag.Errorf("no address pool is given")
	}
	p := &Pool{leases: make(map[string][]pair), parked: make(map[string]parking)}
	var seen []netip.Prefix
	for i, group := range groups {
		if len(group) == 0 {
			return nil, nserr.BadFlag.Errorf("address pool group %d is empty", i+1)
		}
		var spaces []*space
		for _, prefix := range group {
			if !prefix.IsValid() || prefix.IsSingleIP() {
				return nil, nserr.BadFlag.Errorf("address pool %v has no room for two addresses", prefix)
			}
			if k := slices.IndexFunc(seen, prefix.Overlaps); k >= 0 {
				return nil, nserr.BadFlag.Errorf("address pools %v and %v overlap", seen[k], prefix)
			}
			seen = append(seen, prefix)
			spaces = append(spaces, newSpace(prefix))
		}
		p.groups = append(p.groups, spaces)
	}
	return p, nil
}

// Allocate returns the lease of connection id, making it if there is none.
//
// A new lease takes the wanted addresses wherever a group still has both
// free, and the lowest free ones otherwise. A lease that exists stays as it is
// (want is ignored), except that a pair with an address that has become
// excluded is replaced. One that was parked is no longer.
//
// Errors: [nserr.AddressesExhausted] when a group has no two addresses left,
// [nserr.AddressesExcluded] when it has but they are all excluded. After an
// error nothing has changed: no new lease, the old one as it was.
func (p *Pool) Allocate(id string, want Want, excluded []netip.Prefix) (Lease, error) {
	p.mu.Lock()
	defer p.mu.Unlock()

	old, known := p.leases[id]
	if known && !slices.ContainsFunc(old, func(h pair) bool { return h.unfit(excluded) }) {
		p.unparkLocked(id)
		return leaseOf(old), nil
	}
	if !known {
		old = make([]pair, len(p.groups))
	} else {
		want = Want{}
	}
	barred := union(excluded)
	held := slices.Clone(old)
	for i, group := range p.groups {
		if known && !old[i].unfit(excluded) {
			continue
		}
		old[i].putBack()
		next, ok := recoverPair(group, want, excluded)
		if !ok {
			next, ok = lowestPair(group, barred)
		}
		if !ok {
			err := shortage(group, excluded) // while what is given up counts as free
			old[i].take()
			for j := range i {
				if held[j] != old[j] {
					held[j].putBack()
					old[j].take()
				}
			}
			return Lease{}, err
		}
		next.take()
		held[i] = next
	}
	p.leases[id] = held
	p.unparkLocked(id)
	return leaseOf(held), nil
}

func (p *Pool) unparkLocked(id string) {
	if at, parked := p.parked[id]; parked && !at.back {
		p.parked[id] = parking{until: at.until, back: true}
	} else {
		delete(p.parked, id)
	}
}

// Return takes back what Allocate has just given to a connection that has not come
// about: a lease that was parked is parked again, any other one released.
func (p *Pool) Return(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at, parked := p.parked[id]; parked {
		p.parked[id] = parking{until: at.until}
	} else {
		p.releaseLocked(id)
	}
}

// Release frees the addresses of connection id. An unknown id is ignored.
func (p *Pool) Release(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.releaseLocked(id)
}

func (p *Pool) releaseLocked(id string) {
	for _, h := range p.leases[id] {
		h.putBack()
	}
	delete(p.leases, id)
	delete(p.parked, id)
}

// Park keeps the addresses of connection id for it, which is away, until the given
// time. An unknown id is ignored.
func (p *Pool) Park(id string, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.leases[id]; known {
		p.parked[id] = parking{until: until}
	}
}

// Restore parks a lease that connection id had in an earlier life of the pool. What
// is not of the pool any more, or not free, is left out; Allocate replaces it. It
// reports whether anything was restored. The lease of an id that has one stays as it is.
func (p *Pool) Restore(id string, l Lease, until time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.leases[id]; known {
		return false
	}
	held, some := make([]pair, len(p.groups)), false
	for i, group := range p.groups {
		if h, ok := recoverPair(group, Want(l), nil); ok {
			h.take()
			held[i], some = h, true
		}
	}
	if some {
		p.leases[id], p.parked[id] = held, parking{until: until}
	}
	return some
}

// Expire frees the addresses that have been parked for long enough.
func (p *Pool) Expire(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, at := range p.parked {
		if !at.back && !at.until.After(now) {
			p.releaseLocked(id)
		}
	}
}

// Leases returns all leases by connection id, as of now, without those that are parked.
func (p *Pool) Leases() map[string]Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[string]Lease, len(p.leases))
	for id, held := range p.leases {
		if at, parked := p.parked[id]; !parked || at.back {
			all[id] = leaseOf(held)
		}
	}
	return all
}

// Contains reports whether addr belongs to one of the pools, free or not.
// Strict endpoints remove what does not from a request before they allocate.
func (p *Pool) Contains(addr netip.Addr) bool {
	for _, group := range p.groups {
		if slices.ContainsFunc(group, func(s *space) bool { return s.prefix.Contains(addr) }) {
			return true
		}
	}
	return false
}

// recoverPair returns the first wanted pair that the group has free.
func recoverPair(group []*space, want Want, excluded []netip.Prefix) (pair, bool) {
	for _, s := range group {
		for _, dst := range want.Dst {
			for _, src := range want.Src {
				h := pair{from: s, dst: dst.Addr(), src: src.Addr()}
				if h.dst != h.src && s.has(h.dst) && s.has(h.src) && !h.in(excluded) {
					return h, true
				}
			}
		}
	}
	return pair{}, false
}

// lowestPair returns the two lowest free addresses of the first space in the
// group that has two.
func lowestPair(group []*space, barred []span) (pair, bool) {
	for _, s := range group {
		if dst, src, ok := s.lowestTwo(barred); ok {
			return pair{from: s, dst: dst, src: src}, true
		}
	}
	return pair{}, false
}

// shortage is the error for a group in which no pair was found.
func shortage(group []*space, excluded []netip.Prefix) error {
	var names []string
	for _, s := range group {
		names = append(names, s.prefix.String())
	}
	pools := strings.Join(names, ", ")
	if _, ok := lowestPair(group, nil); ok {
		return nserr.AddressesExcluded.Errorf("no address of %s is both free and outside the excluded prefixes %s",
			pools, strings.Trim(fmt.Sprint(excluded), "[]"))
	}
	return nserr.AddressesExhausted.Errorf("no two addresses of %s are free", pools)
}

// leaseOf shows pairs as a Lease.
func leaseOf(held []pair) Lease {
	addrs := make([]netip.Prefix, 2*len(held))
	n := len(held)
	l := Lease{Src: addrs[:n:n], Dst: addrs[n:]}
	for i, h := range held {
		l.Src[i] = netip.PrefixFrom(h.src, h.src.BitLen())
		l.Dst[i] = netip.PrefixFrom(h.dst, h.dst.BitLen())
	}
	return l
}

// in reports whether one of the two addresses is excluded.
func (h pair) in(excluded []netip.Prefix) bool {
	return slices.ContainsFunc(excluded, func(x netip.Prefix) bool {
		return x.Contains(h.dst) || x.Contains(h.src)
	})
}

// unfit reports whether a lease needs another pair in place of h.
func (h pair) unfit(excluded []netip.Prefix) bool { return h.from == nil || h.in(excluded) }

func (h pair) take() {
	if h.from != nil {
		h.from.take(h.dst)
		h.from.take(h.src)
	}
}

func (h pair) putBack() {
	if h.from != nil {
		h.from.put(h.dst)
		h.from.put(h.src)
	}
}

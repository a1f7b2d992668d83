// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/openvwire/nsm/sdk/ipam"
	"github.com/openvwire/nsm/sdk/nserr"
)

// model is a pool as one would write it without a thought for speed: every
// address is tried, from the lowest.
type model struct {
	groups [][]netip.Prefix
	leases map[string][][2]netip.Addr // per group: dst, src; invalid where nothing was restored
	parked map[string]int             // until when, while the connection is away
	back   map[string]int             // until when it was, until it is allocated again
}

func (m *model) used(a netip.Addr) bool {
	for _, held := range m.leases {
		for _, h := range held {
			if slices.Contains(h[:], a) {
				return true
			}
		}
	}
	return false
}

func covers(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// pick is the pair that the group would give, or ok false.
func (m *model) pick(group []netip.Prefix, want ipam.Want, excluded []netip.Prefix) (h [2]netip.Addr, ok bool) {
	usable := func(p netip.Prefix, a netip.Addr) bool {
		return p.Contains(a) && !m.used(a) && !covers(excluded, a)
	}
	for _, p := range group {
		for _, dst := range want.Dst {
			for _, src := range want.Src {
				if src != dst && usable(p, dst.Addr()) && usable(p, src.Addr()) {
					return [2]netip.Addr{dst.Addr(), src.Addr()}, true
				}
			}
		}
	}
	for _, p := range group {
		var found []netip.Addr
		for a := p.Addr(); p.Contains(a) && len(found) < 2; a = a.Next() {
			if usable(p, a) {
				found = append(found, a)
			}
		}
		if len(found) == 2 {
			return [2]netip.Addr(found), true
		}
	}
	return h, false
}

func (m *model) allocate(id string, want ipam.Want, excluded []netip.Prefix) *nserr.Reason {
	before, known := m.leases[id]
	if known {
		want = ipam.Want{}
	}
	held := make([][2]netip.Addr, len(m.groups))
	copy(held, before)
	m.leases[id] = held
	for i, group := range m.groups {
		if known && held[i][0].IsValid() && !covers(excluded, held[i][0]) && !covers(excluded, held[i][1]) {
			continue
		}
		held[i] = [2]netip.Addr{}
		h, ok := m.pick(group, want, excluded)
		if !ok {
			reason := nserr.AddressesExhausted
			if _, ok := m.pick(group, ipam.Want{}, nil); ok {
				reason = nserr.AddressesExcluded
			}
			delete(m.leases, id)
			if known {
				m.leases[id] = before
			}
			return reason
		}
		held[i] = h
	}
	until, away := m.parked[id]
	delete(m.back, id)
	if delete(m.parked, id); away {
		m.back[id] = until
	}
	return nil
}

func (m *model) release(id string) {
	delete(m.leases, id)
	delete(m.parked, id)
	delete(m.back, id)
}

func (m *model) restore(id string, l ipam.Lease, until int) {
	if m.leases[id] != nil {
		return
	}
	held, some := make([][2]netip.Addr, len(m.groups)), false
	m.leases[id] = held
	for i, group := range m.groups {
		for _, p := range group {
			for _, dst := range l.Dst {
				for _, src := range l.Src {
					free := func(a netip.Addr) bool { return p.Contains(a) && !m.used(a) }
					if !held[i][0].IsValid() && src != dst && free(dst.Addr()) && free(src.Addr()) {
						held[i], some = [2]netip.Addr{dst.Addr(), src.Addr()}, true
					}
				}
			}
		}
	}
	if m.parked[id] = until; !some {
		m.release(id)
	}
}

// TestAgainstModel compares the pool, over random histories, with a naive one,
// and checks that no address is ever handed out twice.
func TestAgainstModel(t *testing.T) {
	layouts := []string{
		"10.0.0.0/29",
		"10.0.0.0/30,fd00::/125",
		"[10.0.0.0/31,10.0.0.4/30,10.0.0.8/31],[fd00::/126]",
		"255.255.255.248/29,ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff8/125",
	}
	rapid.Check(t, func(t *rapid.T) {
		groups, err := ipam.ParseGroups(rapid.SampledFrom(layouts).Draw(t, "pools"))
		if err != nil {
			t.Fatal(err)
		}
		pool, err := ipam.New(groups)
		if err != nil {
			t.Fatal(err)
		}
		naive := &model{groups: groups, leases: map[string][][2]netip.Addr{}, parked: map[string]int{}, back: map[string]int{}}
		now := 0 // seconds
		at := func(s int) time.Time { return time.Unix(int64(s), 0) }

		prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
			p := rapid.SampledFrom(slices.Concat(groups...)).Draw(t, "in")
			a := p.Addr()
			for range rapid.IntRange(0, 7).Draw(t, "offset") {
				if next := a.Next(); p.Contains(next) {
					a = next
				}
			}
			return netip.PrefixFrom(a, a.BitLen()-rapid.IntRange(0, 3).Draw(t, "shorter"))
		})
		host := rapid.Map(prefix, func(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Addr(), p.Addr().BitLen()) })
		ids := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})

		t.Repeat(map[string]func(*rapid.T){
			"allocate": func(t *rapid.T) {
				id := ids.Draw(t, "id")
				want := ipam.Want{
					Src: rapid.SliceOfN(host, 0, 2).Draw(t, "src"),
					Dst: rapid.SliceOfN(host, 0, 2).Draw(t, "dst"),
				}
				excluded := rapid.SliceOfN(prefix, 0, 3).Draw(t, "excluded")
				reason := naive.allocate(id, want, excluded)
				_, err := pool.Allocate(id, want, excluded)
				if (reason == nil) != (err == nil) || reason != nil && !errors.Is(err, reason) {
					t.Fatalf("Allocate(%s) = %v, want %v", id, err, reason)
				}
			},
			"release": func(t *rapid.T) {
				id := ids.Draw(t, "id")
				pool.Release(id)
				naive.release(id)
			},
			"park": func(t *rapid.T) {
				id, until := ids.Draw(t, "id"), now+rapid.IntRange(0, 3).Draw(t, "for")
				pool.Park(id, at(until))
				if naive.leases[id] != nil {
					naive.parked[id] = until
					delete(naive.back, id)
				}
			},
			"return": func(t *rapid.T) {
				id := ids.Draw(t, "id")
				pool.Return(id)
				if until, was := naive.back[id]; was {
					naive.parked[id] = until
					delete(naive.back, id)
				} else if _, is := naive.parked[id]; !is {
					naive.release(id)
				}
			},
			"restore": func(t *rapid.T) {
				id, until := ids.Draw(t, "id"), now+rapid.IntRange(0, 3).Draw(t, "for")
				lease := ipam.Lease{
					Src: rapid.SliceOfN(host, 0, 2).Draw(t, "src"),
					Dst: rapid.SliceOfN(host, 0, 2).Draw(t, "dst"),
				}
				naive.restore(id, lease, until)
				if got := pool.Restore(id, lease, at(until)); got && naive.leases[id] == nil {
					t.Fatalf("Restore(%s) = %t", id, got)
				}
			},
			"time passes": func(t *rapid.T) {
				now++
				pool.Expire(at(now))
				for id, until := range naive.parked {
					if until <= now {
						naive.release(id)
					}
				}
			},
			"": func(t *rapid.T) {
				leases := pool.Leases()
				if len(leases) != len(naive.leases)-len(naive.parked) {
					t.Fatalf("%d leases, want %d less %d", len(leases), len(naive.leases), len(naive.parked))
				}
				seen := map[netip.Addr]string{}
				for id, l := range leases {
					for i, h := range naive.leases[id] {
						if l.Dst[i].Addr() != h[0] || l.Src[i].Addr() != h[1] {
							t.Fatalf("%s has %v, %v, want %v", id, l.Dst[i], l.Src[i], h)
						}
					}
					for _, a := range slices.Concat(l.Src, l.Dst) {
						if other, taken := seen[a.Addr()]; taken {
							t.Fatalf("%v is leased to %s and to %s", a, other, id)
						}
						seen[a.Addr()] = id
					}
				}
			},
		})
	})
}

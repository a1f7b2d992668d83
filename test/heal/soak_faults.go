// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A soak has one component and one fault more than the matrix.
const (
	wireEnd component = "end of a wire"
	deleted fault     = "link deleted"
)

// target is something that can fail in a soak, in one way at a time.
type target struct {
	component component
	name      string
	number    int // of several of the component
	faults    []fault
}

// step is one fault of a soak.
type step struct {
	target target
	fault  fault
	at     time.Duration // since the beginning
	lasts  time.Duration
	pick   uint32 // chooses among what there is then
}

func (f step) String() string {
	return fmt.Sprintf("%6.1fs %s: %s for %v", f.at.Seconds(), f.target.name, f.fault, f.lasts.Round(10*time.Millisecond))
}

// Faults of a soak come so soon after each other, and last so long: about four at a
// time.
const (
	soakGap   = time.Second
	soakLasts = 4 * time.Second
	soakPause = time.Second // between two of the same target
)

// schedule is which faults there are within d: the same for the same seed.
func schedule(seed uint64, d time.Duration, targets []target) (plan []step) {
	r := rand.New(rand.NewPCG(seed, 0))
	between := func(low, high time.Duration) time.Duration { return low + time.Duration(r.Int64N(int64(high-low))) }
	free := make(map[string]time.Duration) // when a target is well again
	for at := between(0, soakGap); at < d; at += between(soakGap/10, soakGap) {
		t := targets[r.IntN(len(targets))]
		f := step{target: t, fault: t.faults[r.IntN(len(t.faults))], at: at, lasts: between(soakLasts/20, soakLasts), pick: r.Uint32()}
		if free[t.name] > at {
			continue
		}
		free[t.name] = at + f.lasts + soakPause
		plan = append(plan, f)
	}
	return plan
}

// inject makes a fault happen. What it returns undoes it.
func (s *soak) inject(ctx context.Context, f step) (undo, error) {
	m := &mesh{lab: s.lab}
	switch t := f.target; t.component {
	case endpoints:
		return s.servers[t.number].inject(ctx, f.fault)
	case client:
		return s.clients[t.number].inject(ctx, f.fault)
	case wireEnd:
		return nothing, s.deleteLink(f.pick)
	case localHolder, remoteHolder:
		end, err := m.inject(ctx, t.component, f.fault)
		if end == nil || err != nil { // there is none, or it has just ended
			return nothing, nil
		}
		return func(ctx context.Context) error { _ = end(ctx); return nil }, nil
	default:
		return m.inject(ctx, t.component, f.fault)
	}
}

func (k *keeper) inject(ctx context.Context, f fault) (undo, error) {
	switch f {
	case kill:
		k.kill()
		return k.again, nil
	case killAndStart:
		k.kill()
		return nothing, k.again(ctx)
	case freeze:
		p := k.current()
		err := p.Freeze()
		if !p.Running() { // it has just ended by itself
			return nothing, nil
		}
		return func(context.Context) error { _ = p.Thaw(); return nil }, err
	}
	return nil, fmt.Errorf("%s: no fault %s", k.name, f)
}

// deleteLink deletes the end of a wire, as somebody does with 'ip link del'.
func (s *soak) deleteLink(pick uint32) error {
	ends, err := s.lab.WireLinks()
	if err != nil || len(ends) == 0 {
		return err
	}
	where, link, _ := strings.Cut(ends[int(pick)%len(ends)], " ")
	for _, k := range s.keepers() {
		if !strings.HasSuffix(k.ns.Name, "-"+where) {
			continue
		}
		return k.ns.Do(func() error {
			l, err := netlink.LinkByName(link)
			if errors.As(err, new(netlink.LinkNotFoundError)) {
				return nil // it has gone meanwhile
			}
			if err != nil {
				return err
			}
			if err = netlink.LinkDel(l); errors.Is(err, unix.ENODEV) {
				return nil
			}
			return err
		})
	}
	return fmt.Errorf("nobody is in %s", where)
}

// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

const (
	// leastPatience is the shortest time that one of several is given.
	leastPatience = 100 * time.Millisecond
	// morePatience is how many times longer one that was too slow is given when its
	// turn comes again.
	morePatience = 4
)

// InTurn asks n next hops, one after the other, until one of them answers: then it
// returns nil, else what went wrong with each, in their order. It ends early with
// ctx, and with an error that another one would give as well (worthAnother).
//
// A peer that is dead says nothing, and who is slow cannot be told from who is dead.
// So as long as there are others each is given patience only; those that were too
// slow have their turn again after the others, with more patience each time. The
// last one that is left has all the time there is.
func InTurn(ctx context.Context, n int, patience time.Duration, ask func(limited context.Context, i int) error, worthAnother func(error) bool) []error {
	failures := make([]error, n)
	patient := slices.Repeat([]time.Duration{patience}, n)
	queue := make([]int, n)
	for i := range queue {
		queue[i] = i
	}
	for len(queue) > 0 {
		i := queue[0]
		queue = queue[1:]
		tooSlow, err := askOne(ctx, i, waitFor(ctx, patient[i], len(queue)), ask)
		if err == nil {
			return nil
		}
		failures[i] = err
		if ctx.Err() != nil || !worthAnother(err) {
			break
		}
		if tooSlow {
			patient[i] *= morePatience
			queue = append(queue, i)
		}
	}
	return slices.DeleteFunc(failures, func(err error) bool { return err == nil })
}

// askOne reports whether the failure was one of time. A peer that knows the limit,
// which travels with the call, may be the first to say so.
func askOne(ctx context.Context, i int, limit time.Duration, ask func(context.Context, int) error) (tooSlow bool, err error) {
	if limit == 0 {
		return false, ask(ctx, i)
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	err = ask(limited, i)
	return errors.Is(err, nserr.TimedOut) && time.Since(start) >= limit/2, err
}

// waitFor is how long to wait for one of several when so many others are left; 0
// means for as long as ctx lasts.
func waitFor(ctx context.Context, patience time.Duration, others int) time.Duration {
	if others == 0 {
		return 0
	}
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(deadline)/time.Duration(others+1))
	}
	return max(patience, leastPatience)
}

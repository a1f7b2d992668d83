// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

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

// AllFailed puts the failures of all that were asked in one error, for the given reason
// and with a text that begins with what. If there was one only, or all have failed for
// the same reason, that one is kept: whom the request passed through matters less than
// what is wrong. PeerDown is not: who hears that takes it for this hop.
func AllFailed(reason *nserr.Reason, what string, failures []error) error {
	if len(failures) == 1 {
		if e := nserr.From(failures[0]); e.Reason != nserr.Internal && e.Reason != nserr.PeerDown {
			return e.Reason.Errorf("%w", failures[0]).WithFix("%s", e.HowToFix()).WithRetry(e.Retry)
		}
	}
	texts := make([]string, len(failures))
	for i, err := range failures {
		texts[i] = err.Error()
	}
	text := what + ": " + strings.Join(texts, "; ")
	if e := commonCause(failures); e != nil {
		return e.Reason.Errorf("%s", text).WithFix("%s", e.HowToFix()).WithRetry(e.Retry)
	}
	return reason.Errorf("%s", text)
}

// commonCause returns the first of the errors if all attempts have failed for its
// reason, and the reason is the request's and not that of who was asked.
func commonCause(failures []error) *nserr.Error {
	var common *nserr.Error
	for _, err := range failures {
		e := nserr.From(err)
		if common == nil {
			common = e
		}
		if e.Reason != common.Reason || e.Reason.GRPC == codes.Internal || e.Reason.GRPC == codes.Unavailable {
			return nil
		}
	}
	return common
}

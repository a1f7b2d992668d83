// SPDX-License-Identifier: Apache-2.0

// Package backoff spaces retries: exponentially, so that a peer which is down
// is not hammered, and with jitter, so that its many clients do not return in
// step.
//
//	retry := backoff.Policy{Min: 50 * time.Millisecond, Max: 10 * time.Second}
//	for attempt := 0; ; attempt++ {
//		if err = try(ctx); err == nil {
//			return nil
//		}
//		if err := retry.Wait(ctx, attempt); err != nil {
//			return err
//		}
//	}
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Policy says how long to wait before each retry.
type Policy struct {
	Min time.Duration // upper bound of the first delay
	Max time.Duration // upper bound of every delay; at least Min
}

// Delay returns how long to wait after the given failed attempt, counted from
// 0: a random part, half to whole, of Min doubled attempt times and capped at
// Max.
func (p Policy) Delay(attempt int) time.Duration {
	limit := p.Min
	for ; attempt > 0 && limit < p.Max; attempt-- {
		if limit > p.Max/2 { // doubling would pass Max, perhaps overflow
			limit = p.Max
			break
		}
		limit *= 2
	}
	half := limit / 2
	return half + rand.N(limit-half+1)
}

// Wait sleeps for Delay(attempt). It returns early with the cause when ctx
// ends.
func (p Policy) Wait(ctx context.Context, attempt int) error {
	timer := time.NewTimer(p.Delay(attempt))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

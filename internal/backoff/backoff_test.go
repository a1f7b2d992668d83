// SPDX-License-Identifier: Apache-2.0

package backoff_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/openvwire/nsm/internal/backoff"
)

func TestDelay(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		name     string
		policy   backoff.Policy
		attempt  int
		low, top time.Duration
	}{
		{"first", backoff.Policy{Min: 100 * ms, Max: time.Second}, 0, 50 * ms, 100 * ms},
		{"doubles", backoff.Policy{Min: 100 * ms, Max: time.Second}, 2, 200 * ms, 400 * ms},
		{"capped", backoff.Policy{Min: 100 * ms, Max: time.Second}, 4, 500 * ms, time.Second},
		{"late", backoff.Policy{Min: 100 * ms, Max: time.Second}, math.MaxInt, 500 * ms, time.Second},
		{"no overflow", backoff.Policy{Min: 1, Max: math.MaxInt64 - 1}, 200, math.MaxInt64 / 2, math.MaxInt64 - 1},
		{"constant", backoff.Policy{Min: time.Second, Max: time.Second}, 7, 500 * ms, time.Second},
		{"zero", backoff.Policy{}, 3, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen := map[time.Duration]bool{}
			for range 100 {
				d := tt.policy.Delay(tt.attempt)
				if d < tt.low || d > tt.top {
					t.Fatalf("Delay(%d) = %v, want %v to %v", tt.attempt, d, tt.low, tt.top)
				}
				seen[d] = true
			}
			if tt.top > tt.low && len(seen) < 2 {
				t.Errorf("100 delays are all the same: no jitter")
			}
		})
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := backoff.Policy{Min: time.Second, Max: time.Minute}
		start := time.Now()
		if err := p.Wait(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < time.Second || d > 2*time.Second {
			t.Errorf("waited %v, want 1s to 2s", d)
		}

		stop := errors.New("stopping")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(stop)
		start = time.Now()
		if err := p.Wait(ctx, 5); !errors.Is(err, stop) {
			t.Errorf("Wait() = %v, want %v", err, stop)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("waited %v although the context had ended", d)
		}
	})
}

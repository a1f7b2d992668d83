// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

func TestInTurn(t *testing.T) {
	const never = time.Hour
	refused, final := nserr.AddressesExhausted.Errorf("no"), nserr.WrongOwner.Errorf("not yours")
	type hop struct {
		takes time.Duration
		says  error // nil: it answers
	}
	for _, tt := range []struct {
		name   string
		budget time.Duration // of the caller; 0 = none
		hops   []hop
		want   string // who was asked for how long, and who answered
		took   time.Duration
	}{
		{"one answers", 15 * time.Second, []hop{{0, nil}}, "0 for 15s, answered", 0},
		{"the first answers", 15 * time.Second, []hop{{0, nil}, {0, nil}}, "0 for 500ms, answered", 0},
		{"the first refuses", 15 * time.Second, []hop{{0, refused}, {0, nil}}, "0 for 500ms, 1 for 15s, answered", 0},
		{"what is wrong with all", 15 * time.Second, []hop{{0, final}, {0, nil}}, "0 for 500ms", 0},
		{"the first is dead", 15 * time.Second, []hop{{never, nil}, {0, nil}}, "0 for 500ms, 1 for 500ms, answered", 500 * time.Millisecond},
		{"the only one may be slow", 15 * time.Second, []hop{{14 * time.Second, nil}}, "0 for 15s, answered", 14 * time.Second},
		{"the last one left may be slow", 15 * time.Second, []hop{{0, refused}, {14 * time.Second, nil}}, "0 for 500ms, 1 for 15s, answered", 14 * time.Second},
		{"all are slow", 15 * time.Second, []hop{{3 * time.Second, nil}, {4 * time.Second, nil}},
			"0 for 500ms, 1 for 500ms, 0 for 2s, 1 for 2s, 0 for 5s, answered", 8 * time.Second},
		{"one is slow, one refuses later", 15 * time.Second, []hop{{3 * time.Second, nil}, {time.Second, refused}},
			"0 for 500ms, 1 for 500ms, 0 for 2s, 1 for 2s, 0 for 11s, answered", 7 * time.Second},
		{"all are dead", 4 * time.Second, []hop{{never, nil}, {never, nil}},
			"0 for 500ms, 1 for 500ms, 0 for 1.5s, 1 for 750ms, 0 for 375ms, 1 for 187.5ms, 0 for 100ms, 1 for 87.5ms", 4 * time.Second},
		{"little time for many", time.Second, []hop{{never, nil}, {never, nil}, {never, nil}, {0, nil}},
			"0 for 250ms, 1 for 187.5ms, 2 for 140.625ms, 3 for 105.46875ms, answered", 578125 * time.Microsecond},
		{"nobody has a limit", 0, []hop{{never, nil}, {0, refused}, {time.Second, nil}},
			"0 for 500ms, 1 for 500ms, 2 for 500ms, 0 for 2s, 2 for 2s, answered", 4 * time.Second},
		{"one that always says at once that it has no time", 0, []hop{{0, nserr.TimedOut}, {0, nserr.TimedOut}}, "0 for 500ms, 1 for ever", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, start := t.Context(), time.Now()
				if tt.budget > 0 {
					var cancel func()
					ctx, cancel = context.WithTimeout(ctx, tt.budget)
					defer cancel()
				}
				var got []string
				failures := InTurn(ctx, len(tt.hops), 500*time.Millisecond, func(ctx context.Context, i int) error {
					limit := "ever"
					if at, ok := ctx.Deadline(); ok {
						limit = time.Until(at).String()
					}
					got = append(got, fmt.Sprintf("%d for %s", i, limit))
					select {
					case <-time.After(tt.hops[i].takes):
						return tt.hops[i].says
					case <-ctx.Done():
						return nserr.TimedOut.Errorf("%w", ctx.Err())
					}
				}, func(err error) bool { return !errors.Is(err, nserr.WrongOwner) })
				if len(failures) == 0 {
					got = append(got, "answered")
				}
				if text := strings.Join(got, ", "); text != tt.want {
					t.Errorf("asked %s\nwant  %s", text, tt.want)
				}
				if took := time.Since(start); took != tt.took {
					t.Errorf("took %v, want %v", took, tt.took)
				}
				for _, err := range failures {
					if err == nil {
						t.Errorf("failures %v", failures)
					}
				}
			})
		})
	}
}

// What is wrong with the request keeps its reason, and its fix; who was not there, or
// cannot say what is wrong, does not speak for the hop that has asked.
func TestAllFailed(t *testing.T) {
	excluded := nserr.AddressesExcluded.Errorf("a").WithFix("a fix")
	exhausted, slow, down := nserr.AddressesExhausted.Errorf("b"), nserr.TimedOut.Errorf("c"), nserr.PeerDown.Errorf("d")
	for _, tt := range []struct {
		name     string
		failures []error
		want     *nserr.Reason
		says     []string
	}{
		{"one", []error{fmt.Errorf("one: %w", excluded)}, nserr.AddressesExcluded, []string{"one: a", "a fix"}},
		{"one that was slow", []error{slow}, nserr.TimedOut, []string{"c"}},
		{"one that was not there", []error{down}, nserr.ForwardersFailed, []string{"all of them: ", "d"}},
		{"one without a reason", []error{errors.New("e")}, nserr.ForwardersFailed, []string{"all of them: ", "e"}},
		{"for the same reason", []error{excluded, excluded}, nserr.AddressesExcluded, []string{"all of them: ", "a fix"}},
		{"for different reasons", []error{excluded, exhausted}, nserr.ForwardersFailed, []string{"all of them: ", "a", "b"}},
		{"none was there", []error{down, down}, nserr.ForwardersFailed, []string{"all of them: ", "d"}},
	} {
		err := AllFailed(nserr.ForwardersFailed, "all of them", tt.failures)
		if got := nserr.From(err).Reason; got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got.Code, tt.want.Code)
		}
		for _, text := range tt.says {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q does not say %q", tt.name, err, text)
			}
		}
	}
}

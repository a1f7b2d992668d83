// SPDX-License-Identifier: Apache-2.0

package nserr_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

func TestBook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b nserr.Book
		for i, step := range []struct {
			key, what string
			after     time.Duration
			news      bool
		}{
			{"a", "down", 0, true},
			{"a", "down", time.Minute, false},
			{"b", "down", 0, true},
			{"a", "gone", 0, true},
			{"a", "down", 0, false}, // one after the other is no news
			{"a", "gone", 4 * time.Minute, false},
			{"a", "down", 0, false},
			{"a", "down", 4 * time.Minute, false}, // since it was still true in between
			{"a", "gone", 2 * time.Minute, true},
			{"a", "down", 6 * time.Minute, true},
		} {
			time.Sleep(step.after)
			if got := b.News(step.key, step.what); got != step.news {
				t.Errorf("step %d: %v", i, got)
			}
		}
		if !b.Forget("a") || b.Forget("a") || b.Forget("stranger") {
			t.Error("Forget does not tell what was known")
		}
		if !b.News("a", "down") {
			t.Error("no news after Forget")
		}
	})
}

// Of one thing that is ever different memory is bounded, too.
func TestManyReasons(t *testing.T) {
	var b nserr.Book
	for range 2 {
		for i := range 100 {
			if !b.News("a", fmt.Sprint(i)) {
				t.Errorf("reason %d is remembered", i)
			}
		}
	}
}

// However many things there are, memory is bounded, and what happens often is not
// said again and again.
func TestBookIsBounded(t *testing.T) {
	var b nserr.Book
	again := 0
	for i := range 100_000 {
		b.News(fmt.Sprint(i), "x")
		if i%100 == 0 && b.News("often", "x") {
			again++
		}
	}
	if again != 1 {
		t.Errorf("said %d times", again)
	}
	if n := b.Len(); n > 2048 {
		t.Errorf("%d are remembered", n)
	}
}

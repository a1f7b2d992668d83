// SPDX-License-Identifier: Apache-2.0

package report

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestReplaceBetween(t *testing.T) {
	for _, tc := range []struct{ doc, want string }{
		{"a<b>old</b>c", "a<b>new</b>c"},
		{"a<b></b>", "a<b>new</b>"},
		{"a<b>old", ""},
		{"a", ""},
	} {
		got, err := replaceBetween([]byte(tc.doc), "<b>", "</b>", "new")
		if string(got) != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%q: %q, %v", tc.doc, got, err)
		}
	}
}

func TestParseTicks(t *testing.T) {
	for stat, want := range map[string]ticks{
		"cpu  10 1 20 100 5 3 4 2 7 1\ncpu0 5 0 0 0\n": {busy: 40, all: 145},
		"cpu  10 1 20 100\n":                           {busy: 31, all: 131},
		"cpu  many\n":                                  {},
		"":                                             {},
	} {
		if got := parseTicks(stat); got != want {
			t.Errorf("%q: %+v, want %+v", stat, got, want)
		}
	}
}

// A machine on which somebody spins is busy.
func TestBusyProcessors(t *testing.T) {
	var stop atomic.Bool
	var spinning sync.WaitGroup
	spinning.Go(func() {
		for !stop.Load() {
		}
	})
	got := busyProcessors(t.Context(), 300*time.Millisecond)
	stop.Store(true)
	spinning.Wait()
	if got < 0.5 || got > float64(runtime.NumCPU()) {
		t.Errorf("%.2f processors are busy while one spins", got)
	}
	if !(Machine{Others: got}).Busy() || (Machine{Others: 0.05}).Busy() {
		t.Error("busy is who is not")
	}
}

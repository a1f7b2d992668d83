// SPDX-License-Identifier: Apache-2.0

// Package profile records what this process spends time and memory on, in the form
// that `go tool pprof` and `go tool trace` read.
//
// The recording itself is that of net/http/pprof, which also knows how to tell what
// happened in a while from what happened since the process began. There is no server:
// its handlers are called.
package profile

import (
	"context"
	"fmt"
	"net/http"
	"net/http/pprof"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Kinds are the profiles that there are.
var Kinds = []string{"cpu", "heap", "allocs", "goroutine", "mutex", "block", "trace"}

const (
	// MaxSeconds is the longest recording.
	MaxSeconds = 300
	// UsualSeconds is how long what costs too much to be recorded all the time is
	// recorded, unless somebody says otherwise.
	UsualSeconds = 10
	// MaxBytes is the largest recording, which is held in memory: only traces come near it.
	MaxBytes = 64 << 20

	mutexFraction = 10     // one of so many contended mutexes is recorded
	blockRate     = 10_000 // ns blocked per event that is recorded
)

// recording is set while a profile is being recorded. The settings of the runtime that
// it takes are the process's, and two at once would measure each other.
var recording atomic.Bool

// Check fails with nserr.BadRequest for what Record cannot record.
func Check(kind string, seconds int) error {
	switch {
	case !slices.Contains(Kinds, kind):
		return nserr.BadRequest.Errorf("there is no profile %.40q", kind).WithFix("ask for one of %s", strings.Join(Kinds, ", "))
	case seconds < 0 || seconds > MaxSeconds:
		return nserr.BadRequest.Errorf("%d s is no time for a profile", seconds).WithFix("record 0 to %d seconds", MaxSeconds)
	}
	return nil
}

// Record records a profile of one of Kinds for so many seconds. With 0 it takes what
// there is now, or has been since the process began; 10 s of what is not recorded all
// the time. It fails with nserr.BadRequest for what cannot be recorded, nserr.Busy
// while another one is being recorded, nserr.TooLarge for a trace that grows too large,
// and gives up when ctx ends.
func Record(ctx context.Context, kind string, seconds int) ([]byte, error) {
	if err := Check(kind, seconds); err != nil {
		return nil, err
	}
	if !recording.CompareAndSwap(false, true) {
		return nil, nserr.Busy.Errorf("another profile of this process is being recorded").WithFix("try again when that has ended")
	}
	defer recording.Store(false)

	var handle http.HandlerFunc
	query := "gc=1" // of heap: what is dead is not on it
	switch kind {
	case "cpu":
		handle, seconds = pprof.Profile, orUsual(seconds)
	case "trace":
		handle, seconds = pprof.Trace, orUsual(seconds)
	case "mutex":
		before := runtime.SetMutexProfileFraction(mutexFraction)
		defer runtime.SetMutexProfileFraction(before)
		handle, seconds = pprof.Handler(kind).ServeHTTP, orUsual(seconds)
	case "block":
		runtime.SetBlockProfileRate(blockRate)
		defer runtime.SetBlockProfileRate(0)
		handle, seconds = pprof.Handler(kind).ServeHTTP, orUsual(seconds)
	default:
		handle = pprof.Handler(kind).ServeHTTP
	}
	if seconds > 0 {
		query = fmt.Sprintf("seconds=%d", seconds)
	}
	return answer(ctx, handle, query)
}

func orUsual(seconds int) int {
	if seconds == 0 {
		return UsualSeconds
	}
	return seconds
}

// answer calls a handler of net/http/pprof and returns what it answers.
func answer(ctx context.Context, handle http.HandlerFunc, query string) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/?"+query, nil)
	if err != nil {
		return nil, err
	}
	w := &page{full: cancel}
	handle(w, r)
	switch {
	case w.tooLarge:
		return nil, nserr.TooLarge.Errorf("the profile is larger than %d MiB", MaxBytes>>20).WithFix("record for fewer seconds")
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case w.status != 0:
		return nil, nserr.Busy.Errorf("%s", strings.TrimSpace(string(w.data))) // by somebody else in this process
	}
	return w.data, nil
}

// page is what a handler answers, kept in memory: whoever waits for it cannot hold up
// the runtime. It implements http.ResponseWriter.
type page struct {
	header   http.Header
	status   int // 0: all is well
	data     []byte
	full     func() // ends the recording
	tooLarge bool
}

func (p *page) Header() http.Header {
	if p.header == nil {
		p.header = make(http.Header)
	}
	return p.header
}

func (p *page) WriteHeader(status int) { p.status = status }

func (p *page) Write(data []byte) (int, error) {
	if p.tooLarge || len(p.data)+len(data) > MaxBytes {
		p.tooLarge = true
		p.full()
		p.data = nil
		return 0, nserr.TooLarge
	}
	p.data = append(p.data, data...)
	return len(data), nil
}

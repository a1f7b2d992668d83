// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"testing"

	"go.uber.org/goleak"

	"github.com/openvwire/nsm/sdk/nserr"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Every kind is a file that Go's tools know by its first bytes.
func TestKinds(t *testing.T) {
	for _, kind := range Kinds {
		seconds := 1 // of what is not recorded all the time
		if kind == "heap" || kind == "allocs" || kind == "goroutine" {
			seconds = 0
		}
		magic := "\x1f\x8b" // gzip
		if kind == "trace" {
			magic = "go 1."
		}
		if data, err := Record(t.Context(), kind, seconds); err != nil || !bytes.HasPrefix(data, []byte(magic)) {
			t.Errorf("%s, %d s: %.20q, %v", kind, seconds, data, err)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		kind    string
		seconds int
	}{{"", 1}, {"cmdline", 0}, {"cpu", MaxSeconds + 1}, {"heap", -1}} {
		if _, err := Record(t.Context(), tt.kind, tt.seconds); !errors.Is(err, nserr.BadRequest) {
			t.Errorf("%q for %d s: %v, want %v", tt.kind, tt.seconds, err, nserr.BadRequest)
		}
	}
}

// One at a time, until it ends or nobody waits for it any more.
func TestOneAtATime(t *testing.T) {
	for _, kind := range []string{"cpu", "trace", "allocs", "block"} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := Record(ctx, kind, MaxSeconds)
			ended <- err
		}()
		for !recording.Load() {
			runtime.Gosched()
		}
		if _, err := Record(t.Context(), "goroutine", 0); !errors.Is(err, nserr.Busy) {
			t.Errorf("beside %s: %v, want %v", kind, err, nserr.Busy)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s given up: %v", kind, err)
		}
		if _, err := Record(t.Context(), "goroutine", 0); err != nil {
			t.Errorf("after %s: %v", kind, err)
		}
	}
}

// What a trace may hold in memory is bounded.
func TestTooLarge(t *testing.T) {
	ended := 0
	p := &page{full: func() { ended++ }}
	piece := make([]byte, MaxBytes/2)
	for i := range 4 {
		if _, err := p.Write(piece); (err != nil) != (i >= 2) {
			t.Errorf("piece %d: %v", i, err)
		}
	}
	if !p.tooLarge || ended == 0 || len(p.data) != 0 {
		t.Errorf("too large: %v, ended %d times, %d bytes kept", p.tooLarge, ended, len(p.data))
	}
}

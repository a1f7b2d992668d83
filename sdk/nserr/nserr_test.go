// SPDX-License-Identifier: Apache-2.0

package nserr_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/openvwire/nsm/sdk/nserr"
)

func TestErrorIsItsReasonAndItsCause(t *testing.T) {
	err := fmt.Errorf("outside: %w", nserr.PeerDown.Errorf("dial %s: %w", "x", io.ErrUnexpectedEOF))
	if !errors.Is(err, nserr.PeerDown) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v is neither its reason nor its cause", err)
	}
	if errors.Is(err, nserr.TimedOut) {
		t.Errorf("%v is another reason", err)
	}
	if got := nserr.From(err); got.Reason != nserr.PeerDown {
		t.Errorf("From = %v", got)
	}
	if got := nserr.From(io.EOF); got.Reason != nserr.Internal || !errors.Is(got, io.EOF) {
		t.Errorf("an error without a reason became %v", got)
	}
	if got := nserr.From(nserr.Busy); got.Reason != nserr.Busy {
		t.Errorf("a reason alone became %v", got)
	}
	if nserr.From(nil) != nil {
		t.Error("nil became an error")
	}
}

// However many hops wrap an error, the code stands once and the advice once.
func TestWrappedTwice(t *testing.T) {
	inner := nserr.EndpointGone.Errorf("endpoint db does not answer").WithFix("start it (again), see 'x'")
	middle := nserr.EndpointGone.Errorf("fwd-b: %w", inner)
	outer := nserr.EndpointGone.Errorf("fwd-a: %w; and more", middle).WithFix("last")
	const want = "NSM-3016: fwd-a: fwd-b: endpoint db does not answer; and more (fix: last)"
	if got := outer.Error(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !errors.Is(outer, inner) {
		t.Error("the cause is lost")
	}
}

func TestVocabulary(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range nserr.Reasons {
		if seen[r.Code] {
			t.Errorf("%s stands for two reasons", r.Code)
		}
		seen[r.Code] = true
		if r.Summary == "" || r.Fix == "" {
			t.Errorf("%s has no summary or no fix", r.Code)
		}
		if nserr.ByCode(r.Code) != r {
			t.Errorf("%s is not found by its code", r.Code)
		}
	}
	if nserr.ByCode("NSM-0000") != nil {
		t.Error("an unknown code is known")
	}
}

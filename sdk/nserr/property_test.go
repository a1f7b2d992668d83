// SPDX-License-Identifier: Apache-2.0

package nserr_test

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/openvwire/nsm/sdk/nserr"
)

// What follows from a reason does not contradict the code that it travels under.
func TestProperties(t *testing.T) {
	for _, r := range nserr.Reasons {
		if r.Passes() && (r.GRPC == codes.InvalidArgument || r.GRPC == codes.PermissionDenied) {
			t.Errorf("%s (%s) does not pass by itself: it is %v", r.Code, r.Summary, r.GRPC)
		}
		if r.Unanswered() {
			if !r.Passes() {
				t.Errorf("%s (%s): who has not answered may yet", r.Code, r.Summary)
			}
			if r.AnyForwarder() || r.AnyEndpoint() {
				t.Errorf("%s (%s): somebody else may answer", r.Code, r.Summary)
			}
		}
		if r.GRPC == codes.Unavailable && !r.Passes() {
			t.Errorf("%s (%s) is %v, and does not pass", r.Code, r.Summary, r.GRPC)
		}
		switch r {
		case nserr.EndpointGone, nserr.NoEndpoint, nserr.PeerDown, nserr.UnknownService, nserr.Draining:
			if !r.Passes() {
				t.Errorf("%s (%s) passes", r.Code, r.Summary)
			}
		case nserr.NameTaken, nserr.Unsupported, nserr.NameInUse, nserr.Internal:
			if r.Passes() {
				t.Errorf("%s (%s) does not pass", r.Code, r.Summary)
			}
		}
	}
}

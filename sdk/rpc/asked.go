// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/openvwire/nsm/sdk/nserr"
)

// asked is a call to a peer as its error needs to know it: what gRPC says of a peer
// that does not answer, or cannot be reached, names nobody.
type asked struct {
	whom  string // URL of the peer, or what else the user knows it by
	since time.Time
	until time.Time // zero = for ever
}

func ask(ctx context.Context, whom string) asked {
	until, _ := ctx.Deadline()
	return asked{whom, time.Now(), until}
}

// decode is DecodeError for the error of the call. It adds who was asked, and for how
// long in vain, unless the peer has said itself what is wrong.
func (a asked) decode(err error) error {
	err = DecodeError(err)
	r, ok := err.(*remoteError)
	if !ok || !r.implied {
		return err
	}
	switch text := r.st.Message(); r.st.Code() {
	case codes.DeadlineExceeded:
		if !a.until.IsZero() && !time.Now().Before(a.until) { // else it is the peer's own answer
			r.cause = nserr.TimedOut.Errorf("no answer from %s within %s: %s", a.whom, a.until.Sub(a.since).Round(10*time.Millisecond), text).
				WithFix("see whether the process there runs and is not stopped, and by 'nsm profile' what it does; then try again")
		}
	case codes.Unavailable:
		if !strings.Contains(text, a.name()) {
			r.cause = nserr.PeerDown.Errorf("%s: %s", a.whom, text)
		}
	}
	return r
}

// name is what gRPC calls the peer where it names it.
func (a asked) name() string {
	if _, name, found := strings.Cut(a.whom, "://"); found {
		return name
	}
	return a.whom
}

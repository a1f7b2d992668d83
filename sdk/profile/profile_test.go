// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/goleak"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Operators get a profile; a valid identity that is none does not, and neither does
// somebody without one.
func TestWhoMay(t *testing.T) {
	const operator = "spiffe://nsm.local/operator"
	named := func(id string) bool { return id == operator }
	for _, tt := range []struct {
		name, id string
		may      func(string) bool
		kind     string
		want     *nserr.Reason // nil: it is recorded
	}{
		{"operator", operator, named, "goroutine", nil},
		{"somebody else", "spiffe://nsm.local/web", named, "goroutine", nserr.NotAllowed},
		{"nobody", "", func(string) bool { return true }, "goroutine", nserr.NotAllowed},
		{"nobody is named", operator, nil, "goroutine", nserr.NotAllowed},
		{"no such profile", operator, named, "cmdline", nserr.BadRequest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := rpc.NewLocal(rpc.LocalOptions{})
			defer l.Close()
			var log bytes.Buffer
			adminv1.RegisterAdminServer(l, Server{May: tt.may, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			caller := rpc.LocalCaller{Identity: func() rpc.Identity { return rpc.Identity{ID: tt.id} }}
			got, err := record(t, adminv1.NewAdminClient(l.Dial(caller)), &adminv1.ProfileRequest{Kind: tt.kind})
			if tt.want != nil && (!errors.Is(err, tt.want) || got > 0) || tt.want == nil && (err != nil || got == 0) {
				t.Errorf("%d bytes, %v; want %v", got, err, tt.want)
			}
			// What is refused is not in the log as if it were recorded.
			if said := strings.Contains(log.String(), "operator="+tt.id+" profile="+tt.kind); said != (tt.want == nil) || !said && log.Len() > 0 {
				t.Errorf("want %v, the log has %q", tt.want, &log)
			}
		})
	}
}

// A time that no recording may take is refused, however large the number.
func TestSeconds(t *testing.T) {
	l := rpc.NewLocal(rpc.LocalOptions{})
	defer l.Close()
	adminv1.RegisterAdminServer(l, Server{May: func(string) bool { return true }, Logger: slog.New(slog.DiscardHandler)})
	c := adminv1.NewAdminClient(l.Dial(rpc.LocalCaller{Identity: func() rpc.Identity { return rpc.Identity{ID: "spiffe://nsm.local/operator"} }}))
	for _, seconds := range []uint32{301, 1<<32 - 1} {
		if _, err := record(t, c, &adminv1.ProfileRequest{Kind: "cpu", Seconds: seconds}); !errors.Is(err, nserr.BadRequest) {
			t.Errorf("%d s: %v", seconds, err)
		}
	}
}

func record(t *testing.T, c adminv1.AdminClient, req *adminv1.ProfileRequest) (bytes int, err error) {
	t.Helper()
	stream, err := c.Profile(t.Context(), req)
	if err != nil {
		return 0, err
	}
	for {
		piece, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return bytes, nil
		}
		if err != nil {
			return bytes, err
		}
		bytes += len(piece.GetData())
	}
}

// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/openvwire/nsm/sdk/nserr"
)

func TestErrorRoundTrip(t *testing.T) {
	for _, r := range nserr.Reasons {
		sent := fmt.Errorf("serving: %w", r.Errorf("thing %q: %w", "x", io.ErrUnexpectedEOF))
		wire := EncodeError(sent)
		if got := status.Code(wire); got != r.GRPC {
			t.Errorf("%s travels as %v, want %v", r.Code, got, r.GRPC)
		}
		if r.GRPC == codes.PermissionDenied && !strings.Contains(wire.Error(), "no sufficient privileges") {
			t.Errorf("%s: %v", r.Code, wire)
		}
		got := DecodeError(wire)
		if !errors.Is(got, r) || status.Code(got) != r.GRPC {
			t.Errorf("%s arrives as %v", r.Code, got)
		}
		if e := nserr.From(got); e.Msg != `thing "x": unexpected EOF` || e.Error() != nserr.From(sent).Error() {
			t.Errorf("%s arrives as %q", r.Code, e.Error())
		}
		if again := EncodeError(got); status.Convert(again).Message() != status.Convert(wire).Message() {
			t.Errorf("%s goes on as %v", r.Code, again)
		}
	}
}

func TestErrorFixTravels(t *testing.T) {
	got := nserr.From(DecodeError(EncodeError(nserr.UnknownService.Errorf("no").WithFix("try %q", "db"))))
	if got.Fix != `try "db"` || got.Msg != "no" {
		t.Errorf("arrived as %+v", got)
	}
	if got := nserr.From(DecodeError(EncodeError(nserr.UnknownService))); got.Reason != nserr.UnknownService {
		t.Errorf("a bare reason arrived as %+v", got)
	}
}

// When to try again travels as everybody's clients know it, and is believed within reason.
func TestRetryTravels(t *testing.T) {
	wire := EncodeError(nserr.Busy.Errorf("no").WithRetry(1500 * time.Millisecond))
	var info *errdetails.RetryInfo
	for _, d := range status.Convert(wire).Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			info = r
		}
	}
	if got := info.GetRetryDelay().AsDuration(); got != 1500*time.Millisecond {
		t.Errorf("travels as %v", got)
	}
	got := DecodeError(wire)
	if e := nserr.From(got); e.Reason != nserr.Busy || e.Retry != 1500*time.Millisecond {
		t.Errorf("arrives as %+v", e)
	}
	if e := nserr.From(DecodeError(EncodeError(got))); e.Retry != 1500*time.Millisecond {
		t.Errorf("goes on as %+v", e)
	}
	for sent, want := range map[time.Duration]time.Duration{-time.Second: 0, time.Hour: maxRetry} {
		st, err := status.New(codes.ResourceExhausted, "somebody else's").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(sent)})
		if err != nil {
			t.Fatal(err)
		}
		if e := nserr.From(DecodeError(st.Err())); e.Retry != want {
			t.Errorf("%v sent by somebody else is taken for %v, want %v", sent, e.Retry, want)
		}
	}
}

func TestLongErrorIsShortened(t *testing.T) {
	long := nserr.EndpointsFailed.Errorf("%s", strings.Repeat("é", maxErrorText))
	wire := status.Convert(EncodeError(long))
	if n := len(wire.Message()); n > maxErrorText+200 {
		t.Errorf("the text has %d bytes", n)
	}
	if !errors.Is(DecodeError(wire.Err()), nserr.EndpointsFailed) {
		t.Error("the reason is lost")
	}
}

// What others say keeps its code on its way through, with or without a reason.
func TestForeignErrors(t *testing.T) {
	newer, err := status.New(codes.DataLoss, "new").WithDetails(&errdetails.ErrorInfo{Domain: nserr.Domain, Reason: "NSM-9999"})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		err  error
		code codes.Code
		is   error // nil: nothing is read into it
	}{
		{status.Error(codes.NotFound, "no such thing"), codes.NotFound, nil},
		{status.Error(codes.PermissionDenied, "no sufficient privileges"), codes.PermissionDenied, nil},
		{newer.Err(), codes.DataLoss, nil},
		{status.Error(codes.Unavailable, "connection refused"), codes.Unavailable, nserr.PeerDown},
		{status.Error(codes.DeadlineExceeded, "late"), codes.DeadlineExceeded, nserr.TimedOut},
		{status.Error(codes.DeadlineExceeded, "late"), codes.DeadlineExceeded, context.DeadlineExceeded},
		{status.Error(codes.Canceled, "never mind"), codes.Canceled, context.Canceled},
		{context.Canceled, codes.Canceled, context.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded, nserr.TimedOut},
		{context.DeadlineExceeded, codes.DeadlineExceeded, context.DeadlineExceeded},
		{nserr.TimedOut.Errorf("late"), codes.DeadlineExceeded, context.DeadlineExceeded},
		{errors.New("oops"), codes.Internal, nserr.Internal},
		{status.Error(codes.ResourceExhausted, "grpc: received message larger than max (5 vs. 4)"), codes.ResourceExhausted, nserr.TooLarge},
		{status.Error(codes.ResourceExhausted, "quota"), codes.ResourceExhausted, nil},
	} {
		got := DecodeError(EncodeError(test.err))
		if status.Code(got) != test.code {
			t.Errorf("%v arrives with code %v", test.err, status.Code(got))
		}
		if test.is != nil && !errors.Is(got, test.is) {
			t.Errorf("%v arrives as %v, not %v", test.err, got, test.is)
		}
		if e := (*nserr.Error)(nil); test.is == nil && errors.As(got, &e) {
			t.Errorf("%v arrives as %v", test.err, e)
		}
		if next := EncodeError(got); status.Code(next) != test.code {
			t.Errorf("%v goes on with code %v", test.err, status.Code(next))
		}
	}
	if EncodeError(nil) != nil || DecodeError(nil) != nil || DecodeError(io.EOF) != io.EOF {
		t.Error("success or the end of a stream became an error")
	}
}

// A status may come from anybody.
func FuzzDecodeError(f *testing.F) {
	f.Add(uint32(codes.NotFound), "text", "NSM-3001", "fix")
	f.Add(uint32(codes.PermissionDenied), noPrivileges+"NSM-2006: x (fix: y)", "NSM-2006", "y")
	f.Add(uint32(99), "", "", "")
	f.Fuzz(func(t *testing.T, code uint32, text, reason, fix string) {
		text, reason, fix = strings.ToValidUTF8(text, ""), strings.ToValidUTF8(reason, ""), strings.ToValidUTF8(fix, "")
		if code == 0 {
			return
		}
		st, err := status.New(codes.Code(code), text).WithDetails(&errdetails.ErrorInfo{
			Domain: nserr.Domain, Reason: reason, Metadata: map[string]string{fixKey: fix},
		})
		if err != nil {
			t.Skip("not a status")
		}
		got := DecodeError(st.Err())
		if status.Code(got) != codes.Code(code) {
			t.Errorf("code %v became %v", code, status.Code(got))
		}
		if r := nserr.ByCode(reason); r != nil && !errors.Is(got, r) {
			t.Errorf("reason %s became %v", reason, got)
		}
		if status.Code(EncodeError(got)) == codes.OK {
			t.Error("an error goes on as success")
		}
	})
}

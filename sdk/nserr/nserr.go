// SPDX-License-Identifier: Apache-2.0

// Package nserr holds the errors that cross a boundary of the mesh.
//
// Every such error has a [Reason]: a stable code (NSM-xxxx) that scripts and
// documents may rely on, the gRPC code it travels under, and a sentence that
// says how to fix it. The list in reasons.go is the whole vocabulary;
// docs/errors.md is generated from it.
//
//	return nserr.UnknownService.Errorf("network service %q is not found", name)
//
// The far side of a call sees the same reason: package rpc encodes it as a
// google.rpc.ErrorInfo and decodes it again, so errors.Is works there too:
//
//	if errors.Is(err, nserr.UnknownService) { … }
package nserr

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
)

// Domain is the google.rpc.ErrorInfo domain under which reasons travel.
const Domain = "nsm"

// Reason is one entry of the vocabulary. Reasons are comparable by pointer and
// serve as targets of errors.Is.
type Reason struct {
	Code    string     // stable, "NSM-" and four digits
	GRPC    codes.Code // how the error travels
	Summary string     // what went wrong, in a few words
	Fix     string     // what the reader can do about it, one sentence

	implies []property
}

// Error makes a Reason usable as the target of errors.Is.
func (r *Reason) Error() string { return r.Code + ": " + r.Summary }

// Errorf returns an error with this reason. The format may wrap a cause with %w.
func (r *Reason) Errorf(format string, args ...any) *Error {
	cause := fmt.Errorf(format, args...)
	return &Error{Reason: r, Msg: r.plain(cause.Error()), cause: errors.Unwrap(cause)}
}

// plain is text without the advice of the errors in it, of which the outermost
// counts, and without repetitions of the reason's own code: an error that passes
// five hops is wrapped five times.
func (r *Reason) plain(text string) string {
	text = strings.ReplaceAll(text, r.Code+": ", "")
	for {
		start := strings.Index(text, fixOpens)
		if start < 0 {
			return text
		}
		depth, end := 0, len(text)
		for i := start + 1; i < len(text); i++ {
			switch text[i] {
			case '(':
				depth++
			case ')':
				depth--
			}
			if depth == 0 {
				end = i + 1
				break
			}
		}
		text = text[:start] + text[end:]
	}
}

const fixOpens = " (fix: "

// Error is a reason together with what happened in this case.
type Error struct {
	Reason *Reason
	Msg    string // what happened, naming the thing it happened to
	Fix    string // overrides Reason.Fix when the case allows a better advice

	// Retry is after what time it is worth while to try again; 0 = nobody knows. It
	// travels as a google.rpc.RetryInfo.
	Retry time.Duration

	cause error
}

// WithFix returns e with a fix that suits this case better than the general one.
func (e *Error) WithFix(format string, args ...any) *Error {
	e.Fix = fmt.Sprintf(format, args...)
	return e
}

// WithRetry returns e with the time after which to try again.
func (e *Error) WithRetry(after time.Duration) *Error {
	e.Retry = after
	return e
}

// Error returns one line: code, what happened, how to fix it.
func (e *Error) Error() string {
	if fix := e.HowToFix(); fix != "" {
		return e.Reason.Code + ": " + e.Msg + fixOpens + fix + ")"
	}
	return e.Reason.Code + ": " + e.Msg
}

// HowToFix returns the advice for this case, or the general one of its reason.
func (e *Error) HowToFix() string {
	if e.Fix != "" {
		return e.Fix
	}
	return e.Reason.Fix
}

// Unwrap returns the cause given to Errorf with %w, if any.
func (e *Error) Unwrap() error { return e.cause }

// Is reports whether target is the reason of e.
func (e *Error) Is(target error) bool {
	r, ok := target.(*Reason)
	return ok && r == e.Reason
}

// From returns the outermost Error in err's chain. An error without a reason
// gets [Internal], so that nothing crosses a boundary without a code.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		return e
	}
	if r := (*Reason)(nil); errors.As(err, &r) {
		return &Error{Reason: r, Msg: r.Summary, cause: err}
	}
	return &Error{Reason: Internal, Msg: err.Error(), cause: err}
}

// ByCode returns the reason with the given code, or nil for a code that this
// build does not know (a newer peer may send one).
func ByCode(code string) *Reason {
	for _, r := range Reasons {
		if r.Code == code {
			return r
		}
	}
	return nil
}

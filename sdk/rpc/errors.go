// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/openvwire/nsm/sdk/nserr"
)

// noPrivileges begins every PermissionDenied text; users and examples of the
// reference look for it (§2.6).
const noPrivileges = "no sufficient privileges: "

// fixKey is the ErrorInfo metadata key of the advice.
const fixKey = "fix"

// maxErrorText bounds the text of an error on the wire in bytes: it travels in a
// header, and the causes of a failed request may pile up hop by hop.
const maxErrorText = 4 << 10

// EncodeError turns err into a gRPC status error that carries its reason as a
// google.rpc.ErrorInfo, and as a google.rpc.RetryInfo when to try again. A status of somebody else, such as the next hop's, passes
// unchanged; an error without a reason becomes nserr.Internal.
func EncodeError(err error) error {
	if err == nil {
		return nil
	}
	e := (*nserr.Error)(nil)
	r := (*nserr.Reason)(nil)
	switch {
	case errors.As(err, &e) || errors.As(err, &r):
		e = nserr.From(err)
	case errors.As(err, new(interface{ GRPCStatus() *status.Status })):
		return status.Convert(err).Err()
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		e = nserr.TimedOut.Errorf("%w", err)
	default:
		e = nserr.From(err)
	}

	text := errorText(e)
	if e.Reason.GRPC == codes.PermissionDenied {
		text = noPrivileges + text
	}
	st := status.New(e.Reason.GRPC, text)
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{
		Reason:   e.Reason.Code,
		Domain:   nserr.Domain,
		Metadata: map[string]string{fixKey: e.HowToFix()},
	}}
	if e.Retry > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.Retry)})
	}
	st, detailsErr := st.WithDetails(details...)
	if detailsErr != nil { // only for codes.OK, which no reason has
		panic(detailsErr)
	}
	return st.Err()
}

// errorText is e.Error() with the middle shortened if need be. It is valid UTF-8,
// as a status must be.
func errorText(e *nserr.Error) string {
	if len(e.Msg) <= maxErrorText {
		return strings.ToValidUTF8(e.Error(), "?")
	}
	short := *e
	short.Msg = e.Msg[:maxErrorText] + "…"
	return strings.ToValidUTF8(short.Error(), "?")
}

// DecodeError is the inverse of EncodeError, for clients. The result still is the
// gRPC status that came, and errors.Is finds the reason: the one that was sent
// or, for a peer that sends none, the one that the code stands for beyond doubt.
// Other errors are returned as they are.
func DecodeError(err error) error {
	if err == nil || errors.As(err, new(*nserr.Error)) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	if cause := reasonSent(st); cause != nil {
		return &remoteError{st: st, cause: cause}
	}
	if cause := reasonImplied(st); cause != nil {
		return &remoteError{st: st, cause: cause, implied: true}
	}
	return err
}

// remoteError is what a peer answered: a status and what it stands for.
type remoteError struct {
	st      *status.Status
	cause   error // *nserr.Error, or context.Canceled
	implied bool  // the status came without a reason: gRPC has made it, or a peer that sends none
}

func (e *remoteError) Error() string {
	if e.cause == context.Canceled {
		return e.st.Message()
	}
	return e.cause.Error()
}
func (e *remoteError) Unwrap() error              { return e.cause }
func (e *remoteError) GRPCStatus() *status.Status { return e.st }

// Is lets a deadline be recognised on whichever side it struck first.
func (e *remoteError) Is(target error) bool {
	return target == context.DeadlineExceeded && e.st.Code() == codes.DeadlineExceeded
}

// reasonSent returns the error of an ErrorInfo of ours, nil when there is none or
// a newer peer sent a reason that this build does not know.
func reasonSent(st *status.Status) error {
	for _, d := range st.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.GetDomain() != nserr.Domain {
			continue
		}
		r := nserr.ByCode(info.GetReason())
		if r == nil {
			continue
		}
		fix := info.GetMetadata()[fixKey]
		msg := strings.TrimPrefix(st.Message(), noPrivileges)
		msg = strings.TrimPrefix(msg, r.Code+": ")
		msg = strings.TrimSuffix(msg, " (fix: "+fix+")")
		e := r.Errorf("%s", msg)
		if fix != r.Fix {
			e.Fix = fix
		}
		return e.WithRetry(retrySent(st))
	}
	return nil
}

// maxRetry bounds what is believed of when to try again.
const maxRetry = time.Minute

// retrySent returns when to try again, 0 if the status does not say.
func retrySent(st *status.Status) time.Duration {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok && info.GetRetryDelay().IsValid() {
			return min(max(info.GetRetryDelay().AsDuration(), 0), maxRetry)
		}
	}
	return 0
}

// reasonImplied names the reason of statuses that gRPC itself or the reference
// makes, as far as their code leaves no doubt.
func reasonImplied(st *status.Status) error {
	switch st.Code() {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return nserr.TimedOut.Errorf("%s", st.Message())
	case codes.Unavailable:
		return nserr.PeerDown.Errorf("%s", st.Message())
	case codes.ResourceExhausted:
		if strings.Contains(st.Message(), "message larger than max") {
			return nserr.TooLarge.Errorf("%s", st.Message())
		}
		if after := retrySent(st); after > 0 {
			return nserr.Busy.Errorf("%s", st.Message()).WithRetry(after)
		}
	}
	return nil
}

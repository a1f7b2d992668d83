// SPDX-License-Identifier: Apache-2.0

// Package profile serves Profile of nsm.admin.v1, as every daemon does: what its
// process spends time and memory on, for those who operate it.
package profile

import (
	"log/slog"
	"slices"

	"google.golang.org/grpc"

	"github.com/openvwire/nsm/internal/profile"
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// chunk is how many bytes of a profile go in one message.
const chunk = 256 << 10

// Server implements nsm.admin.v1.Admin as far as Profile; embed it to serve more.
type Server struct {
	adminv1.UnimplementedAdminServer
	May    func(id string) bool // whether an identity may record profiles; nil = nobody
	Logger *slog.Logger         // nil = slog.Default()
}

// Profile records a profile and sends it.
func (s Server) Profile(req *adminv1.ProfileRequest, out grpc.ServerStreamingServer[adminv1.ProfileChunk]) error {
	who := hop.Identity(rpc.CallerFrom(out.Context()))
	if s.May == nil || who == "" || !s.May(who) {
		return nserr.NotAllowed.Errorf("%q may not record profiles here", who).
			WithFix("ask as root of the node, or name the identity with --operators at the daemon")
	}
	log := s.Logger
	if log == nil {
		log = slog.Default()
	}
	return Send(req, out, log.With("operator", who))
}

// Send records a profile of this process and sends it to whoever asks: its caller has
// made sure that they may have it, and says who they are with the fields of log.
func Send(req *adminv1.ProfileRequest, out grpc.ServerStreamingServer[adminv1.ProfileChunk], log *slog.Logger) error {
	kind, seconds := req.GetKind(), int(min(req.GetSeconds(), profile.MaxSeconds+1))
	if err := profile.Check(kind, seconds); err != nil {
		return err // before the log has it, which takes no text of any length
	}
	log.Info("profile is asked for", "profile", kind)
	data, err := profile.Record(out.Context(), kind, seconds)
	if err != nil {
		return err
	}
	for piece := range slices.Chunk(data, chunk) {
		if err := out.Send(&adminv1.ProfileChunk{Data: piece}); err != nil {
			return err
		}
	}
	return nil
}

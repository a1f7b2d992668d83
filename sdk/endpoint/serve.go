// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"log/slog"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Request completes a connection with the handler (protocol.md §2.7). The path
// ends here.
func (s *Server) Request(ctx context.Context, req *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	if req.GetConnection().GetNetworkService() == "" {
		return nil, nserr.BadRequest.Errorf("the request names no network service")
	}
	if err := hop.ValidatePreferences(req.GetMechanismPreferences()); err != nil {
		return nil, err
	}
	rpc.DiscardFile(ctx, req.GetConnection().GetMechanism().GetParameters()["inodeURL"]) // our own, sent back
	call, err := s.hop.Admit(ctx, req.GetConnection())
	if err != nil {
		return nil, err
	}
	var out *networkservice.Connection
	err = s.wires.Do(ctx, call.Conn.GetId(), func(t *conn.Turn[wire]) error {
		var err error
		out, err = s.request(ctx, t, call, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return call.Reply(out), nil
}

func (s *Server) request(ctx context.Context, t *conn.Turn[wire], call *hop.Call, req *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	known := t.Record
	if known != nil {
		if err := known.binding.Check(call); err != nil {
			return nil, err
		}
		if hop.Anew(known.conn, call.Conn) {
			s.drop(ctx, t, networkservice.State_RESELECT_REQUESTED, "closed to be opened anew")
			known = nil
		}
	}
	r := &Request{
		Connection:  call.Conn,
		Preferences: req.GetMechanismPreferences(),
		Known:       known != nil,
		Owner:       call.Binding.Owner,
		Caller:      call.Binding.Caller,
	}
	if err := s.handler.Request(ctx, r); err != nil {
		if known == nil { // what the handlers before the failing one have done
			call.Conn.State = networkservice.State_DOWN
			s.handler.Close(context.WithoutCancel(ctx), call.Conn)
		}
		level := s.refusals.Level(slog.LevelWarn, t.ID, nserr.From(err).Reason.Code)
		s.log.Log(ctx, level, "request refused", "connection", t.ID, "owner", r.Owner, "error", err)
		return nil, err
	}
	out := r.Connection
	out.State = networkservice.State_UP
	hop.Trim(out)
	if known == nil {
		s.log.Info("connection up", "connection", t.ID, "service", out.GetNetworkService(), "owner", r.Owner)
	}
	kept := rpc.Clone(out) // out is the handlers', too
	t.Record = &wire{binding: call.Binding, conn: kept}
	t.ExpireAt(call.Expiry(ctx))
	s.monitor.Publish(kept)
	return out, nil
}

// Close closes a connection (§2.9). Closing what is not known succeeds.
func (s *Server) Close(ctx context.Context, c *networkservice.Connection) (*emptypb.Empty, error) {
	rpc.DiscardFile(ctx, c.GetMechanism().GetParameters()["inodeURL"])
	call, err := s.hop.Admit(ctx, c)
	if err != nil {
		return nil, err
	}
	err = s.wires.Do(ctx, call.Conn.GetId(), func(t *conn.Turn[wire]) error {
		if t.Record == nil {
			return nil
		}
		if err := t.Record.binding.Check(call); err != nil {
			return err
		}
		why := networkservice.State_UP
		if hop.Anew(nil, call.Conn) {
			why = networkservice.State_RESELECT_REQUESTED
		}
		s.drop(ctx, t, why, "closed")
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func (s *Server) expire(ctx context.Context, id string) {
	_ = s.wires.Do(ctx, id, func(t *conn.Turn[wire]) error {
		if t.Expired() {
			s.drop(ctx, t, networkservice.State_UP, "expired")
		}
		return nil
	})
}

// drop forgets a connection. state is why, for the handler.
func (s *Server) drop(ctx context.Context, t *conn.Turn[wire], state networkservice.State, why string) {
	c := rpc.Clone(t.Record.conn)
	c.State = state
	s.handler.Close(context.WithoutCancel(ctx), c)
	t.Record = nil
	s.monitor.Delete(t.ID)
	s.log.Info("connection "+why, "connection", t.ID)
}

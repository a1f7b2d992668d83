// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Wires lists the wires that the caller may see. A name that means no wire, or
// more than one, is an error, unless the caller watches: what it watches for may
// come yet.
func (s *Server) Wires(req *adminv1.WiresRequest, stream grpc.ServerStreamingServer[adminv1.WireEvent]) error {
	ctx := stream.Context()
	who, err := identify(ctx)
	if err != nil {
		return err
	}
	f := req.GetFilter()
	l := newList(f, func(t adminv1.EventType, x *adminv1.WireSummary) error {
		return stream.Send(&adminv1.WireEvent{Type: t, Wire: x})
	})
	if f.GetName() != "" && !f.GetWatch() {
		v, err := s.config.Wires.Find(who, f.GetName())
		if err != nil || !selectsWire(req, v.Conn()) {
			return err
		}
		return l.show(v.Conn().GetId(), s.trail(v).summary())
	}
	return end(ctx, s.config.Wires.Follow(ctx, who, func(initial bool, changes []hop.Change) error {
		for _, c := range changes {
			var err error
			if c.Deleted || !isNamed(c.Conn(), f.GetName()) || !selectsWire(req, c.Conn()) {
				err = l.hide(c.Conn().GetId())
			} else {
				err = l.show(c.Conn().GetId(), s.trail(c.View).summary())
			}
			if err != nil {
				return err
			}
		}
		if initial {
			return l.synced()
		}
		return nil
	}))
}

// isNamed: a wire goes by the own id for it, that of its first segment, or the
// beginning of the latter.
func isNamed(c *networkservice.Connection, name string) bool {
	return name == "" || c.GetId() == name || strings.HasPrefix(c.GetPath().GetPathSegments()[0].GetId(), name)
}

func selectsWire(req *adminv1.WiresRequest, c *networkservice.Connection) bool {
	return (req.GetService() == "" || req.GetService() == c.GetNetworkService()) && has(c.GetLabels(), req.GetFilter().GetLabels())
}

// isCode is the form of a reason's code.
var isCode = regexp.MustCompile(`^NSM-[0-9]{4}$`)

// summary is a wire in one line.
func (t trail) summary() *adminv1.WireSummary {
	c := t.Conn()
	w := &adminv1.WireSummary{
		Id: t.hops[0].GetId(), Service: c.GetNetworkService(), Payload: c.GetPayload(),
		State:  adminv1.WireState(c.GetState() + 1),
		Client: t.clientSide(), Endpoint: t.endpointSide(),
		Established: timestamppb.New(t.Since), StateSince: timestamppb.New(t.Changed), Labels: c.GetLabels(),
	}
	if w.Payload == "" {
		w.Payload = mechanism.PayloadIP
	}
	if at := hop.PathOf(c).Expires(); !at.IsZero() {
		w.Expires = timestamppb.New(at)
	}
	said := t.hops[t.client].GetMetrics()
	code := said[hop.MetricLastError]
	// What a Request says that has succeeded is over, unless it is that packets do not flow.
	if c.GetState() == networkservice.State_DOWN || code == nserr.NoPackets.Code {
		n, _ := strconv.ParseUint(said[hop.MetricAttempts], 10, 32) // 0 if it says nothing, or nonsense
		w.Attempts = uint32(n)
		if isCode.MatchString(code) {
			w.LastError = code
		}
	}
	return w
}

// clientSide is the wire's end at the client. The mechanism of the connection is
// that of the leg towards it.
func (t trail) clientSide() *adminv1.WireSide {
	h := t.hops[t.client]
	side := &adminv1.WireSide{
		Name: h.GetName(), Node: h.GetNode(), Mechanism: hop.MechanismOf(t.Conn().GetMechanism()).Shown(),
		Addresses: t.Conn().GetContext().GetIpContext().GetSrcIpAddrs(),
	}
	if t.client == t.own-1 && side.Mechanism == mechanism.TypeKernel {
		side.Interface = t.Conn().GetMechanism().GetParameters()["name"]
	} else if f := t.firstForwarder(); f != nil {
		side.Interface = interfaceOf(f, "server_interface")
	}
	return side
}

// endpointSide is the wire's end at the endpoint, which the forwarders tell of in
// their metrics (protocol.md §2.12).
func (t trail) endpointSide() *adminv1.WireSide {
	h := t.hops[t.endpoint]
	side := &adminv1.WireSide{
		Name: t.Conn().GetNetworkServiceEndpointName(), Node: h.GetNode(),
		Addresses: t.Conn().GetContext().GetIpContext().GetDstIpAddrs(),
	}
	if t.own+1 < len(t.hops) {
		side.Mechanism, _, _ = strings.Cut(t.hops[t.own+1].GetMetrics()["client_interface"], "/")
	}
	if f := t.lastForwarder(); f != nil {
		side.Interface = interfaceOf(f, "client_interface")
	}
	return side
}

// interfaceOf is the name of the workload's interface in a forwarder's metrics;
// that of a tunnel is not the workload's here.
func interfaceOf(forwarder *adminv1.Hop, metric string) string {
	typ, name, _ := strings.Cut(forwarder.GetMetrics()[metric], "/")
	if typ != mechanism.TypeKernel {
		return ""
	}
	return name
}

// SPDX-License-Identifier: Apache-2.0

package admin

import (
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/hop"
)

// trail is a wire with what is known of its hops. A path may be one of a chain of
// services, where an endpoint is the client of the next wire; then the wire is
// the part of the path that passes here:
//
//	client  manager  forwarder  endpoint  manager  forwarder  endpoint
//	  0        1         2         3         4         5         6
//	                            client      own               endpoint
type trail struct {
	*hop.View
	hops                  []*adminv1.Hop
	client, own, endpoint int // indices of hops
}

// trail works out what each hop is and where. What it says of others than the
// neighbours is as good as the word of those in between.
func (s *Server) trail(v *hop.View) trail {
	segments := v.Conn().GetPath().GetPathSegments()
	t := trail{View: v, hops: make([]*adminv1.Hop, len(segments)), own: int(v.Conn().GetPath().GetIndex())}
	ids := v.Identities()
	for i, p := range segments {
		t.hops[i] = &adminv1.Hop{
			Name: p.GetName(), Id: p.GetId(), Role: s.role(t, i), SpiffeId: ids[i], Expires: p.GetExpires(), Metrics: p.GetMetrics(),
		}
	}
	t.endpoint = len(t.hops) - 1
	for i, h := range t.hops {
		switch h.GetRole() {
		case adminv1.Role_ROLE_CLIENT, adminv1.Role_ROLE_ENDPOINT:
			if i < t.own {
				t.client = i
			} else if i > t.own && i < t.endpoint {
				t.endpoint = i
			}
		}
	}
	s.locate(t)
	return t
}

// role says what hop i is, given what those before it are: who registered as a
// forwarder is one, and the others alternate.
func (s *Server) role(t trail, i int) adminv1.Role {
	name := t.Conn().GetPath().GetPathSegments()[i].GetName()
	registered, known := s.config.Endpoints.Get(name)
	switch {
	case i == t.own:
		return adminv1.Role_ROLE_MANAGER
	case i == 0:
		return adminv1.Role_ROLE_CLIENT
	case known && s.isForwarder(registered):
		return adminv1.Role_ROLE_FORWARDER
	case known || i == len(t.hops)-1:
		return adminv1.Role_ROLE_ENDPOINT
	case t.hops[i-1].GetRole() == adminv1.Role_ROLE_MANAGER:
		return adminv1.Role_ROLE_FORWARDER
	default:
		return adminv1.Role_ROLE_MANAGER
	}
}

// locate says which node each hop is on, as far as that is known here.
func (s *Server) locate(t trail) {
	for i := len(t.hops) - 1; i >= 0; i-- {
		h := t.hops[i]
		registered, known := s.config.Endpoints.Get(h.GetName())
		switch {
		case i == t.own, i == t.own-1 && i == t.client:
			h.Node = s.node
		case known:
			h.Node = s.nodeOf(registered)
		case i == t.endpoint: // an endpoint need not call its segment as it is registered
			if registered, known := s.config.Endpoints.Get(t.Conn().GetNetworkServiceEndpointName()); known {
				h.Node = s.nodeOf(registered)
			}
		case i == t.client: // its manager has labelled it
			h.Node = t.Conn().GetLabels()[nodeLabel]
		case h.GetRole() == adminv1.Role_ROLE_MANAGER && i+1 < len(t.hops): // a manager's forwarder is on its node
			h.Node = t.hops[i+1].GetNode()
		}
	}
}

// firstForwarder is the one at the client, nil if there is none.
func (t trail) firstForwarder() *adminv1.Hop {
	for _, h := range t.hops[t.client:t.endpoint] {
		if h.GetRole() == adminv1.Role_ROLE_FORWARDER {
			return h
		}
	}
	return nil
}

// lastForwarder is the one at the endpoint, nil if there is none.
func (t trail) lastForwarder() (last *adminv1.Hop) {
	for _, h := range t.hops[t.client:t.endpoint] {
		if h.GetRole() == adminv1.Role_ROLE_FORWARDER {
			last = h
		}
	}
	return last
}

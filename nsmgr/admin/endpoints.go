// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"net/url"
	"slices"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/watch"
)

// Endpoints lists the endpoints of the domain, forwarders among them. Each renewal
// of a registration is a change.
func (s *Server) Endpoints(req *adminv1.EndpointsRequest, stream grpc.ServerStreamingServer[adminv1.EndpointEvent]) error {
	ctx := stream.Context()
	if _, err := identify(ctx); err != nil {
		return err
	}
	l := newList(req.GetFilter(), func(t adminv1.EventType, x *adminv1.Endpoint) error {
		return stream.Send(&adminv1.EndpointEvent{Type: t, Endpoint: x})
	})
	return end(ctx, follow(ctx, s.config.Endpoints, func(initial bool, changes []watch.Change[string, *registry.NetworkServiceEndpoint]) error {
		now := time.Now()
		for _, c := range changes {
			nse, here := s.config.Here(c.Value, now)
			var err error
			if c.Deleted || !here || !selectsEndpoint(req, nse) {
				err = l.hide(c.Key)
			} else {
				err = l.show(c.Key, s.endpoint(c.Value, nse.GetUrl()))
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

// Drain takes the wires away from endpoints of this node.
func (s *Server) Drain(req *adminv1.DrainRequest, stream grpc.ServerStreamingServer[adminv1.DrainProgress]) error {
	who, err := identify(stream.Context())
	if err != nil {
		return err
	}
	return s.config.Drain(stream.Context(), who, req, stream.Send)
}

// selectsEndpoint: an endpoint has the labels it has for any of its services.
func selectsEndpoint(req *adminv1.EndpointsRequest, nse *registry.NetworkServiceEndpoint) bool {
	f := req.GetFilter()
	if f.GetName() != "" && f.GetName() != nse.GetName() {
		return false
	}
	if req.GetService() != "" && !slices.Contains(nse.GetNetworkServiceNames(), req.GetService()) {
		return false
	}
	if len(f.GetLabels()) == 0 {
		return true
	}
	for _, labels := range nse.GetNetworkServiceLabels() {
		if has(labels.GetLabels(), f.GetLabels()) {
			return true
		}
	}
	return false
}

// endpoint is nse, as the registry has it, with the URL that holds here.
func (s *Server) endpoint(nse *registry.NetworkServiceEndpoint, url string) *adminv1.Endpoint {
	out := &adminv1.Endpoint{
		Name: nse.GetName(), Url: url, Node: s.nodeOf(nse), PathIds: nse.GetPathIds(),
		Expires: nse.GetExpirationTime(), Registered: nse.GetInitialRegistrationTime(),
		Draining: s.config.Drained(nse),
	}
	for _, name := range nse.GetNetworkServiceNames() {
		out.Services = append(out.Services, &adminv1.EndpointService{Name: name, Labels: nse.GetNetworkServiceLabels()[name].GetLabels()})
	}
	return out
}

// nodeOf returns the name of the node that an endpoint is on: the own one, what
// its labels say, what those of a forwarder at the same manager say, or where
// that manager is.
func (s *Server) nodeOf(nse *registry.NetworkServiceEndpoint) string {
	if nse.GetUrl() == s.config.URL {
		return s.node
	}
	if name := labelled(nse); name != "" {
		return name
	}
	for _, f := range s.config.Offering(s.config.ForwarderService) {
		if f.GetUrl() == nse.GetUrl() && labelled(f) != "" {
			return labelled(f)
		}
	}
	if u, err := url.Parse(nse.GetUrl()); err == nil {
		return u.Host
	}
	return ""
}

// labelled is the node's name in an endpoint's labels, "" if none.
func labelled(nse *registry.NetworkServiceEndpoint) string {
	for _, service := range nse.GetNetworkServiceNames() {
		if name := nse.GetNetworkServiceLabels()[service].GetLabels()[nodeLabel]; name != "" {
			return name
		}
	}
	return ""
}

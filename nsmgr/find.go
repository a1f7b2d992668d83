// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/query"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Find answers from the catalog. What the catalog does not have may be newer
// than its watch, so an empty answer is fetched from the registry.
func (s *serviceRegistry) Find(q *registry.NetworkServiceQuery, stream registry.NetworkServiceRegistry_FindServer) error {
	send := func(ns *registry.NetworkService, deleted bool) error {
		if !query.Match(q.GetNetworkService(), ns) {
			return nil
		}
		err := stream.Send(&registry.NetworkServiceResponse{NetworkService: ns, Deleted: deleted})
		if err == nil && deleted && ns.GetName() == q.GetNetworkService().GetName() && s.m.catalog.services.lost(ns.GetName()) {
			err = lostSight(ns.GetName())
		}
		return err
	}
	if q.GetWatch() {
		return watchView(stream, s.m.catalog.services, send)
	}
	if ns, ok := s.m.catalog.services.objects.Get(q.GetNetworkService().GetName()); ok && query.Match(q.GetNetworkService(), ns) {
		return send(ns, false)
	}
	up, err := s.upstream().Find(stream.Context(), q)
	if err != nil {
		return ofRegistry(err)
	}
	return passAnswers(up, func(r *registry.NetworkServiceResponse) error { return send(r.GetNetworkService(), false) })
}

// passAnswers sends on what the registry answers. An error says which of the two has
// failed.
func passAnswers[T any](up grpc.ServerStreamingClient[T], send func(*T) error) error {
	var sending error
	err := rpc.Drain(up, func(r *T) error {
		sending = send(r)
		return sending
	})
	if sending != nil {
		return sending
	}
	return ofRegistry(err)
}

// Find answers from the catalog, with the addresses that hold on this node: a
// local endpoint's own, another node's manager for the rest (§3.6). A socket that
// came as a descriptor goes on to forwarders only: others would bypass manager and
// forwarder with it. A forwarder that names an endpoint and its address has not found
// it there.
func (s *endpointRegistry) Find(q *registry.NetworkServiceEndpointQuery, stream registry.NetworkServiceEndpointRegistry_FindServer) error {
	template := q.GetNetworkServiceEndpoint()
	connects := s.m.config.MayForward(hop.Identity(rpc.CallerFrom(stream.Context())))
	sent := 0
	send := func(found *registry.NetworkServiceEndpoint, deleted bool) error {
		nse := found
		if !deleted {
			var ok bool
			if nse, ok = s.m.localise(found, time.Now()); !ok {
				return nil
			}
		}
		if !query.Match(template, nse) {
			return nil
		}
		if !deleted && template.GetName() == "" && s.m.isDrained(nse) {
			return nil // known by name to itself and to wires that it has, not to be chosen
		}
		if isInode(nse.GetUrl()) {
			passed := connects && s.sendSocket(stream.Context(), nse.GetUrl()) == nil
			if again, ok := s.m.localise(found, time.Now()); connects && !passed && ok && again.GetUrl() != nse.GetUrl() {
				nse = again // the next of its name has come in between
				passed = !isInode(nse.GetUrl()) || s.sendSocket(stream.Context(), nse.GetUrl()) == nil
			}
			if !passed {
				// A caller that cannot take descriptors, one on TCP, cannot use a
				// local socket either; it gets the public address.
				nse = proto.Clone(nse).(*registry.NetworkServiceEndpoint)
				nse.Url = s.m.config.URL
			}
		}
		sent++
		err := stream.Send(&registry.NetworkServiceEndpointResponse{NetworkServiceEndpoint: nse, Deleted: deleted})
		if err == nil && deleted && nse.GetName() == template.GetName() && s.m.isHere(nse.GetName(), time.Now()) {
			err = lostSight(nse.GetName())
		}
		return err
	}
	if q.GetWatch() {
		return watchView(stream, s.m.catalog.endpoints, send)
	}
	if connects && template.GetName() != "" && template.GetUrl() != "" {
		s.m.confirm(stream.Context(), template.GetName(), template.GetUrl())
	}
	s.awaitEndpoints(stream.Context(), template)
	for _, nse := range s.known(template) {
		if err := send(nse, false); err != nil {
			return err
		}
	}
	if sent > 0 {
		return nil
	}
	upstream := proto.Clone(template).(*registry.NetworkServiceEndpoint)
	upstream.Url = "" // addresses are matched as they are here
	up, err := s.upstream().Find(stream.Context(), &registry.NetworkServiceEndpointQuery{NetworkServiceEndpoint: upstream})
	if err != nil {
		return ofRegistry(err)
	}
	return passAnswers(up, func(r *registry.NetworkServiceEndpointResponse) error {
		return send(r.GetNetworkServiceEndpoint(), false)
	})
}

// known returns the endpoints of the catalog that can match the template.
func (s *endpointRegistry) known(template *registry.NetworkServiceEndpoint) []*registry.NetworkServiceEndpoint {
	endpoints := s.m.catalog.endpoints
	if name := template.GetName(); name != "" {
		if nse, ok := endpoints.objects.Get(name); ok {
			return []*registry.NetworkServiceEndpoint{nse}
		}
		return nil
	}
	if services := template.GetNetworkServiceNames(); len(services) > 0 {
		return endpoints.group(services[0])
	}
	var all []*registry.NetworkServiceEndpoint
	for _, nse := range endpoints.objects.All() {
		all = append(all, nse)
	}
	return all
}

func (s *endpointRegistry) sendSocket(ctx context.Context, url string) error {
	f, err := s.m.config.Sockets.File(url)
	if err != nil {
		return err
	}
	defer f.Close()
	return rpc.SendFiles(ctx, f)
}

// localise returns the endpoint with the address that holds on this node. ok is
// false for what has expired and for what claims to be of this node but is not
// known here: a leftover from before this manager's restart.
func (m *Manager) localise(nse *registry.NetworkServiceEndpoint, now time.Time) (out *registry.NetworkServiceEndpoint, ok bool) {
	nse = m.clock.translated(nse)
	if query.Ended(nse, now) {
		return nil, false
	}
	if nse.GetUrl() != m.config.URL {
		return nse, true
	}
	e, known := m.locals.get(nse.GetName())
	if !known || !e.expires.After(now) {
		return nil, false
	}
	here := proto.Clone(nse).(*registry.NetworkServiceEndpoint)
	here.Url = e.nse.GetUrl()
	return here, true
}

// isHere reports whether an endpoint is registered with this manager.
func (m *Manager) isHere(name string, now time.Time) bool {
	e, known := m.locals.get(name)
	return known && e.expires.After(now)
}

// lostSight ends the watch of a name that the registry has lost, though nobody has
// unregistered it: who has registered it watches it to see that. Those of old make
// nothing of a deletion and register again when their watch breaks (§4.5), as it
// does when there is no manager between whose own watch goes on.
func lostSight(name string) error {
	return nserr.PeerDown.Errorf("the registry has lost %q", name)
}

// watchView streams what a view has and its changes until the caller goes away.
// The header tells the caller that nothing is missed from here on.
func watchView[T query.Object](stream grpc.ServerStream, v *view[T], send func(T, bool) error) error {
	r := v.objects.Reader()
	defer r.Close()
	for opened := false; ; {
		changes, err := r.Next(stream.Context())
		if err != nil {
			return endOfWatch(stream.Context(), err)
		}
		if !opened {
			if err := stream.SendHeader(metadata.MD{}); err != nil {
				return err
			}
			opened = true
		}
		for _, c := range changes {
			if err := send(c.Value, c.Deleted); err != nil {
				return err
			}
		}
	}
}

// endOfWatch is nil when the caller ended the watch, which is no error.
func endOfWatch(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

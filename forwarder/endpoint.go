// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/match"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/query"
	"github.com/openvwire/nsm/sdk/rpc"
)

// candidate is an endpoint that may be asked.
type candidate struct {
	name       string
	url        string
	payload    string    // of the network service
	registered time.Time // until when; zero = not known
	holds      holdings  // its socket, if that came as a descriptor
}

// local reports whether the endpoint is on this node.
func (c *candidate) local() bool { return !strings.HasPrefix(c.url, "tcp://") }

func releaseAll(cs []candidate) {
	for i := range cs {
		cs[i].holds.release()
	}
}

// stay returns the endpoint that a wire has, unless the request names another: a
// refresh stays with its endpoint and looks nothing up.
func (f *Forwarder) stay(c *networkservice.Connection, known *wire, anew bool) (*candidate, bool) {
	if known == nil || anew {
		return nil, false
	}
	if name := c.GetNetworkServiceEndpointName(); name != "" && name != known.next.Conn.GetNetworkServiceEndpointName() {
		return nil, false
	}
	at := known.endpoint()
	at.holds = f.holdSocketAgain(at.url)
	return at, true
}

// endpoint returns the endpoint that a wire has; it holds nothing.
func (w *wire) endpoint() *candidate {
	return &candidate{
		name:    w.next.Conn.GetNetworkServiceEndpointName(),
		url:     w.next.Peer.URL(),
		payload: w.next.Conn.GetPayload(),
	}
}

// candidates returns the endpoints to try, in order (protocol.md §3.3).
func (f *Forwarder) candidates(ctx context.Context, c *networkservice.Connection) ([]candidate, error) {
	name := c.GetNetworkServiceEndpointName()
	service, err := f.findService(ctx, c)
	if err != nil {
		return nil, err
	}
	if name != "" {
		found, err := f.findEndpoints(ctx, &registry.NetworkServiceEndpoint{Name: name, NetworkServiceNames: []string{c.GetNetworkService()}})
		if err != nil {
			return nil, err
		}
		named := keep(found, []string{name}, service.GetPayload())
		if len(named) == 0 {
			return nil, nserr.UnknownEndpoint.Errorf("endpoint %s of network service %s is not found", name, c.GetNetworkService())
		}
		return named, nil
	}
	found, err := f.findEndpoints(ctx, &registry.NetworkServiceEndpoint{NetworkServiceNames: []string{c.GetNetworkService()}})
	if err != nil {
		return nil, err
	}
	nses := make([]*registry.NetworkServiceEndpoint, len(found))
	for i := range found {
		nses[i] = found[i].nse
	}
	matching := match.Endpoints(hop.MatchesOf(service), c.GetLabels(), hop.EndpointsOf(nses, c.GetNetworkService()))
	if len(matching) == 0 {
		letGo(found)
		if len(found) == 0 {
			return nil, nserr.NoEndpoint.Errorf("network service endpoint candidates not found: no endpoint of %s is registered", c.GetNetworkService())
		}
		if err := hop.CheckRules(service, c.GetLabels()); err != nil {
			return nil, err
		}
		return nil, nserr.NoMatch.Errorf("network service endpoint candidates not found: none of the %d endpoints of %s matches a client with %s",
			len(found), c.GetNetworkService(), match.Text(c.GetLabels()))
	}
	var names []string
	for _, m := range match.Order(matching, f.turns.next(c.GetNetworkService())) {
		names = append(names, m.Name)
	}
	cs := keep(found, names, service.GetPayload())
	f.suspects.order(cs, time.Now())
	return cs, nil
}

func (f *Forwarder) findService(ctx context.Context, c *networkservice.Connection) (*registry.NetworkService, error) {
	stream, err := registry.NewNetworkServiceRegistryClient(f.config.Registry).Find(ctx, &registry.NetworkServiceQuery{
		NetworkService: &registry.NetworkService{Name: c.GetNetworkService(), Payload: c.GetPayload()},
	})
	if err != nil {
		return nil, err
	}
	var found *registry.NetworkService
	err = rpc.Drain(stream, func(r *registry.NetworkServiceResponse) error {
		if r.GetNetworkService().GetName() == c.GetNetworkService() {
			found = r.GetNetworkService()
		}
		return nil
	})
	if err == nil && found == nil {
		err = nserr.UnknownService.Errorf("network service %s is not found", c.GetNetworkService())
	}
	return found, err
}

// confirmTimeout bounds confirm: the manager is on this node.
const confirmTimeout = 500 * time.Millisecond

// confirm has the manager find out whether an endpoint of this node, which has not
// answered at its address, is dead: it asks for it by both.
func (f *Forwarder) confirm(ctx context.Context, c *candidate) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), confirmTimeout)
	defer cancel()
	found, err := f.findEndpoints(ctx, &registry.NetworkServiceEndpoint{Name: c.name, Url: c.url})
	if err != nil {
		f.log.Debug("manager does not say whether an endpoint is dead", "endpoint", c.name, "error", err)
	}
	letGo(found)
}

// foundEndpoint is an endpoint as the manager told it, with what it holds.
type foundEndpoint struct {
	nse   *registry.NetworkServiceEndpoint
	holds holdings
}

// findEndpoints asks the manager, which gives local endpoints the address that
// this node reaches them at and sends their sockets along (§3.6).
func (f *Forwarder) findEndpoints(ctx context.Context, template *registry.NetworkServiceEndpoint) (found []foundEndpoint, err error) {
	defer func() {
		if err != nil {
			letGo(found)
			found = nil
		}
	}()
	var at peer.Peer
	stream, err := registry.NewNetworkServiceEndpointRegistryClient(f.config.Registry).Find(ctx,
		&registry.NetworkServiceEndpointQuery{NetworkServiceEndpoint: template}, grpc.Peer(&at))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	err = rpc.Drain(stream, func(r *registry.NetworkServiceEndpointResponse) error {
		if nse := r.GetNetworkServiceEndpoint(); !query.Ended(nse, now) {
			found = append(found, foundEndpoint{nse: nse})
		}
		return nil
	})
	if err != nil {
		return found, err
	}
	// gRPC tells the peer when the stream has ended; the descriptors have come.
	for i := range found {
		url := found[i].nse.GetUrl()
		if !strings.HasPrefix(url, "inode://") {
			continue
		}
		file, err := rpc.ReceiveReplyFile(ctx, &at, url)
		if err != nil {
			return found, err
		}
		found[i].holds.add(f.config.Sockets.Hold(url, file))
	}
	return found, nil
}

// keep returns the named endpoints as candidates, in the order of the names, and
// lets go of the others.
func keep(found []foundEndpoint, names []string, payload string) []candidate {
	out := make([]candidate, 0, len(names))
	for _, name := range names {
		i := slices.IndexFunc(found, func(e foundEndpoint) bool { return e.nse.GetName() == name })
		if i < 0 {
			continue
		}
		c := candidate{name: name, url: found[i].nse.GetUrl(), payload: payload}
		if at := found[i].nse.GetExpirationTime(); at != nil {
			c.registered = at.AsTime()
		}
		c.holds.take(&found[i].holds)
		out = append(out, c)
	}
	letGo(found)
	return out
}

func letGo(found []foundEndpoint) {
	for i := range found {
		found[i].holds.release()
	}
}

// holdSocketAgain gives the next state of a wire its own hold on the socket of
// its endpoint.
func (f *Forwarder) holdSocketAgain(url string) (h holdings) {
	if release, ok := f.config.Sockets.HoldAgain(url); ok {
		h.add(release)
	}
	return h
}

// turns counts the clients of each network service, for round robin (§3.3).
type turns struct {
	name string // of the forwarder

	mu        sync.Mutex
	byService map[string]uint64 // guarded by mu
}

// maxServices bounds the map: a client may ask for any name, and a counter that
// starts anew does no harm.
const maxServices = 4096

func (t *turns) next(service string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.byService[service]
	if !ok {
		n = match.Seed(t.name, service)
		if t.byService == nil || len(t.byService) >= maxServices {
			t.byService = make(map[string]uint64)
		}
	}
	t.byService[service] = n + 1
	return n
}

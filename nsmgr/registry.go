// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/query"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// registration is a Register or Unregister that was admitted.
type registration struct {
	path    regpath.Path
	owner   string    // SPIFFE ID of who registered in the first place
	ids     []string  // SPIFFE IDs of the path so far: a registry upstream only adds its own
	expires time.Time // the caller's token or ours, whichever ends first
}

// admit takes this manager's place in the path of a registration (§4.2) and
// checks who sends it, by the same policy as a Request.
func (m *Manager) admit(ctx context.Context) (*registration, error) {
	p, err := regpath.FromIncoming(ctx)
	if err != nil {
		return nil, err
	}
	caller := rpc.CallerFrom(ctx)
	own, expires, err := m.config.Tokens(caller.Cert)
	if err != nil {
		return nil, err
	}
	if err := p.Advance(caller.Token, own); err != nil {
		return nil, err
	}
	if p.Index != 1 {
		// Endpoints register with the manager of their node, nobody in between: a
		// longer path would claim a name for an identity that only a token shows.
		return nil, nserr.NotAllowed.Errorf("a registration for somebody else, %d hops away, is not taken", p.Index)
	}
	policy := path.Path{Index: int(p.Index)}
	for _, raw := range p.Tokens() {
		policy.Segments = append(policy.Segments, path.Segment{Token: raw})
	}
	if err := m.config.Policy.Admit(caller, policy, time.Now()); err != nil {
		return nil, err
	}
	var ids []string
	for _, raw := range p.Tokens() {
		t, err := token.Parse(raw)
		if err != nil {
			return nil, err
		}
		ids = append(ids, t.Subject)
	}
	if !caller.TokenExpires.IsZero() && caller.TokenExpires.Before(expires) {
		expires = caller.TokenExpires
	}
	return &registration{path: p, owner: ids[0], ids: ids, expires: expires}, nil
}

// adopt gives the caller the path that upstream answered with.
func (r *registration) adopt(ctx context.Context, header metadata.MD) {
	if up, err := regpath.FromHeader(header); err == nil && len(up.PathSegments) > 0 {
		up.Index = r.path.Index
		r.path = up
	}
	_ = r.path.SetHeader(ctx) // fails only where the caller is gone
}

// serviceRegistry proxies network services: nothing about them is local.
type serviceRegistry struct {
	registry.UnimplementedNetworkServiceRegistryServer
	m *Manager
}

func (s *serviceRegistry) upstream() registry.NetworkServiceRegistryClient {
	return registry.NewNetworkServiceRegistryClient(s.m.config.Registry)
}

func (s *serviceRegistry) Register(ctx context.Context, ns *registry.NetworkService) (*registry.NetworkService, error) {
	r, err := s.m.admit(ctx)
	if err != nil {
		return nil, err
	}
	ns.PathIds = r.ids
	var header metadata.MD
	got, err := s.upstream().Register(r.path.ToOutgoing(ctx), ns, grpc.Header(&header))
	if err != nil {
		return nil, ofRegistry(err)
	}
	s.m.catalog.services.put(got) // whoever registers may ask for it at once
	r.adopt(ctx, header)
	return got, nil
}

func (s *serviceRegistry) Unregister(ctx context.Context, ns *registry.NetworkService) (*emptypb.Empty, error) {
	r, err := s.m.admit(ctx)
	if err != nil {
		return nil, err
	}
	var header metadata.MD
	out, err := s.upstream().Unregister(r.path.ToOutgoing(ctx), ns, grpc.Header(&header))
	if err != nil {
		return nil, ofRegistry(err)
	}
	s.m.catalog.services.delete(ns.GetName())
	r.adopt(ctx, header)
	return out, nil
}

// endpointRegistry proxies endpoints, and knows those of this node itself.
type endpointRegistry struct {
	registry.UnimplementedNetworkServiceEndpointRegistryServer
	m *Manager
}

func (s *endpointRegistry) upstream() registry.NetworkServiceEndpointRegistryClient {
	return registry.NewNetworkServiceEndpointRegistryClient(s.m.config.Registry)
}

// Register records where this node reaches the endpoint and registers it with
// the manager's address instead. When the registry is away, what is registered
// here already stays so, for this node; and so may a forwarder, which is of use to
// this node alone, begin.
func (s *endpointRegistry) Register(ctx context.Context, nse *registry.NetworkServiceEndpoint) (out *registry.NetworkServiceEndpoint, _ error) {
	if nse.GetName() == "" || len(nse.GetName()) > path.MaxID || len(nse.GetNetworkServiceNames()) == 0 {
		return nil, nserr.BadEndpoint.Errorf("endpoint %.40q offers %d network services; it needs a name of 1 to %d bytes and at least one service", nse.GetName(), len(nse.GetNetworkServiceNames()), path.MaxID)
	}
	r, err := s.m.admit(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.m.checkForwarder(nse, r.owner); err != nil {
		return nil, err
	}
	err = s.m.locals.turns.Do(ctx, nse.GetName(), func(t *conn.Turn[local]) error {
		out, err = s.register(ctx, t, r, nse)
		return err
	})
	return out, err
}

// checkForwarder refuses forwarders, and addresses that only parts of the manager's
// own process have, to whom they are not for.
func (m *Manager) checkForwarder(nse *registry.NetworkServiceEndpoint, owner string) error {
	_, labelled := nse.GetNetworkServiceLabels()[m.config.ForwarderService]
	is := labelled || slices.Contains(nse.GetNetworkServiceNames(), m.config.ForwarderService)
	if (is || strings.HasPrefix(nse.GetUrl(), "inproc://")) && !m.config.MayForward(owner) {
		return nserr.NotAllowed.Errorf("%s may not register %q as a forwarder: it would get the Requests of everybody here", owner, nse.GetName()).
			WithFix("name the identity with --forwarders at the manager")
	}
	return nil
}

func (s *endpointRegistry) register(ctx context.Context, t *conn.Turn[local], r *registration, nse *registry.NetworkServiceEndpoint) (*registry.NetworkServiceEndpoint, error) {
	known := t.Record
	if known != nil && known.by.owner != r.owner {
		return nil, nserr.NameOwned.Errorf("endpoint %q was registered by %s, not by %s", nse.GetName(), known.by.owner, r.owner)
	}
	if known != nil && known.nse.GetUrl() != nse.GetUrl() && s.m.answers(ctx, known.nse.GetUrl()) {
		return nil, nserr.NameInUse.Errorf("an endpoint %q of the same identity runs on this node already, elsewhere than this one", nse.GetName())
	}
	release, err := s.m.receiveSocket(ctx, nse.GetUrl())
	if err != nil {
		return nil, err
	}
	kept := false
	defer func() {
		if !kept {
			release()
		}
	}()
	s.describeEndpoint(nse)
	expires := query.Earlier(time.Now().Add(s.m.config.EndpointExpiry), query.Earlier(r.expires, query.Expiry(nse)))
	nse.ExpirationTime = timestamppb.New(expires)

	public := proto.Clone(nse).(*registry.NetworkServiceEndpoint)
	public.Url, public.PathIds = s.m.config.URL, r.ids
	sent := time.Now()
	got, header, err := s.publish(ctx, r, public)
	ours := known != nil || slices.Contains(nse.GetNetworkServiceNames(), s.m.config.ForwarderService)
	switch {
	case err != nil && !(ours && away(err)):
		return nil, ofRegistry(err)
	case err != nil:
		if known == nil || !known.alone {
			s.m.log.Log(ctx, s.m.absence.Level(slog.LevelWarn, nse.GetName(), ""), "registry is away, the endpoint is known to this node only", "endpoint", nse.GetName(), "error", err)
		}
		got = s.m.clock.original(public)
	default:
		s.m.clock.answered(header, got, expires, sent, time.Now())
	}
	renew := expires // before then
	if at := query.Expiry(s.m.clock.translated(got)); !at.IsZero() {
		renew = query.Earlier(renew, at)
		expires = query.Earlier(expires, at.Add(query.ClockSkew))
	}
	if err != nil {
		renew = query.Earlier(renew, time.Now().Add(aloneHolds))
	}
	reply := proto.Clone(got).(*registry.NetworkServiceEndpoint)
	reply.Url = nse.GetUrl()
	reply.ExpirationTime = timestamppb.New(renew)
	kept = true
	expires = time.Now().Add(time.Until(expires)) // from now on not by the clock, which may be set
	t.Record = &local{nse: proto.Clone(reply).(*registry.NetworkServiceEndpoint), by: r, expires: expires, alone: err != nil, release: release}
	s.m.locals.set(nse.GetName(), t.Record)
	if known != nil {
		known.release() // not before: whoever finds its address finds its socket, or the next address
	}
	s.m.catalog.endpoints.put(got) // only now can whoever watches be told where it is
	t.ExpireAt(expires)
	if known == nil {
		level := slog.LevelInfo
		if s.m.deaths.Said(nse.GetName(), dies) {
			level = s.m.deaths.Level(level, nse.GetName(), returns)
		}
		s.m.log.Log(ctx, level, "endpoint registered", "endpoint", nse.GetName(), "services", nse.GetNetworkServiceNames(), "owner", r.owner)
	}
	r.adopt(ctx, header)
	return reply, nil
}

// aloneHolds is how long a registration is said to hold that the registry has not heard
// of: whoever has registered comes again before what the registry has has ended.
const aloneHolds = 15 * time.Second

// answersWithin is how long an endpoint may take to say that it runs.
const answersWithin = time.Second

// answers reports whether somebody serves at url, whatever is answered.
func (m *Manager) answers(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	p := m.config.Peers.Get(url)
	defer p.Release()
	_, err := healthpb.NewHealthClient(p.Conn()).Check(ctx, &healthpb.HealthCheckRequest{})
	return err == nil || !away(err)
}

// registryPatience is how long the registry may take to answer before it is away: less
// than a caller has, who is to learn in time that the manager knows of the endpoint.
const registryPatience = 5 * time.Second

// publish registers the endpoint in the registry, unless it is drained: then it must
// not be there.
func (s *endpointRegistry) publish(ctx context.Context, r *registration, public *registry.NetworkServiceEndpoint) (got *registry.NetworkServiceEndpoint, header metadata.MD, err error) {
	ctx, cancel := context.WithTimeout(ctx, registryPatience)
	defer cancel()
	if s.m.drains.has(public) {
		_, err = s.upstream().Unregister(r.path.ToOutgoing(ctx), public, grpc.Header(&header))
		return s.m.clock.original(public), header, err
	}
	got, err = s.upstream().Register(r.path.ToOutgoing(ctx), public, grpc.Header(&header))
	return got, header, err
}

// away reports whether the registry could not be asked, as opposed to saying no.
func away(err error) bool { return nserr.From(err).Reason.Unanswered() }

// ofRegistry says whose silence an error is that goes on to a caller of this manager.
func ofRegistry(err error) error {
	if err == nil || !away(err) {
		return err
	}
	return nserr.From(err).Reason.Errorf("the domain's registry does not answer: %w", err).
		WithFix("see whether it runs, and whether this node reaches it: --registry-url of the manager")
}

// describeEndpoint adds the node's labels to every service that has labels
// already, as the reference does (§4.1), without replacing any.
func (s *endpointRegistry) describeEndpoint(nse *registry.NetworkServiceEndpoint) {
	for _, labels := range nse.GetNetworkServiceLabels() {
		for k, v := range s.m.config.Labels {
			if _, ok := labels.GetLabels()[k]; !ok {
				if labels.Labels == nil {
					labels.Labels = make(map[string]string)
				}
				labels.Labels[k] = v
			}
		}
	}
}

// Unregister removes the endpoint here, then in the registry.
func (s *endpointRegistry) Unregister(ctx context.Context, nse *registry.NetworkServiceEndpoint) (*emptypb.Empty, error) {
	if nse.GetName() == "" {
		return &emptypb.Empty{}, nil
	}
	r, err := s.m.admit(ctx)
	if err != nil {
		return nil, err
	}
	err = s.m.locals.turns.Do(ctx, nse.GetName(), func(t *conn.Turn[local]) error {
		if t.Record != nil && t.Record.by.owner != r.owner {
			return nserr.NameOwned.Errorf("endpoint %q was registered by %s, not by %s", nse.GetName(), t.Record.by.owner, r.owner)
		}
		public := proto.Clone(nse).(*registry.NetworkServiceEndpoint)
		public.Url = s.m.config.URL
		var header metadata.MD
		if _, err := s.upstream().Unregister(r.path.ToOutgoing(ctx), public, grpc.Header(&header)); err != nil && !away(err) {
			return err
		}
		if t.Record != nil {
			s.m.forgetLocal(t) // first: what is here and gone is lost
			s.m.log.Info("endpoint unregistered", "endpoint", nse.GetName())
		}
		s.m.catalog.endpoints.delete(nse.GetName())
		r.adopt(ctx, header)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// forgetEndpoint drops a local endpoint that did not renew itself. The registry
// has its own timer.
func (m *Manager) forgetEndpoint(ctx context.Context, name string) {
	_ = m.locals.turns.Do(ctx, name, func(t *conn.Turn[local]) error {
		if !t.Expired() {
			return nil
		}
		m.forgetLocal(t)
		m.log.Info("endpoint expired", "endpoint", name)
		return nil
	})
}

// forgetLocal forgets an endpoint of this node.
func (m *Manager) forgetLocal(t *conn.Turn[local]) {
	m.locals.set(t.ID, nil)
	t.Record.release()
	m.drains.forget(t.ID)
	t.Record = nil
}

// servicesGone follows when the registry has come back without services. Who serves
// them on this node may have renewed its registration a moment before, when they
// were believed to be there: it is told that it is gone too, and registers both.
func (m *Manager) servicesGone(names map[string]bool) {
	for _, e := range m.locals.all() {
		if slices.ContainsFunc(e.nse.GetNetworkServiceNames(), func(s string) bool { return names[s] }) {
			m.catalog.endpoints.delete(e.nse.GetName())
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

// Package nsmgr is the manager: one per node, the first hop of every client and
// the door of the node for other managers.
//
// It does three things. It proxies the registry for its node, replacing the
// address of each local endpoint by its own, so that the whole domain can reach
// endpoints that listen on a Unix socket (registry.go, local.go). It sends each
// Request on to a forwarder of its node, chosen in package route (request.go,
// close.go). And it tells watchers what happens to its connections (package hop),
// and operators what there is (package admin).
//
//	m, err := nsmgr.New(nsmgr.Config{Name: "manager-a", URL: "tcp://10.0.0.1:5001", Tokens: tokens, Peers: peers, Registry: cc})
//	m.Register(server)
//	…
//	m.Stop()
//
// A manager keeps no file. After a restart endpoints register again, and
// connections come back with their next refresh.
package nsmgr

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/openvwire/nsm/nsmgr/admin"
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/gate"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/profile"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// Config is what a manager needs.
type Config struct {
	Name   string            // of its path segments; unique in the domain
	URL    string            // under which other managers reach this one: tcp://host:port
	Labels map[string]string // added to clients and endpoints: nodeName, clusterName, …

	Tokens   token.Generator
	Policy   hop.Policy               // nil means hop.Strict
	Peers    *peer.Pool               // to forwarders
	Sockets  *rpc.Sockets             // of local endpoints; Peers dials through it
	Registry grpc.ClientConnInterface // the domain's registry

	// Excluded returns the prefixes that endpoints must not take addresses from;
	// it is asked with every Request. nil means none.
	Excluded func() []netip.Prefix

	// Abandoned reports whether nobody listens any more at the address that an
	// endpoint of this node has registered. nil means to try.
	Abandoned func(ctx context.Context, url string) bool

	// ForwarderService is the network service that forwarders offer. Default
	// "forwarder", as NSM_FORWARDER_NETWORK_SERVICE_NAME.
	ForwarderService string
	// MayForward reports whether an identity may register a forwarder: whoever is
	// one gets the Requests of everybody on this node, with their namespaces. nil
	// means nobody may.
	MayForward func(id string) bool
	// MayRelay reports whether an identity may send Requests that, as it says,
	// others have opened: forwarders and managers of other nodes. Nothing proves
	// the beginning of a path but its neighbours' honesty. nil means that everybody
	// may, as in the reference.
	MayRelay func(id string) bool
	// MayDrain reports whether an identity may drain any endpoint of this node; its
	// own ones everybody may. nil means that nobody else may.
	MayDrain func(id string) bool
	// MayProfile reports whether an identity may record profiles of this process. nil
	// means that nobody may.
	MayProfile func(id string) bool
	// Gate bounds how many Requests are worked on at once. nil means as many as suit the
	// machine.
	Gate *gate.Gate
	// EndpointExpiry is the longest time for which an endpoint is registered.
	// Default 1 min (protocol.md §4.4).
	EndpointExpiry time.Duration

	Logger *slog.Logger // nil means slog.Default()
}

// Manager implements the NetworkService, MonitorConnection, both registry services
// and the admin API.
type Manager struct {
	config  Config
	log     *slog.Logger
	hop     hop.Hop
	monitor *hop.Monitor
	wires   *conn.Table[wire]
	catalog *catalog
	locals  *locals
	drains  drains
	ruled   ruled
	admin   *admin.Server
	cleanup *hop.Cleanup // at forwarders
	grownUp time.Time    // see youth
	clock   registryClock

	failures nserr.Book // why Requests have failed, by connection
	deaths   nserr.Book // which endpoints were found dead, and came back, by name
	overload nserr.Book // that Requests were not let in
	absence  nserr.Book // which endpoints the registry does not know since it is away, by name

	cancel  context.CancelFunc
	running sync.WaitGroup
}

// wire is what the manager remembers of a connection: whose it is, the forwarder
// it runs through, and that forwarder's last answer.
type wire struct {
	binding   hop.Binding
	forwarder string
	next      hop.Next
}

// New returns a manager that follows the registry. It does not wait for it.
func New(c Config) (*Manager, error) {
	if c.ForwarderService == "" {
		c.ForwarderService = "forwarder"
	}
	if c.EndpointExpiry == 0 {
		c.EndpointExpiry = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Policy == nil {
		c.Policy = hop.Strict{}
	}
	if c.MayForward == nil {
		c.MayForward = func(string) bool { return false }
	}
	if c.Abandoned == nil {
		c.Abandoned = c.Sockets.Refused
	}
	if c.Gate == nil {
		c.Gate = gate.New(0)
	}
	if c.MayDrain == nil {
		c.MayDrain = func(string) bool { return false }
	}
	if c.Name == "" || c.URL == "" || c.Tokens == nil || c.Peers == nil || c.Sockets == nil || c.Registry == nil {
		return nil, nserr.BadFlag.Errorf("a manager needs a name, a URL, tokens, peers, sockets and a registry")
	}
	m := &Manager{
		config:  c,
		log:     c.Logger.With("part", "manager", "name", c.Name),
		monitor: hop.NewMonitor(c.Policy),
		cleanup: hop.NewCleanup(c.Peers, c.Sockets),
		grownUp: time.Now().Add(youth),
	}
	m.clock.log = m.log
	m.hop = hop.Hop{Name: c.Name, Tokens: c.Tokens, Policy: c.Policy, Monitor: m.monitor}
	m.wires = conn.NewTable[wire](m.expire)
	m.catalog = newCatalog()
	m.drains.service = c.ForwarderService
	m.locals = newLocals(m.config.ForwarderService, m.forgetEndpoint)
	m.catalog.services.gone = m.servicesGone
	m.admin = admin.New(admin.Config{
		Name: c.Name, URL: c.URL, Labels: c.Labels, ForwarderService: c.ForwarderService,
		Wires: m.monitor, Services: m.catalog.services.objects, Endpoints: m.catalog.endpoints.objects,
		Offering: m.catalog.endpoints.group, Here: m.localise,
		Peers: c.Peers, Registry: c.Registry, Proxy: &serviceRegistry{m: m},
		Profile: profile.Server{May: c.MayProfile, Logger: m.log},
		Drain:   m.Drain, Drained: m.isDrained,
	})

	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.running.Go(func() { follow(ctx, m.log, "services", m.catalog.services, findServices(c.Registry)) })
	m.running.Go(func() { follow(ctx, m.log, "endpoints", m.catalog.endpoints, findEndpoints(c.Registry)) })
	m.running.Go(func() { m.followRules(ctx) })
	return m, nil
}

// Register puts the manager's services on a server.
func (m *Manager) Register(s grpc.ServiceRegistrar) {
	rpc.RegisterNetworkService(s, gated{m})
	rpc.RegisterMonitorConnection(s, m.monitor)
	regpath.RegisterServices(s, &serviceRegistry{m: m})
	regpath.RegisterEndpoints(s, &endpointRegistry{m: m})
	adminv1.RegisterAdminServer(s, m.admin)
}

// Monitor has what watchers see.
func (m *Manager) Monitor() *hop.Monitor { return m.monitor }

// Usage counts what a manager knows.
type Usage struct {
	Wires     int // with a record, or a call under way
	Endpoints int // of this node, forwarders among them
}

// Usage returns what is known now.
func (m *Manager) Usage() Usage {
	return Usage{Wires: m.wires.Len(), Endpoints: m.locals.turns.Len()}
}

// WaitReady waits until the registry has been read once.
func (m *Manager) WaitReady(ctx context.Context) error {
	for _, ready := range []chan struct{}{m.catalog.services.ready, m.catalog.endpoints.ready} {
		select {
		case <-ready:
		case <-ctx.Done():
			return nserr.PeerDown.Errorf("the registry has not answered: %w", context.Cause(ctx))
		}
	}
	return nil
}

// Stop ends the manager's work. Connections stay as they are: they belong to their
// clients, and whoever comes after this manager gets them with the next refresh.
func (m *Manager) Stop() {
	m.cancel()
	for _, id := range m.wires.IDs() {
		_ = m.wires.Do(context.Background(), id, func(t *conn.Turn[wire]) error {
			if t.Record != nil {
				t.Record.next.Drop()
			}
			t.Record = nil
			return nil
		})
	}
	m.wires.Close()
	m.locals.close()
	m.cleanup.Stop()
	m.running.Wait()
}

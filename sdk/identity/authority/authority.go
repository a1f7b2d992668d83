// SPDX-License-Identifier: Apache-2.0

// Package authority is the certificate authority of a trust domain, embedded in
// the first node of a mesh.
//
// It makes SVIDs in three ways, and knows for each who asks:
//
//   - parts of its own process get theirs by [Authority.Source];
//   - other processes on its node ask over the Workload API, on a Unix socket,
//     and are named by what the kernel says about them;
//   - agents of other nodes ask over TCP (package nsm.identity.v1), with the
//     SVID they got when they joined with a token.
//
// What must outlive it is in one directory: ca.pem, the keys that everything
// rests on, and join.json, who may join and who has. Everything it signs is
// short-lived, so nothing else needs keeping. While it is down, identities stay
// valid, nodes keep serving them, and new ones wait.
package authority

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/internal/statedir"
	"github.com/openvwire/nsm/internal/undo"
	identityv1 "github.com/openvwire/nsm/proto/nsm/identity/v1"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/entries"
	"github.com/openvwire/nsm/sdk/identity/jointoken"
	"github.com/openvwire/nsm/sdk/identity/workload"
	"github.com/openvwire/nsm/sdk/nserr"
)

const (
	defaultTTL      = time.Hour
	defaultAgentTTL = 24 * time.Hour
	minTTL          = time.Minute
)

// Config says what an authority is.
type Config struct {
	TrustDomain string // its name; "" = identity.DefaultTrustDomain
	Node        string // name of the node that this runs on; required
	StateDir    string // directory for ca.pem and join.json, of this process alone; required

	// Socket is where local processes get identities, a URL such as
	// identity.DefaultSocket; "" = nowhere.
	Socket string

	// ListenOn is where nodes join, a URL such as tcp://:5007; "" = no node can join.
	ListenOn string

	// Advertise is how nodes reach ListenOn, host:port each, at most 16, best
	// first; nil = the addresses of this machine.
	Advertise []string

	// Registry is the URL of the domain's registry, which nodes that join are
	// told; "" = port 5002 of this machine.
	Registry string

	Entries  string        // file that names workloads (package entries); "" = none
	TTL      time.Duration // life of an SVID, at least a minute; 0 = 1 h
	AgentTTL time.Duration // life of a node's own SVID, hence how long a node may be away; 0 = 24 h
	Logger   *slog.Logger  // nil = slog.Default()
}

// Authority is a running authority. Close it after the sources it gave out.
type Authority struct {
	td            spiffeid.TrustDomain
	node          string
	ttl, agentTTL time.Duration
	entries       entries.List
	registry      string // as nodes are told
	log           *slog.Logger

	issuer    *issuer
	ledger    *ledger
	limiter   limiter
	watchers  watchers
	listener  net.Listener // nil if no node can join
	advertise []string

	closing sync.Once
	close   undo.Stack // everything to stop, in order of its start
}

// New starts an authority: when it returns, everything it serves is served. It
// fails with nserr.StateDir, nserr.BadFlag or nserr.AddressInUse.
func New(ctx context.Context, c Config) (*Authority, error) {
	for _, ttl := range []time.Duration{c.TTL, c.AgentTTL} {
		if ttl != 0 && ttl < minTTL {
			return nil, nserr.BadFlag.Errorf("a lifetime of %v for identities is shorter than %v", ttl, minTTL)
		}
	}
	return start(ctx, c)
}

// start is New for tests too, in which identities live for seconds.
func start(ctx context.Context, c Config) (_ *Authority, err error) {
	a, err := configure(c)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	dir, err := statedir.Open(c.StateDir)
	if err != nil {
		return nil, err
	}
	a.close.Add(func(context.Context) error { return dir.Close() })
	if a.issuer, err = openIssuer(dir, a.td, a.log, time.Now()); err != nil {
		return nil, err
	}
	if a.ledger, err = openLedger(dir); err != nil {
		return nil, err
	}
	a.close.Go(a.issuer.keepRotating)
	if c.ListenOn != "" {
		if err = a.serveNodes(ctx, c.ListenOn, c.Advertise); err != nil {
			return nil, err
		}
	}
	if c.Socket != "" {
		server, err := workload.Listen(ctx, workload.Config{
			Socket: c.Socket, Provider: a, Logger: a.log,
			Also: func(r grpc.ServiceRegistrar) { identityv1.RegisterAdminServer(r, admin{authority: a}) },
		})
		if err != nil {
			return nil, err
		}
		a.close.Add(func(context.Context) error { return server.Close() })
	}
	return a, nil
}

// configure reads the configuration before anything is touched.
func configure(c Config) (*Authority, error) {
	a := &Authority{node: c.Node, ttl: c.TTL, agentTTL: c.AgentTTL, log: c.Logger}
	if a.log == nil {
		a.log = slog.Default()
	}
	if a.ttl == 0 {
		a.ttl = defaultTTL
	}
	if a.agentTTL == 0 {
		a.agentTTL = defaultAgentTTL
	}
	name := c.TrustDomain
	if name == "" {
		name = identity.DefaultTrustDomain
	}
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return nil, nserr.BadFlag.Errorf("trust domain %q: %w", name, err)
	}
	a.td = td
	if a.registry, err = registryForNodes(c.Registry); err != nil {
		return nil, err
	}
	if err := jointoken.CheckNode(c.Node); err != nil {
		return nil, err
	}
	if c.StateDir == "" {
		return nil, nserr.BadFlag.Errorf("the authority needs a state directory")
	}
	if c.Entries != "" {
		data, err := os.ReadFile(c.Entries)
		if err != nil {
			return nil, nserr.BadFlag.Errorf("entries: %w", err)
		}
		if a.entries, err = entries.Parse(c.Entries, data); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Close stops serving and waits until everything has ended. It is idempotent.
func (a *Authority) Close() (err error) {
	a.closing.Do(func() { err = a.close.Run(context.Background()) })
	return err
}

// TrustDomain returns the domain that this is the authority of.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.td }

// ListenAddr returns where nodes join, nil if they cannot.
func (a *Authority) ListenAddr() net.Addr {
	if a.listener == nil {
		return nil
	}
	return a.listener.Addr()
}

// Source returns an identity for a part of this process, whose path is often
// /node/<node>/<part>. The caller closes it.
func (a *Authority) Source(ctx context.Context, path string) (identity.Source, error) {
	id, err := spiffeid.FromPath(a.td, path)
	if err != nil || path == "" {
		return nil, nserr.BadFlag.Errorf("path %q of a SPIFFE ID: %w", path, err)
	}
	mint := func(context.Context) (*x509svid.SVID, error) { return a.issuer.mint(id, a.ttl) }
	return identity.Keep(ctx, mint, a.issuer.bundles, a.log)
}

// SVID implements workload.Provider.
func (a *Authority) SVID(_ context.Context, c workload.Caller) (*x509svid.SVID, error) {
	id, err := a.name(entries.Workload{Node: a.node, UID: c.UID, GID: c.GID, Exe: c.Exe})
	if err != nil {
		return nil, err
	}
	return a.issuer.mint(id, a.ttl)
}

// Bundles implements workload.Provider.
func (a *Authority) Bundles() *identity.Bundles { return a.issuer.bundles }

// name returns who a workload is: what the first fitting entry says, else its
// user on its node.
func (a *Authority) name(w entries.Workload) (spiffeid.ID, error) {
	if path, ok := a.entries.Match(w); ok {
		return spiffeid.FromPath(a.td, path)
	}
	return identity.UserID(a.td, w.Node, w.UID)
}

// SPDX-License-Identifier: Apache-2.0

// Package agent is what a node that has joined a trust domain runs in place of
// an authority: it serves the same Workload API to local processes, and has
// their SVIDs signed by the authority.
//
//	         one token, once
//	┌ node b ───────────────────────┐   TLS    ┌ node a ────┐
//	│ process ─ unix ─▶ agent ──────┼─────────▶│ authority  │
//	│          SVID,     its own    │ requests │            │
//	│          key       SVID, 24 h │ (no keys)│ CA key     │
//	└───────────────────────────────┘          └────────────┘
//
// Keys are made here and never leave the node. The agent's own SVID lives for a
// day and is kept, with what to trust, in agent.json; so a node that was away
// for less than that needs no new token. What it has got it goes on serving
// while the authority is away.
package agent

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/openvwire/nsm/internal/backoff"
	"github.com/openvwire/nsm/internal/statedir"
	"github.com/openvwire/nsm/internal/undo"
	identityv1 "github.com/openvwire/nsm/proto/nsm/identity/v1"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/jointoken"
	"github.com/openvwire/nsm/sdk/identity/workload"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

const (
	// callTimeout limits one call to the authority.
	callTimeout = 10 * time.Second

	// connectTimeout limits one attempt to connect to one of its addresses.
	connectTimeout = 3 * time.Second

	// defaultRegistry is where the registry is if the authority does not say.
	defaultRegistry = "tcp://:5002"
)

// retry spaces attempts to reach the authority.
var retry = backoff.Policy{Min: 100 * time.Millisecond, Max: 15 * time.Second}

// Config says what an agent is.
type Config struct {
	Node     string // name of this node; required
	StateDir string // directory for agent.json, of this process alone; required

	// Token is what 'nsm token create' printed. It is needed until the node has
	// joined. After that, one of the same authority says where that is now, and
	// one of another authority lets the node join that.
	Token string

	// Socket is where local processes get identities, a URL such as
	// identity.DefaultSocket; "" = nowhere.
	Socket string

	Logger *slog.Logger // nil = slog.Default()
}

// Agent is a running agent. Close it after the sources it gave out.
type Agent struct {
	node   string
	td     spiffeid.TrustDomain
	log    *slog.Logger
	own    ownSVID // of /node/<node>/agent
	trust  *identity.Bundles
	client identityv1.AuthorityClient
	cache  cache

	addresses []string               // of the authority
	registry  atomic.Pointer[string] // URL, as of the authority's last answer; nil before
	stranger  atomic.Pointer[error]  // why whoever answered last there is not the authority; nil if it is

	closing sync.Once
	close   undo.Stack // everything to stop, in order of its start
}

// New starts an agent. A node that has not joined joins first: that waits for
// the authority as long as ctx allows. It fails with nserr.BadJoinToken,
// nserr.NoIdentity (a token is needed), nserr.NameOwned, nserr.PeerDown,
// nserr.StateDir, nserr.BadFlag or nserr.AddressInUse.
func New(ctx context.Context, c Config) (_ *Agent, err error) {
	a := &Agent{node: c.Node, log: c.Logger}
	if a.log == nil {
		a.log = slog.Default()
	}
	if err := jointoken.CheckNode(c.Node); err != nil {
		return nil, err
	}
	if c.StateDir == "" {
		return nil, nserr.BadFlag.Errorf("the agent needs a state directory")
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
	membership, err := a.membership(ctx, dir, c.Token)
	if err != nil {
		return nil, err
	}
	if err := a.start(dir, membership); err != nil {
		return nil, err
	}
	if c.Socket != "" {
		server, err := workload.Listen(ctx, workload.Config{Socket: c.Socket, Provider: a, Logger: a.log})
		if err != nil {
			return nil, err
		}
		a.close.Add(func(context.Context) error { return server.Close() })
	}
	return a, nil
}

// start goes on from being a member of the domain: it keeps the node's own SVID
// and the bundles fresh, and stored.
func (a *Agent) start(dir *statedir.Dir, m membership) error {
	a.td = m.svid.ID.TrustDomain()
	a.trust = identity.NewBundles(m.bundles.Bundles()...)
	a.own.Store(m.svid)
	a.addresses = m.addresses
	conn, err := dial(m.addresses, memberTLS{credentials.NewTLS(a.tlsConfig()), a.tlsConfig})
	if err != nil {
		return err
	}
	a.client = identityv1.NewAuthorityClient(conn)
	a.close.Add(func(context.Context) error { return conn.Close() })

	a.close.Go(a.watchBundles)
	a.close.Go(func(ctx context.Context) {
		path := m.svid.ID.Path()
		renew := func(ctx context.Context) (*x509svid.SVID, error) { return a.issuePath(ctx, path) }
		_ = identity.Follow(ctx, m.svid, renew, a.trust, a.log, func(svid *x509svid.SVID, set *x509bundle.Set) error {
			a.own.Store(svid)
			m = m.with(svid, set)
			if err := save(dir, m); err != nil {
				a.log.Error("cannot store the identity of this node", "error", err)
			}
			return nil
		}) // ends with ctx alone
	})
	return nil
}

// memberTLS makes the configuration anew for each handshake.
type memberTLS struct {
	credentials.TransportCredentials
	config func() *tls.Config
}

func (m memberTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(m.config()).ClientHandshake(ctx, authority, conn)
}

func (m memberTLS) Clone() credentials.TransportCredentials { return m }

// tlsConfig proves that the agent is one, asks for a certificate of the newest CA
// that it knows, and notes whether it was the authority that it met.
func (a *Agent) tlsConfig() *tls.Config {
	config := tlsconfig.MTLSClientConfig(&a.own, a.trust, tlsconfig.AuthorizeID(identity.AuthorityID(a.td)))
	config.MinVersion = tls.VersionTLS13
	if bundle, err := a.trust.GetX509BundleForTrustDomain(a.td); err == nil {
		if ca := newest(bundle.X509Authorities(), time.Now()); ca != nil {
			config.ServerName = identity.CAServerName(sha256.Sum256(ca.Raw))
		}
	}
	verify := config.VerifyPeerCertificate
	config.VerifyPeerCertificate = func(raw [][]byte, chains [][]*x509.Certificate) error {
		err := verify(raw, chains)
		if err != nil {
			a.stranger.Store(&err)
		} else {
			a.stranger.Store(nil)
		}
		return err
	}
	return config
}

// newest returns the newest of the CAs by the clock of this node, which may be
// behind that of the authority; nil if none is valid yet.
func newest(cas []*x509.Certificate, now time.Time) (best *x509.Certificate) {
	for _, ca := range cas {
		if !now.Before(ca.NotBefore) && (best == nil || ca.NotBefore.After(best.NotBefore)) {
			best = ca
		}
	}
	return best
}

// Close stops serving and waits until everything has ended. It is idempotent.
func (a *Agent) Close() (err error) {
	a.closing.Do(func() { err = a.close.Run(context.Background()) })
	return err
}

// TrustDomain returns the domain that the node is a member of.
func (a *Agent) TrustDomain() spiffeid.TrustDomain { return a.td }

// Source returns an identity for a part of this node, whose path is below
// /node/<node>/. It waits for the authority as long as ctx allows. The caller
// closes it.
func (a *Agent) Source(ctx context.Context, path string) (identity.Source, error) {
	mint := func(ctx context.Context) (*x509svid.SVID, error) { return a.issuePath(ctx, path) }
	return identity.Keep(ctx, mint, a.trust, a.log)
}

// SVID implements workload.Provider.
func (a *Agent) SVID(ctx context.Context, c workload.Caller) (*x509svid.SVID, error) {
	w := subject{c.UID, c.GID, c.Exe}
	if svid := a.cache.fresh(w, time.Now()); svid != nil {
		return svid, nil
	}
	svid, err := a.issue(ctx, &identityv1.IssueRequest{Subject: &identityv1.IssueRequest_Workload{
		Workload: &identityv1.Workload{Uid: w.uid, Gid: w.gid, Exe: w.exe},
	}})
	now := time.Now()
	if err == nil {
		a.cache.put(w, svid, now)
		return svid, nil
	}
	if old := a.cache.valid(w, now); old != nil {
		a.log.Warn("the authority does not renew an identity, serving the old one", "spiffe_id", old.ID, "error", err)
		return old, nil
	}
	return nil, err
}

// Bundles implements workload.Provider.
func (a *Agent) Bundles() *identity.Bundles { return a.trust }

func (a *Agent) issuePath(ctx context.Context, path string) (*x509svid.SVID, error) {
	return a.issue(ctx, &identityv1.IssueRequest{Subject: &identityv1.IssueRequest_Path{Path: path}})
}

// issue makes a key and has the authority sign its SVID.
func (a *Agent) issue(ctx context.Context, r *identityv1.IssueRequest) (*x509svid.SVID, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	key, err := identity.NewKey()
	if err != nil {
		return nil, nserr.Internal.Errorf("make a key: %w", err)
	}
	if r.Csr, err = identity.NewRequest(key); err != nil {
		return nil, nserr.Internal.Errorf("request: %w", err)
	}
	var from peer.Peer
	answer, err := a.client.Issue(ctx, r, grpc.Peer(&from))
	if err != nil {
		return nil, a.explain(rpc.DecodeError(err))
	}
	registry, err := registryURL(answer.GetRegistry(), from.Addr)
	if err != nil {
		return nil, err
	}
	a.registry.Store(&registry)
	return identity.NewSVID(key, answer.GetChain())
}

// Registry returns the URL of the domain's registry as the authority has told it
// with the last identity; "" before the first.
func (a *Agent) Registry() string {
	if url := a.registry.Load(); url != nil {
		return *url
	}
	return ""
}

// registryURL completes what an authority at an address says about the registry.
func registryURL(told string, at net.Addr) (string, error) {
	if told == "" {
		told = defaultRegistry
	}
	host, port, err := net.SplitHostPort(strings.TrimPrefix(told, "tcp://"))
	if _, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil {
		return "", nserr.BadAnswer.Errorf("the authority says that the registry is at %q", told)
	}
	if host == "" {
		tcp, ok := at.(*net.TCPAddr)
		if !ok {
			return "", nserr.BadAnswer.Errorf("the authority says that the registry is beside it, but is itself at %v", at)
		}
		host = tcp.AddrPort().Addr().Unmap().String()
	}
	return "tcp://" + net.JoinHostPort(host, port), nil
}

// explain says why the authority is not there, if somebody else is in its place.
func (a *Agent) explain(err error) error {
	stranger := a.stranger.Load()
	if stranger == nil || !errors.Is(err, nserr.PeerDown) && !errors.Is(err, nserr.TimedOut) {
		return err
	}
	return nserr.PeerDown.Errorf("whoever answers at %s is not the authority that this node has joined: %w", strings.Join(a.addresses, ", "), *stranger).
		WithFix("if the authority was set up anew, make a token with 'nsm token create' on its node and start this one with --join")
}

// watchBundles follows what the authority trusts until ctx ends.
func (a *Agent) watchBundles(ctx context.Context) {
	for attempt := 0; ctx.Err() == nil; attempt++ {
		stream, err := a.client.WatchBundles(ctx, &identityv1.WatchBundlesRequest{})
		for err == nil {
			var message *identityv1.Bundles
			if message, err = stream.Recv(); err == nil {
				attempt = 0
				err = a.trustBundles(message)
			}
		}
		a.log.Debug("watch of bundles has ended, trying again", "error", rpc.DecodeError(err))
		if retry.Wait(ctx, attempt) != nil {
			return
		}
	}
}

// trustBundles takes over what the authority sent, which always includes its
// own domain: without that the node could never talk to it again.
func (a *Agent) trustBundles(message *identityv1.Bundles) error {
	set, err := identity.ParseBundles(message.GetBundles())
	if err != nil {
		return err
	}
	if own, ok := set.Get(a.td); !ok || own.Empty() {
		return nserr.BadAnswer.Errorf("the authority sent no bundle of its own domain %s", a.td.Name())
	}
	if a.trust.Replace(set) {
		a.log.Info("trusted bundles have changed", "count", set.Len())
	}
	return nil
}

// ownSVID is the node's SVID as the TLS handshake wants it.
type ownSVID struct{ atomic.Pointer[x509svid.SVID] }

// GetX509SVID implements x509svid.Source.
func (o *ownSVID) GetX509SVID() (*x509svid.SVID, error) { return identity.Unexpired(o.Load()) }

// dial returns a connection to the authority, at the first of its addresses
// that answers.
func dial(addresses []string, creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
	at := manual.NewBuilderWithScheme("authority")
	var state resolver.State
	for _, address := range addresses {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address})
	}
	at.InitialState(state)
	conn, err := grpc.NewClient("authority:///nodes",
		grpc.WithResolvers(at),
		grpc.WithNoProxy(),
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: connectTimeout,
			Backoff:           grpcbackoff.Config{BaseDelay: retry.Min, Multiplier: 1.6, Jitter: 0.2, MaxDelay: retry.Max},
		}),
	)
	if err != nil {
		return nil, nserr.Internal.Errorf("connection to the authority: %w", err)
	}
	return conn, nil
}

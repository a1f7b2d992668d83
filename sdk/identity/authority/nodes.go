// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	identityv1 "github.com/openvwire/nsm/proto/nsm/identity/v1"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/entries"
	"github.com/openvwire/nsm/sdk/identity/jointoken"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// serveNodes starts the service for other nodes.
func (a *Authority) serveNodes(ctx context.Context, listenOn string, advertise []string) error {
	listener, err := rpc.Listen(ctx, listenOn)
	if errors.Is(err, nserr.AddressInUse) {
		return nserr.From(err).WithFix("stop the other process, or choose another --authority-listen-on")
	}
	if err != nil {
		return err
	}
	if advertise == nil {
		advertise = addresses(listener.Addr())
	}
	if err := (jointoken.Token{TrustDomain: a.td, Addresses: advertise}).Validate(); err != nil {
		listener.Close()
		return nserr.BadFlag.Errorf("addresses to advertise: %w", err)
	}
	a.listener, a.advertise = listener, advertise

	server := rpc.NewServer(rpc.ServerOptions{
		Credentials: credentials.NewTLS(a.serverTLS()),
		Logger:      a.log,
		Options: []grpc.ServerOption{
			grpc.WaitForHandlers(true),
			grpc.MaxConcurrentStreams(64),
			// Agents connect anew, so that none goes on with an old certificate.
			grpc.KeepaliveParams(keepalive.ServerParameters{
				Time: 10 * time.Second, Timeout: 3 * time.Second,
				MaxConnectionAge: a.agentTTL / 4, MaxConnectionAgeGrace: 10 * time.Second,
			}),
		},
	})
	identityv1.RegisterAuthorityServer(server, nodes{authority: a})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); err != nil {
			a.log.Error("the service for nodes has stopped", "address", rpc.URL(listener.Addr()), "error", err)
		}
	}()
	a.close.Add(func(context.Context) error {
		server.Stop()
		<-done
		return nil
	})
	return nil
}

// serverTLS shows the authority's SVID together with its CA, which a joining
// node recognises by the hash in its token. While there are several CAs it is of
// the one that the node asks for. Clients need no certificate to join; one that is
// shown must be valid.
func (a *Authority) serverTLS() *tls.Config {
	id := identity.AuthorityID(a.td)
	verify := tlsconfig.VerifyPeerCertificate(a.issuer.bundles, tlsconfig.AuthorizeMemberOf(a.td))
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return a.issuer.server(id, hello.ServerName, a.ttl, time.Now())
		},
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true, // a resumed session would skip the verification
		VerifyPeerCertificate: func(raw [][]byte, chains [][]*x509.Certificate) error {
			if len(raw) == 0 {
				return nil
			}
			return verify(raw, chains)
		},
	}
}

// addresses returns how other machines may reach a listener: by its own
// address, or by those of this machine if it listens on all.
func addresses(listener net.Addr) []string {
	at, ok := listener.(*net.TCPAddr)
	if !ok {
		return nil
	}
	port := at.AddrPort().Port()
	if !at.IP.IsUnspecified() {
		return []string{at.String()}
	}
	var out []string
	own, _ := net.InterfaceAddrs() // none is the same as an error
	for _, addr := range own {
		p, err := netip.ParsePrefix(addr.String())
		if err == nil && p.Addr().IsGlobalUnicast() && len(out) < 8 {
			out = append(out, netip.AddrPortFrom(p.Addr(), port).String())
		}
	}
	if len(out) == 0 {
		return []string{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port).String()}
	}
	return out
}

// registryForNodes returns the URL of the registry as other nodes are told: without
// the host if that is this machine's own business. They cannot use a Unix socket.
func registryForNodes(text string) (string, error) {
	if text == "" || strings.HasPrefix(text, "unix://") {
		return "", nil
	}
	host, port, err := net.SplitHostPort(strings.TrimPrefix(text, "tcp://"))
	if _, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil {
		return "", nserr.BadFlag.Errorf("URL of the registry %q is not tcp://host:port", text)
	}
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && (ip.IsUnspecified() || ip.IsLoopback()) {
		host = ""
	}
	return "tcp://" + net.JoinHostPort(host, port), nil
}

// nodes serves nsm.identity.v1.Authority.
type nodes struct {
	identityv1.UnimplementedAuthorityServer
	authority *Authority
}

func (n nodes) Join(ctx context.Context, r *identityv1.JoinRequest) (*identityv1.JoinResponse, error) {
	a, now := n.authority, time.Now()
	host := remote(ctx)
	if a.limiter.blocked(host, now) {
		return nil, nserr.Busy.Errorf("too many failed attempts to join from %s", host).
			WithFix("wait a minute, then use a new token")
	}
	chain, err := a.join(r, now)
	if err != nil {
		a.limiter.failed(host, now)
		a.log.Warn("node may not join", "node", r.GetNode(), "address", host, "error", err)
		return nil, err
	}
	a.log.Info("node has joined", "node", r.GetNode(), "address", host)
	return &identityv1.JoinResponse{Chain: chain, Bundles: a.bundles()}, nil
}

// join checks a request in full before it uses up the token.
func (a *Authority) join(r *identityv1.JoinRequest, now time.Time) ([][]byte, error) {
	key, err := identity.ParseRequest(r.GetCsr())
	if err != nil {
		return nil, err
	}
	if err := jointoken.CheckNode(r.GetNode()); err != nil {
		return nil, err
	}
	if r.GetNode() == a.node {
		return nil, nserr.NameOwned.Errorf("%s is the node of the authority itself", a.node).
			WithFix("choose another name for this node")
	}
	id, err := identity.NodeID(a.td, r.GetNode(), "agent")
	if err != nil {
		return nil, nserr.BadFlag.Errorf("node %q: %w", r.GetNode(), err)
	}
	encoded, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	if err := a.ledger.redeem(r.GetSecret(), r.GetNode(), encoded, now); err != nil {
		return nil, err
	}
	return a.issuer.sign(id, key, a.agentTTL)
}

func (n nodes) Issue(ctx context.Context, r *identityv1.IssueRequest) (*identityv1.IssueResponse, error) {
	a := n.authority
	node, err := a.agent(ctx)
	if err != nil {
		return nil, err
	}
	key, err := identity.ParseRequest(r.GetCsr())
	if err != nil {
		return nil, err
	}
	id, ttl, err := a.subject(node, r)
	if err != nil {
		return nil, err
	}
	chain, err := a.issuer.sign(id, key, ttl)
	if err != nil {
		return nil, err
	}
	return &identityv1.IssueResponse{Chain: chain, Registry: a.registry}, nil
}

// subject returns the ID that a node's agent gets for a request, if any.
func (a *Authority) subject(node string, r *identityv1.IssueRequest) (spiffeid.ID, time.Duration, error) {
	switch s := r.GetSubject().(type) {
	case *identityv1.IssueRequest_Path:
		own := "/node/" + node + "/"
		if !strings.HasPrefix(s.Path, own) {
			return spiffeid.ID{}, 0, nserr.NotAllowed.Errorf("the agent of node %s may not get an identity for %q", node, s.Path).
				WithFix("ask for a path below %s", own)
		}
		id, err := spiffeid.FromPath(a.td, s.Path)
		if err != nil {
			return spiffeid.ID{}, 0, nserr.BadRequest.Errorf("path %q of a SPIFFE ID: %w", s.Path, err)
		}
		if s.Path == own+"agent" {
			return id, a.agentTTL, nil
		}
		return id, a.ttl, nil
	case *identityv1.IssueRequest_Workload:
		w := s.Workload
		id, err := a.name(entries.Workload{Node: node, UID: w.GetUid(), GID: w.GetGid(), Exe: w.GetExe()})
		return id, a.ttl, err
	}
	return spiffeid.ID{}, 0, nserr.BadRequest.Errorf("neither a path nor a workload to issue an identity for")
}

func (n nodes) WatchBundles(_ *identityv1.WatchBundlesRequest, stream grpc.ServerStreamingServer[identityv1.Bundles]) error {
	a := n.authority
	node, err := a.agent(stream.Context())
	if err != nil {
		return err
	}
	defer a.watchers.add(node)()
	for {
		_, changed := a.issuer.bundles.Current()
		if err := stream.Send(a.bundles()); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nserr.Stopping.Errorf("watch has ended: %w", stream.Context().Err())
		}
	}
}

func (a *Authority) bundles() *identityv1.Bundles {
	set, _ := a.issuer.bundles.Current()
	return &identityv1.Bundles{Bundles: identity.MarshalBundles(set)}
}

// agent returns the node whose agent makes the call. The handshake has verified
// the certificate, but a connection may outlive it.
func (a *Authority) agent(ctx context.Context) (node string, err error) {
	caller := rpc.CallerFrom(ctx)
	if caller.Cert == nil {
		return "", nserr.NoIdentity.Errorf("no certificate").WithFix("join the domain first, with a token")
	}
	if time.Now().After(caller.Cert.NotAfter) {
		return "", nserr.NoIdentity.Errorf("the certificate of %s has expired", caller.ID).WithFix("connect again, or join again")
	}
	id, err := spiffeid.FromString(caller.ID)
	if err != nil {
		return "", nserr.NoIdentity.Errorf("certificate: %w", err)
	}
	segments := strings.Split(id.Path(), "/") // "", "node", name, "agent"
	if !id.MemberOf(a.td) || len(segments) != 4 || segments[1] != "node" || segments[3] != "agent" {
		return "", nserr.NotAllowed.Errorf("%s is not the agent of a node", id)
	}
	return segments[2], nil
}

// watchers is which nodes learn at once what to trust. The zero value is ready.
type watchers struct {
	mu    sync.Mutex
	nodes map[string]int // streams of each
}

// add counts a node in until the function that it returns is called.
func (w *watchers) add(node string) (remove func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.nodes == nil {
		w.nodes = make(map[string]int)
	}
	w.nodes[node]++
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.nodes[node]--; w.nodes[node] == 0 {
			delete(w.nodes, node)
		}
	}
}

// absent returns those of the nodes that do not watch, sorted.
func (w *watchers) absent(nodes []string) (absent []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, node := range nodes {
		if w.nodes[node] == 0 {
			absent = append(absent, node)
		}
	}
	slices.Sort(absent)
	return absent
}

// remote returns the address of the caller, the zero Addr if it has none.
func remote(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}
	}
	at, ok := p.Addr.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return at.AddrPort().Addr()
}

func encodeKey(key *ecdsa.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, nserr.BadRequest.Errorf("certificate request: %w", err)
	}
	return der, nil
}

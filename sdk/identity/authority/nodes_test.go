// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	identityv1 "github.com/openvwire/nsm/proto/nsm/identity/v1"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/agent"
	"github.com/openvwire/nsm/sdk/identity/jointoken"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// agentConfig is config for an agent of node b.
func agentConfig(t *testing.T, token string) agent.Config {
	t.Helper()
	c := config(t)
	return agent.Config{Node: "b", StateDir: c.StateDir, Socket: c.Socket, Token: token, Logger: quiet}
}

func runAgent(t *testing.T, c agent.Config) *agent.Agent {
	t.Helper()
	b, err := agent.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func createToken(t *testing.T, a *Authority, node string) string {
	t.Helper()
	token, err := a.CreateToken(t.Context(), node, 0)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// process ─ agent b ─ TLS ─ authority a ─ process
func TestJoin(t *testing.T) {
	ac := config(t)
	a := run(t, ac)
	token, expires, err := RequestToken(t.Context(), ac.Socket, "b", 0)
	if err != nil {
		t.Fatal(err)
	}
	if life := time.Until(expires); life < 14*time.Minute || life > 15*time.Minute {
		t.Errorf("the token is valid for %v", life)
	}
	bc := agentConfig(t, token)
	b := runAgent(t, bc)
	onA, onB := open(t, ac.Socket), open(t, bc.Socket)
	if got, want := idOf(t, onB), fmt.Sprintf("spiffe://nsm.local/node/b/uid/%d", os.Getuid()); got != want {
		t.Errorf("the ID on b is %s, want %s", got, want)
	}
	handshake(t, onA, onB)
	handshake(t, onB, onA)
	if got, want := nobody(t, "open", bc.Socket), "spiffe://nsm.local/node/b/uid/65534 <nil>"; got != want {
		t.Errorf("uid 65534 on b is %q, want %q", got, want)
	}
	if got := nobody(t, "token", bc.Socket); !strings.Contains(got, "not on this node") {
		t.Errorf("token create on b: %q", got)
	}
	part, err := b.Source(t.Context(), "/node/b/manager")
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	handshake(t, part, onA)
	if b.TrustDomain() != a.TrustDomain() {
		t.Errorf("b is in %s", b.TrustDomain())
	}
	if err := a.issuer.rotate(time.Now().Add(caRenew)); err != nil {
		t.Fatal(err)
	}
	<-onB.Updated()
	if bundle, err := onB.GetX509BundleForTrustDomain(td); err != nil || len(bundle.X509Authorities()) != 2 {
		t.Errorf("the new CA has not reached b: %v", err)
	}
}

func TestJoinRefused(t *testing.T) {
	ac := config(t)
	a, stranger := run(t, ac), run(t, config(t))
	used := createToken(t, a, "")
	runAgent(t, agentConfig(t, used))
	expired, err := a.CreateToken(t.Context(), "", time.Nanosecond)
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(*jointoken.Token)) string {
		token, err := jointoken.Parse(createToken(t, a, ""))
		if err != nil {
			t.Fatal(err)
		}
		f(&token)
		return token.Encode()
	}
	for name, tt := range map[string]struct {
		node, token string
		want        *nserr.Reason
		says        string
	}{
		"no token":            {"c", "", nserr.NoIdentity, "nsm token create"},
		"mistyped":            {"c", used[:40], nserr.BadJoinToken, "mistyped"},
		"used":                {"c", used, nserr.BadJoinToken, "has been used"},
		"expired":             {"c", expired, nserr.BadJoinToken, "has expired"},
		"unknown":             {"c", change(func(t *jointoken.Token) { t.Secret[0] ^= 1 }), nserr.BadJoinToken, "unknown"},
		"for another node":    {"c", createToken(t, a, "d"), nserr.BadJoinToken, "for node d"},
		"name taken":          {"b", createToken(t, a, ""), nserr.NameOwned, "b has joined before"},
		"name of authority":   {"a", createToken(t, a, ""), nserr.NameOwned, "authority itself"},
		"bad name":            {"c/agent", createToken(t, a, ""), nserr.BadFlag, "name of a node"},
		"stranger at address": {"c", change(func(t *jointoken.Token) { t.Addresses = stranger.advertise }), nserr.BadJoinToken, "is not the authority"},
		"other domain":        {"c", change(func(t *jointoken.Token) { t.TrustDomain = spiffeid.RequireTrustDomainFromString("x") }), nserr.BadJoinToken, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a.limiter = limiter{}
			c := agentConfig(t, tt.token)
			c.Node = tt.node
			b, err := agent.New(t.Context(), c)
			if err == nil {
				b.Close()
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("New() = %v, want %v with %q", err, tt.want, tt.says)
			}
		})
	}
	t.Run("nobody at address", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		token := change(func(t *jointoken.Token) { t.Addresses = []string{"127.0.0.1:1"} })
		if _, err := agent.New(ctx, agentConfig(t, token)); !errors.Is(err, nserr.PeerDown) {
			t.Errorf("New() = %v", err)
		}
	})
}

// A node learns with its identities where the registry is.
func TestRegistryForNodes(t *testing.T) {
	for _, tt := range []struct {
		configured, want string
	}{
		{"", "tcp://127.0.0.1:5002"},
		{"tcp://:5777", "tcp://127.0.0.1:5777"},
		{"tcp://[::]:5777", "tcp://127.0.0.1:5777"},
		{"tcp://localhost:5777", "tcp://127.0.0.1:5777"},
		{"tcp://127.0.0.1:5777", "tcp://127.0.0.1:5777"},
		{"tcp://10.0.0.9:5777", "tcp://10.0.0.9:5777"},
		{"10.0.0.9:5777", "tcp://10.0.0.9:5777"},
		{"unix:///run/registry.sock", "tcp://127.0.0.1:5002"},
	} {
		c := config(t)
		c.Registry = tt.configured
		b := runAgent(t, agentConfig(t, createToken(t, run(t, c), "")))
		if got := b.Registry(); got != "" {
			t.Errorf("before it has asked: %s", got)
		}
		part, err := b.Source(t.Context(), "/node/b/registry")
		if err != nil {
			t.Fatal(err)
		}
		part.Close()
		if got := b.Registry(); got != tt.want {
			t.Errorf("the registry at %q is told as %q, want %q", tt.configured, got, tt.want)
		}
	}
}

// Joins go on at the second address when nobody is at the first.
func TestJoinSecondAddress(t *testing.T) {
	c := config(t)
	a := run(t, c)
	token, err := jointoken.Parse(createToken(t, a, ""))
	if err != nil {
		t.Fatal(err)
	}
	token.Addresses = append([]string{"127.0.0.1:1"}, token.Addresses...)
	runAgent(t, agentConfig(t, token.Encode()))
}

func TestJoinIsLimited(t *testing.T) {
	a := run(t, config(t))
	client := identityv1.NewAuthorityClient(dialNodes(t, a, nil))
	_, csr := newRequest(t)
	request := &identityv1.JoinRequest{Secret: make([]byte, 16), Node: "b", Csr: csr}
	for range maxFails {
		if _, err := client.Join(t.Context(), request); !errors.Is(rpc.DecodeError(err), nserr.BadJoinToken) {
			t.Fatal(err)
		}
	}
	if _, err := client.Join(t.Context(), request); !errors.Is(rpc.DecodeError(err), nserr.Busy) {
		t.Errorf("the next attempt: %v", err)
	}
}

// The same key may use its token again, in case the answer was lost.
func TestJoinAnswerLost(t *testing.T) {
	a := run(t, config(t))
	token, err := jointoken.Parse(createToken(t, a, ""))
	if err != nil {
		t.Fatal(err)
	}
	client := identityv1.NewAuthorityClient(dialNodes(t, a, nil))
	_, csr := newRequest(t)
	for range 2 {
		if _, err := client.Join(t.Context(), &identityv1.JoinRequest{Secret: token.Secret[:], Node: "b", Csr: csr}); err != nil {
			t.Fatal(err)
		}
	}
	_, other := newRequest(t)
	_, err = client.Join(t.Context(), &identityv1.JoinRequest{Secret: token.Secret[:], Node: "b", Csr: other})
	if !errors.Is(rpc.DecodeError(err), nserr.BadJoinToken) {
		t.Errorf("another key: %v", err)
	}
}

func newRequest(t *testing.T) (key any, csr []byte) {
	t.Helper()
	k, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if csr, err = identity.NewRequest(k); err != nil {
		t.Fatal(err)
	}
	return k, csr
}

// dialNodes connects to the service for nodes with an SVID, or none.
func dialNodes(t *testing.T, a *Authority, svid x509svid.Source) *grpc.ClientConn {
	t.Helper()
	config := tlsconfig.TLSClientConfig(a.issuer.bundles, tlsconfig.AuthorizeID(identity.AuthorityID(a.td)))
	if svid != nil {
		config.GetClientCertificate = tlsconfig.GetClientCertificate(svid)
	}
	conn, err := rpc.Dial("tcp://"+a.ListenAddr().String(), rpc.DialOptions{Credentials: credentials.NewTLS(config)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// The node's own SVID is renewed, several times over its life, on connections
// that are renewed as well.
func TestAgentRenewsItself(t *testing.T) {
	t.Parallel() // it mostly waits
	c := config(t)
	c.AgentTTL, c.TTL = 2*time.Second, time.Second
	a := run(t, c)
	bc := agentConfig(t, createToken(t, a, ""))
	b := runAgent(t, bc)
	joined := time.Now()
	part, err := b.Source(t.Context(), "/node/b/manager")
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	workload := open(t, bc.Socket)
	for time.Since(joined) < 2*c.AgentTTL {
		<-part.Updated()
		<-workload.Updated()
	}
	handshakeOfShortLived(t, part, workload)
}

// While the authority is away the node keeps what it has, restarts included;
// when it is back, the node goes on without a new token.
func TestAuthorityAway(t *testing.T) {
	ac := config(t)
	a := run(t, ac)
	ac.ListenOn = "tcp://" + a.ListenAddr().String()
	bc := agentConfig(t, createToken(t, a, ""))
	b := runAgent(t, bc)
	before := idOf(t, open(t, bc.Socket))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if again := idOf(t, open(t, bc.Socket)); again != before {
		t.Errorf("%s is now %s", before, again)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	bc.Token = ""
	b = runAgent(t, bc)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := b.Source(ctx, "/node/b/manager"); !errors.Is(err, nserr.PeerDown) {
		t.Errorf("Source() without authority = %v", err)
	}
	run(t, ac)
	part, err := b.Source(t.Context(), "/node/b/manager")
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	handshake(t, part, open(t, bc.Socket))
}

// The authority was set up anew: a new token leads there, although both domains
// have the same name, and nothing of the old membership stands in its way.
func TestJoinAnotherOfTheSameName(t *testing.T) {
	first := run(t, config(t))
	bc := agentConfig(t, createToken(t, first, "b"))
	runAgent(t, bc).Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	ac := config(t)
	second := run(t, ac)
	bc.Token = createToken(t, second, "")
	b := runAgent(t, bc)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	part, err := b.Source(ctx, "/node/b/manager")
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	handshake(t, part, open(t, ac.Socket))
}

// The authority has moved: a new token, of the same CA, says where to.
func TestTokenTellsNewAddress(t *testing.T) {
	ac := config(t)
	a := run(t, ac)
	old := "tcp://" + a.ListenAddr().String()
	bc := agentConfig(t, createToken(t, a, "b"))
	joined := bc.Token
	runAgent(t, bc).Close()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	taken, err := rpc.Listen(t.Context(), old) // by somebody who is not the authority
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	a = run(t, ac)
	for _, step := range []struct{ name, token string }{
		{"with the new token", createToken(t, a, "b")},
		{"without a token", ""},
		{"with the token of old", joined},
	} {
		bc.Token = step.token
		b := runAgent(t, bc)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		part, err := b.Source(ctx, "/node/b/manager")
		cancel()
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		part.Close()
		b.Close()
	}
}

// A node that finds somebody else where its authority was waits, since that may
// be a mistake of the network, and says what it sees and what helps.
func TestStrangerAtTheAddress(t *testing.T) {
	ac := config(t)
	a := run(t, ac)
	ac.ListenOn = "tcp://" + a.ListenAddr().String()
	bc := agentConfig(t, createToken(t, a, ""))
	runAgent(t, bc).Close()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	anew := config(t)
	anew.ListenOn = ac.ListenOn
	run(t, anew)
	var log strings.Builder
	bc.Token, bc.Logger = "", newLog(&log)
	b := runAgent(t, bc)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := b.Source(ctx, "/node/b/manager")
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if !errors.Is(err, nserr.PeerDown) {
		t.Errorf("Source() = %v", err)
	}
	for _, text := range []string{err.Error(), log.String()} {
		if !strings.Contains(text, "is not the authority that this node has joined") || !strings.Contains(text, "--join") {
			t.Errorf("nobody understands %q", text)
		}
	}
	if n := strings.Count(log.String(), "waiting for an identity"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}

// A serving workload outlives the authority: an old SVID is served as long as
// it is valid, also to a stream that comes later.
func TestAgentServesOldSVID(t *testing.T) {
	t.Parallel() // it mostly waits
	ac := config(t)
	ac.TTL = 8 * time.Second
	a := run(t, ac)
	bc := agentConfig(t, createToken(t, a, ""))
	runAgent(t, bc)
	source := open(t, bc.Socket)
	old, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	<-time.After(2500 * time.Millisecond) // past the first quarter, when the cache would be asked no more
	if svid, err := open(t, bc.Socket).GetX509SVID(); err != nil || !svid.Certificates[0].Equal(old.Certificates[0]) {
		t.Errorf("a later stream got %v, %v", svid, err)
	}
}

// Tokens and their use survive a restart of the authority.
func TestTokensSurviveRestart(t *testing.T) {
	ac := config(t)
	a := run(t, ac)
	ac.ListenOn = "tcp://" + a.ListenAddr().String()
	used, kept := createToken(t, a, ""), createToken(t, a, "")
	runAgent(t, agentConfig(t, used))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	run(t, ac)
	c := agentConfig(t, used)
	c.Node = "c"
	if _, err := agent.New(t.Context(), c); !errors.Is(err, nserr.BadJoinToken) {
		t.Errorf("a used token after a restart: %v", err)
	}
	c.Token = kept
	runAgent(t, c)
}

func TestCreateTokenRefused(t *testing.T) {
	ac := config(t)
	a := run(t, ac)
	alone := config(t)
	alone.ListenOn = ""
	deaf := run(t, alone)
	for name, tt := range map[string]struct {
		a    *Authority
		node string
		ttl  time.Duration
		want *nserr.Reason
	}{
		"too long":            {a, "", 25 * time.Hour, nserr.BadFlag},
		"negative":            {a, "", -1, nserr.BadFlag},
		"bad node":            {a, "a/b", 0, nserr.BadFlag},
		"node of authority":   {a, "a", 0, nserr.NameOwned},
		"nobody could use it": {deaf, "", 0, nserr.BadFlag},
	} {
		if _, err := tt.a.CreateToken(t.Context(), tt.node, tt.ttl); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if deaf.ListenAddr() != nil {
		t.Error("an authority that does not listen has an address")
	}
	for _, ttl := range []time.Duration{-time.Second, 1 << 62, 25 * time.Hour} {
		if _, _, err := RequestToken(t.Context(), ac.Socket, "", ttl); !errors.Is(err, nserr.BadFlag) {
			t.Errorf("RequestToken for %v: %v", ttl, err)
		}
	}
	// The service for nodes has no Admin.
	_, err := identityv1.NewAdminClient(dialNodes(t, a, nil)).CreateToken(t.Context(), &identityv1.CreateTokenRequest{})
	if err == nil || !strings.Contains(err.Error(), "unknown service") {
		t.Errorf("CreateToken over TCP: %v", err)
	}
}

func TestAdvertisedAddresses(t *testing.T) {
	c := config(t)
	c.ListenOn = "tcp://:0"
	a := run(t, c)
	token, err := jointoken.Parse(createToken(t, a, ""))
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(token.Addresses, func(s string) bool { return strings.HasPrefix(s, "[::]") || strings.HasPrefix(s, "0.0.0.0") }) {
		t.Errorf("nobody reaches %v", token.Addresses)
	}
	if _, err := tls.Dial("tcp", token.Addresses[0], &tls.Config{InsecureSkipVerify: true}); err != nil && !strings.Contains(err.Error(), "ALPN") {
		t.Errorf("%s: %v", token.Addresses[0], err)
	}
}

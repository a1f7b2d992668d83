// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/identity/agent"
	"github.com/openvwire/nsm/sdk/nserr"
)

func TestWorkloadAPI(t *testing.T) {
	c := config(t)
	a := run(t, c)
	source := open(t, c.Socket)
	svid, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("spiffe://nsm.local/node/a/uid/%d", os.Getuid()); svid.ID.String() != want {
		t.Errorf("ID = %s, want %s", svid.ID, want)
	}
	leaf := svid.Certificates[0]
	if life := time.Until(leaf.NotAfter); life > time.Hour || life < time.Hour-time.Minute {
		t.Errorf("it lives for %v, want 1h", life)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, source); err != nil {
		t.Error(err)
	}

	part, err := a.Source(t.Context(), "/node/a/manager")
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	handshake(t, source, part)
	handshake(t, part, source)

	bundles, err := workloadapi.FetchX509Bundles(t.Context(), workloadapi.WithAddr(c.Socket))
	if err != nil || bundles.Len() != 1 || !bundles.Has(a.TrustDomain()) {
		t.Errorf("FetchX509Bundles() = %v, %v", bundles, err)
	}
	_, err = workloadapi.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "x"}, workloadapi.WithAddr(c.Socket))
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("FetchJWTSVID() = %v, want Unimplemented", err)
	}
}

// handshake makes a mutual TLS connection in memory.
func handshake(t *testing.T, client, server identity.Source) {
	t.Helper()
	if err := tryHandshake(t, client, server); err != nil {
		t.Errorf("handshake of %s with %s: %v", idOf(t, client), idOf(t, server), err)
	}
}

// handshakeOfShortLived is handshake for SVIDs that live for seconds: on a busy
// machine they may have expired before they are looked at, and are renewed.
func handshakeOfShortLived(t *testing.T, client, server identity.Source) {
	t.Helper()
	err := tryHandshake(t, client, server)
	for limit := time.After(30 * time.Second); err != nil; err = tryHandshake(t, client, server) {
		select {
		case <-client.Updated():
		case <-server.Updated():
		case <-limit:
			t.Fatal(err)
		}
	}
}

func tryHandshake(t *testing.T, client, server identity.Source) error {
	near, far := net.Pipe()
	c := tls.Client(near, tlsconfig.MTLSClientConfig(client, client, tlsconfig.AuthorizeAny()))
	s := tls.Server(far, tlsconfig.MTLSServerConfig(server, server, tlsconfig.AuthorizeAny()))
	done := make(chan error, 1)
	go func() {
		done <- s.HandshakeContext(t.Context())
		far.Close()
	}()
	err := c.HandshakeContext(t.Context())
	near.Close()
	return errors.Join(err, <-done)
}

func TestSecurityHeader(t *testing.T) {
	c := config(t)
	run(t, c)
	conn, err := grpc.NewClient(c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := workload.NewSpiffeWorkloadAPIClient(conn)
	for _, value := range []string{"", "false"} {
		ctx := t.Context()
		if value != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", value)
		}
		svids, err := client.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err == nil {
			_, err = svids.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("FetchX509SVID with header %q: %v", value, err)
		}
		bundles, err := client.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
		if err == nil {
			_, err = bundles.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("FetchX509Bundles with header %q: %v", value, err)
		}
	}
}

func TestOtherUser(t *testing.T) {
	c := config(t)
	run(t, c)
	if got, want := nobody(t, "open", c.Socket), "spiffe://nsm.local/node/a/uid/65534 <nil>"; got != want {
		t.Errorf("uid 65534 is %q, want %q", got, want)
	}
	if got := nobody(t, "token", c.Socket); !strings.Contains(got, "NSM-2008") {
		t.Errorf("uid 65534 makes a join token: %q", got)
	}
}

func TestEntries(t *testing.T) {
	c := config(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c.Entries = filepath.Join(t.TempDir(), "identities.yaml")
	text := fmt.Sprintf(`
- path: /elsewhere
  selectors: {uid: %[1]d, node: b}
- path: /other-program
  selectors: {uid: %[1]d, exe: /bin/false}
- path: /test
  selectors: {uid: %[1]d, gid: %[2]d, exe: %[3]s}
`, os.Getuid(), os.Getgid(), exe)
	if err := os.WriteFile(c.Entries, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, c)
	if got, want := idOf(t, open(t, c.Socket)), "spiffe://nsm.local/test"; got != want {
		t.Errorf("ID = %s, want %s", got, want)
	}
	if got, want := nobody(t, "open", c.Socket), "spiffe://nsm.local/node/a/uid/65534 <nil>"; got != want {
		t.Errorf("uid 65534 with the same program is %q, want %q", got, want)
	}
}

// A stream gets new SVIDs before the old expire, and they work at once.
func TestRotation(t *testing.T) {
	t.Parallel() // it mostly waits
	c := config(t)
	c.TTL = 8 * time.Second
	a := run(t, c)
	source := open(t, c.Socket)
	part, err := a.Source(t.Context(), "/node/a/manager")
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	first, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []identity.Source{source, part} {
		<-s.Updated()
	}
	second, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if time.Now().After(first.Certificates[0].NotAfter) {
		t.Error("the new SVID came after the old had expired")
	}
	if second.Certificates[0].Equal(first.Certificates[0]) || second.ID != first.ID {
		t.Errorf("%s was renewed as %s", first.ID, second.ID)
	}
	handshake(t, source, part)
}

// A new CA reaches those who trust the old one.
func TestNewCAReachesStreams(t *testing.T) {
	c := config(t)
	a := run(t, c)
	source := open(t, c.Socket)
	before, _ := source.GetX509BundleForTrustDomain(a.TrustDomain())
	if err := a.issuer.rotate(time.Now().Add(caRenew)); err != nil {
		t.Fatal(err)
	}
	<-source.Updated()
	after, err := source.GetX509BundleForTrustDomain(a.TrustDomain())
	if err != nil || len(before.X509Authorities()) != 1 || len(after.X509Authorities()) != 2 {
		t.Errorf("%d authorities became %d, want 2: %v", len(before.X509Authorities()), len(after.X509Authorities()), err)
	}
}

// The clients of an authority that restarts trust it as before.
func TestRestartKeepsCA(t *testing.T) {
	c := config(t)
	a := run(t, c)
	source := open(t, c.Socket)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := os.Stat(strings.TrimPrefix(c.Socket, "unix://")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	again := run(t, c)
	part, err := again.Source(t.Context(), "/node/a/manager")
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	handshake(t, source, part)
	<-source.Updated() // the stream is back as well
}

func TestOpenWaits(t *testing.T) {
	c := config(t)
	opened := make(chan error, 1)
	go func() {
		source, err := identity.Open(t.Context(), identity.Config{Address: c.Socket, Logger: quiet})
		if err == nil {
			err = source.Close()
		}
		opened <- err
	}()
	run(t, c)
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestOpenFails(t *testing.T) {
	var log strings.Builder
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///nonexistent/sock")
	_, err := identity.Open(ctx, identity.Config{Logger: newLog(&log)})
	if !errors.Is(err, nserr.NoIdentity) || !strings.Contains(err.Error(), "/nonexistent/sock") || !strings.Contains(err.Error(), "nsm up") {
		t.Errorf("Open() = %v", err)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "waiting for an identity") {
		t.Errorf("%d log lines, want one: %s", n, log.String())
	}
	for _, address := range []string{"/run/sock", "unix:", "http://x", "tcp://host:1", "%"} {
		if _, err := identity.Open(t.Context(), identity.Config{Address: address}); !errors.Is(err, nserr.BadFlag) {
			t.Errorf("Open(%q) = %v", address, err)
		}
	}
}

func TestRefusedConfig(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "identities.yaml")
	if err := os.WriteFile(broken, []byte("- path: /a\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	running := config(t)
	run(t, running)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, tt := range map[string]struct {
		change func(*Config)
		want   *nserr.Reason
	}{
		"no node":            {func(c *Config) { c.Node = "" }, nserr.BadFlag},
		"node with a slash":  {func(c *Config) { c.Node = "a/b" }, nserr.BadFlag},
		"bad trust domain":   {func(c *Config) { c.TrustDomain = "A B" }, nserr.BadFlag},
		"no state directory": {func(c *Config) { c.StateDir = "" }, nserr.BadFlag},
		"short life":         {func(c *Config) { c.TTL = 59 * time.Second }, nserr.BadFlag},
		"negative life":      {func(c *Config) { c.AgentTTL = -time.Hour }, nserr.BadFlag},
		"entries missing":    {func(c *Config) { c.Entries = "/nonexistent" }, nserr.BadFlag},
		"entries broken":     {func(c *Config) { c.Entries = broken }, nserr.BadFlag},
		"bad advertisement":  {func(c *Config) { c.Advertise = []string{"nowhere"} }, nserr.BadFlag},
		"no advertisement":   {func(c *Config) { c.Advertise = []string{} }, nserr.BadFlag},
		"bad listen URL":     {func(c *Config) { c.ListenOn = "udp://:1" }, nserr.BadFlag},
		"bad registry":       {func(c *Config) { c.Registry = "tcp://10.0.0.1" }, nserr.BadFlag},
		"port taken":         {func(c *Config) { c.ListenOn = "tcp://" + taken.Addr().String() }, nserr.AddressInUse},
		"socket taken":       {func(c *Config) { c.Socket = running.Socket }, nserr.AddressInUse},
		"state in use":       {func(c *Config) { c.StateDir = running.StateDir }, nserr.StateDir},
	} {
		t.Run(name, func(t *testing.T) {
			c := config(t)
			tt.change(&c)
			if a, err := New(t.Context(), c); !errors.Is(err, tt.want) {
				if err == nil {
					a.Close()
				}
				t.Errorf("New() = %v, want %v", err, tt.want)
			}
		})
	}
	a := run(t, config(t))
	for _, path := range []string{"", "manager", "/a//b", "/../a"} {
		if _, err := a.Source(t.Context(), path); !errors.Is(err, nserr.BadFlag) {
			t.Errorf("Source(%q) = %v", path, err)
		}
	}
}

func TestDamagedState(t *testing.T) {
	c := config(t)
	a := run(t, c)
	a.Close()
	good, err := os.ReadFile(filepath.Join(c.StateDir, CAFile))
	if err != nil {
		t.Fatal(err)
	}
	otherC := config(t)
	run(t, otherC)
	other, err := os.ReadFile(filepath.Join(otherC.StateDir, CAFile))
	if err != nil {
		t.Fatal(err)
	}
	cert, key, _ := strings.Cut(string(good), "-----BEGIN PRIVATE")
	_, otherKey, _ := strings.Cut(string(other), "-----BEGIN PRIVATE")
	for name, write := range map[string]func(ca, join string) error{
		"CA empty":       func(ca, _ string) error { return os.WriteFile(ca, nil, 0o600) },
		"CA garbage":     func(ca, _ string) error { return os.WriteFile(ca, []byte("hello"), 0o600) },
		"CA cut":         func(ca, _ string) error { return os.WriteFile(ca, good[:len(good)-40], 0o600) },
		"CA without key": func(ca, _ string) error { return os.WriteFile(ca, []byte(cert), 0o600) },
		"CA with tail":   func(ca, _ string) error { return os.WriteFile(ca, append(good[:len(good):len(good)], "x"...), 0o600) },
		"other key":      func(ca, _ string) error { return os.WriteFile(ca, []byte(cert+"-----BEGIN PRIVATE"+otherKey), 0o600) },
		"broken key": func(ca, _ string) error {
			return os.WriteFile(ca, []byte(cert+"-----BEGIN PRIVATE"+strings.Replace(key, "M", "N", 1)), 0o600)
		},
		"CA readable":     func(ca, _ string) error { return errors.Join(os.WriteFile(ca, good, 0o644), os.Chmod(ca, 0o644)) },
		"CA a directory":  func(ca, _ string) error { return errors.Join(os.Remove(ca), os.Mkdir(ca, 0o700)) },
		"ledger garbage":  func(_, join string) error { return os.WriteFile(join, []byte("{"), 0o600) },
		"ledger of other": func(_, join string) error { return os.WriteFile(join, []byte(`{"nodes":null,"users":[]}`), 0o600) },
		"ledger of a later version": func(_, join string) error {
			return os.WriteFile(join, []byte(`{"version":2,"nodes":[]}`), 0o600)
		},
		"ledger empty": func(_, join string) error { return os.WriteFile(join, nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			c := config(t)
			run(t, c).Close()
			if err := write(filepath.Join(c.StateDir, CAFile), filepath.Join(c.StateDir, ledgerFile)); err != nil {
				t.Fatal(err)
			}
			if a, err := start(t.Context(), c); !errors.Is(err, nserr.StateDir) {
				if err == nil {
					a.Close()
				}
				t.Errorf("start() = %v", err)
			}
		})
	}
	later := string(good) + "-----BEGIN NSM SCHEDULE-----\neHl6\n-----END NSM SCHEDULE-----\n"
	if err := os.WriteFile(filepath.Join(c.StateDir, CAFile), []byte(later), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := start(t.Context(), c); !errors.Is(err, nserr.StateDir) || !strings.Contains(err.Error(), "later version") || strings.Contains(err.Error(), "delete") {
		t.Errorf("start with the CA of a later version: %v", err)
	}
	if data, err := os.ReadFile(filepath.Join(c.StateDir, CAFile)); err != nil || string(data) != later {
		t.Errorf("the CA of a later version has changed: %v", err)
	}
	if err := os.WriteFile(filepath.Join(c.StateDir, CAFile), good, 0o600); err != nil {
		t.Fatal(err)
	}
	c.TrustDomain = "other.example"
	if _, err := start(t.Context(), c); !errors.Is(err, nserr.StateDir) || !strings.Contains(err.Error(), "other.example") {
		t.Errorf("start with the CA of another domain: %v", err)
	}
}

// A directory or a file that one may not read is not taken for one that is empty.
func TestUnreadableState(t *testing.T) {
	c := config(t)
	run(t, c).Close()
	if got := nobody(t, "authority", c.StateDir); !strings.Contains(got, "NSM-4010") || !strings.Contains(got, "permission denied") {
		t.Errorf("a directory of root is %q to uid 65534", got)
	}
	if got := nobody(t, "agent", c.StateDir); !strings.Contains(got, "NSM-4010") || !strings.Contains(got, "permission denied") {
		t.Errorf("it is %q to its agent", got)
	}
	if err := os.WriteFile(filepath.Join(c.StateDir, agent.StateFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{c.StateDir, filepath.Join(c.StateDir, "lock")} { // all but the files of interest
		if err := os.Chown(path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadFile(filepath.Join(c.StateDir, CAFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"authority", "agent"} {
		if got := nobody(t, what, c.StateDir); !strings.Contains(got, "NSM-4007") || !strings.Contains(got, "permission denied") {
			t.Errorf("files of root are %q to the %s of uid 65534", got, what)
		}
	}
	if after, err := os.ReadFile(filepath.Join(c.StateDir, CAFile)); err != nil || string(after) != string(before) {
		t.Errorf("the CA has changed: %v", err)
	}
}

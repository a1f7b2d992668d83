// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/emptypb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority is a trust domain of its own.
type authority struct {
	domain spiffeid.TrustDomain
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, domain string) *authority {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString(domain)
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		URIs:                  []*url.URL{td.ID().URL()},
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	return &authority{td, sign(t, template, template, key.Public(), key), key}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, template, parent *x509.Certificate, pub any, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// source is an SVID that can be rotated and the authorities that are trusted.
type source struct {
	current atomic.Pointer[x509svid.SVID]
	*x509bundle.Set
}

func (s *source) GetX509SVID() (*x509svid.SVID, error) { return s.current.Load(), nil }

func (s *source) identity() Identity {
	svid := s.current.Load()
	return Identity{svid.ID.String(), svid.Certificates[0]}
}

// issue makes an SVID with a new key.
func (a *authority) issue(t testing.TB, path string) *x509svid.SVID {
	t.Helper()
	id := spiffeid.RequireFromPath(a.domain, path)
	key := newKey(t)
	cert := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2),
		URIs:         []*url.URL{id.URL()},
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, key.Public(), a.key)
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}
}

// source returns an identity that trusts the given authorities beside its own.
func (a *authority) source(t testing.TB, path string, others ...*authority) *source {
	t.Helper()
	s := &source{Set: x509bundle.NewSet()}
	s.current.Store(a.issue(t, path))
	for _, other := range append(others, a) {
		s.Add(x509bundle.FromX509Authorities(other.domain, []*x509.Certificate{other.cert}))
	}
	return s
}

// service answers what its functions say.
type service struct {
	networkservice.UnimplementedNetworkServiceServer
	networkservice.UnimplementedMonitorConnectionServer
	request func(context.Context, *networkservice.NetworkServiceRequest) (*networkservice.Connection, error)
	monitor func(*networkservice.MonitorScopeSelector, networkservice.MonitorConnection_MonitorConnectionsServer) error
}

func (s *service) Request(ctx context.Context, r *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	return s.request(ctx, r)
}

func (s *service) Close(ctx context.Context, c *networkservice.Connection) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (s *service) MonitorConnections(r *networkservice.MonitorScopeSelector, stream networkservice.MonitorConnection_MonitorConnectionsServer) error {
	return s.monitor(r, stream)
}

func (s *service) register(r grpc.ServiceRegistrar) {
	RegisterNetworkService(r, s)
	RegisterMonitorConnection(r, s)
}

// listenURLs are the two kinds of address, fresh for each test.
func listenURLs(t testing.TB) map[string]string {
	return map[string]string{
		"unix": "unix://" + filepath.Join(t.TempDir(), "s.sock"),
		"tcp":  "tcp://127.0.0.1:0",
	}
}

func unixURL(t testing.TB) string { return listenURLs(t)["unix"] }

// serve runs a server until the test ends and returns its URL.
func serve(t testing.TB, rawURL string, o ServerOptions, register func(grpc.ServiceRegistrar)) string {
	t.Helper()
	l, err := Listen(t.Context(), rawURL)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(o)
	register(s)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return URL(l.Addr())
}

func dial(t testing.TB, rawURL string, o DialOptions) *grpc.ClientConn {
	t.Helper()
	cc, err := Dial(rawURL, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

// transports are the ways over which both sides of a test may talk.
func transports(t testing.TB) map[string]func() (client, server credentials.TransportCredentials) {
	a := newAuthority(t, "example.org")
	return map[string]func() (client, server credentials.TransportCredentials){
		"plaintext": Plaintext,
		"tls": func() (client, server credentials.TransportCredentials) {
			client, _ = MutualTLS(a.source(t, "/client"), a.source(t, "/client"))
			_, server = MutualTLS(a.source(t, "/server"), a.source(t, "/server"))
			return client, server
		},
	}
}

// tempFile is a new file as peers send theirs, opened with O_PATH.
func tempFile(t testing.TB, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func inodeURL(t testing.TB, f *os.File) string {
	t.Helper()
	u, err := InodeURL(f)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// openFiles counts the descriptors of this process that refer to path.
// openFiles counts the descriptors of a file, when there are as many as wanted or time is over:
// who sends one closes its own when the peer may have it already.
func openFiles(t testing.TB, path string, want int) (n int) {
	t.Helper()
	for range 100_000 { // some seconds, of any clock
		if n = openNow(t, path); n == want {
			break
		}
		runtime.Gosched()
	}
	return n
}

func openNow(t testing.TB, path string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && target == path {
			n++
		}
	}
	return n
}

func socketPair(t testing.TB) (*net.UnixConn, *net.UnixConn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "pair.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a.(*net.UnixConn), b.(*net.UnixConn)
}

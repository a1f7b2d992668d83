// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	spiffe "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/nstest"
)

// spire is a SPIFFE Workload API of somebody else. It shares nothing with ours but the
// standard: certificates are signed by an intermediate CA, names say nothing of nodes,
// a workload has two SVIDs, of which the first counts. Each identity has a socket.
type spire struct {
	t             *testing.T
	dir           string
	root, issuing *x509.Certificate
	key           *ecdsa.PrivateKey // of issuing

	mu      sync.Mutex
	serial  int64
	renewed chan struct{} // closed when everybody gets another SVID; guarded by mu
}

const foreignDomain = "spiffe://example.org"

func newSPIRE(t *testing.T) *spire {
	t.Helper()
	s := &spire{t: t, dir: t.TempDir(), renewed: make(chan struct{})}
	domain := &url.URL{Scheme: "spiffe", Host: "example.org"}
	ca := func(name string, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key := s.newKey()
		template := &x509.Certificate{
			Subject: pkix.Name{Country: []string{"US"}, Organization: []string{"SPIFFE"}, CommonName: name}, URIs: []*url.URL{domain},
			NotBefore: time.Now().Add(-10 * time.Second), NotAfter: time.Now().Add(24 * time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
		if parent == nil {
			parent, by = template, key
		}
		return s.sign(template, parent, &key.PublicKey, by), key
	}
	root, rootKey := ca("root", nil, nil)
	s.root = root
	s.issuing, s.key = ca("issuing", root, rootKey)
	return s
}

func (s *spire) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Error(err)
	}
	return key
}

func (s *spire) sign(template, parent *x509.Certificate, key *ecdsa.PublicKey, by *ecdsa.PrivateKey) *x509.Certificate {
	s.mu.Lock()
	s.serial++
	template.SerialNumber = big.NewInt(s.serial)
	s.mu.Unlock()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, by)
	if err != nil {
		s.t.Error(err)
		return nil
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Error(err)
	}
	return cert
}

// svid makes an SVID with a new key.
func (s *spire) svid(path string) *spiffe.X509SVID {
	id, key := foreignDomain+path, s.newKey()
	leaf := s.sign(&x509.Certificate{
		Subject: pkix.Name{Country: []string{"US"}, Organization: []string{"SPIRE"}},
		URIs:    []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: path}}, DNSNames: []string{"workload.example.org"},
		NotBefore: time.Now().Add(-10 * time.Second), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyAgreement,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, s.issuing, &key.PublicKey, s.key)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Error(err)
	}
	return &spiffe.X509SVID{SpiffeId: id, X509Svid: append(leaf.Raw, s.issuing.Raw...), X509SvidKey: private, Bundle: s.root.Raw}
}

// serve returns the URL of a socket where everybody is the identity with a path.
func (s *spire) serve(path string) string {
	s.t.Helper()
	socket := filepath.Join(s.dir, strings.ReplaceAll(path[1:], "/", "-"))
	l, err := net.Listen("unix", socket)
	if err != nil {
		s.t.Fatal(err)
	}
	server := grpc.NewServer()
	spiffe.RegisterSpiffeWorkloadAPIServer(server, spireSocket{spire: s, path: path})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	s.t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	return "unix://" + socket
}

// renew gives everybody another SVID.
func (s *spire) renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.renewed)
	s.renewed = make(chan struct{})
}

type spireSocket struct {
	spiffe.UnimplementedSpiffeWorkloadAPIServer
	*spire
	path string
}

func (s spireSocket) FetchX509SVID(_ *spiffe.X509SVIDRequest, stream grpc.ServerStreamingServer[spiffe.X509SVIDResponse]) error {
	if md, _ := metadata.FromIncomingContext(stream.Context()); len(md.Get("workload.spiffe.io")) != 1 {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	for {
		s.mu.Lock()
		renewed := s.renewed
		s.mu.Unlock()
		first, second := s.svid(s.path), s.svid(s.path+"/other")
		first.Hint, second.Hint = "internal", "external"
		if err := stream.Send(&spiffe.X509SVIDResponse{Svids: []*spiffe.X509SVID{first, second}}); err != nil {
			return err
		}
		select {
		case <-renewed:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

// nsmAs runs a command on a node with the identity of a socket.
func nsmAs(t *testing.T, ns *lab.NetNS, socket string, args ...string) (string, error) {
	t.Helper()
	return ns.Run(t.Context(), append([]string{"/usr/bin/env", "SPIFFE_ENDPOINT_SOCKET=" + socket, nstest.Program()}, args...)...)
}

// startAs starts 'nsm up' with the identity of a socket.
func startAs(t *testing.T, n *lab.Node, socket string, args ...string) (*lab.Process, error) {
	t.Helper()
	all := append([]string{"/usr/bin/env", "SPIFFE_ENDPOINT_SOCKET=" + socket, nstest.Program(), "up",
		"--state-dir", filepath.Join(n.Dir, "up"), "--tunnel-ip", n.Addr.String(), "--manager-listen-on", fmt.Sprintf("tcp://%s:5001", n.Addr)}, args...)
	return n.NetNS.Start(t.Context(), "forwarder  listens on ", all...)
}

// upAs is startAs for the rest of the test.
func upAs(t *testing.T, n *lab.Node, socket string, args ...string) *lab.Process {
	t.Helper()
	p, err := startAs(t, n, socket, args...)
	if err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, p)
	return p
}

// A mesh whose identities are of any SPIFFE Workload API: nodes that trust each other
// by name, wires between them, identities that are renewed under them, and nobody who
// sees more than his own.
func TestForeignWorkloadAPI(t *testing.T) {
	l := newLab(t, lab.Config{})
	a, b := l.Node("a"), l.Node("b")
	s := newSPIRE(t)
	nodeB := s.serve("/nsm/b")
	db, web, mallory := s.serve("/ns/default/sa/db"), s.serve("/ns/default/sa/web"), s.serve("/ns/default/sa/mallory")
	registry := fmt.Sprintf("tcp://%s:5002", a.Addr)

	// Names say nothing of nodes, so node a has to be told who is one.
	up := upAs(t, a, s.serve("/nsm/a"), "--node", "a-"+l.Name, "--registry-listen-on", registry, "--managers", foreignDomain+"/nsm/*")
	if text := up.Output(); !strings.Contains(text, "as "+foreignDomain+"/nsm/a\n") {
		t.Errorf("it does not say who it is:\n%s", text)
	}
	server, near, far := workload(t, a, "db"), workload(t, a, "app"), workload(t, b, "web")
	serve(t, server, "db", "--cidr", "10.60.0.0/24", "--payload", "ETHERNET", "--spiffe-endpoint-socket", db)
	_, err := startAs(t, b, s.serve("/strangers/b"), "--node", "stranger-"+l.Name, "--registry-url", registry)
	if exitCode(err) != 4 || !strings.Contains(err.Error(), "NSM-2008") || !strings.Contains(err.Error(), "--managers at the registry") {
		t.Errorf("a node that nobody has named: %v", err)
	}
	upAs(t, b, nodeB, "--node", "b-"+l.Name, "--registry-url", registry)
	unchanged(t, l)

	args := []string{"kernel://db/nsm-1", "--max-token-lifetime", "10s", "--wait", "15s", "--spiffe-endpoint-socket", web}
	onA, onB := connect(t, near, append(args, "--name", "near")...), connect(t, far, append(args, "--name", "far")...)
	for from, w := range map[*lab.NetNS]wire{near: onA, far: onB} {
		if err := transfer(from, server, w.far[0]); err != nil {
			t.Error(err)
		}
	}

	for who, want := range map[string]int{web: 1, mallory: 0, nodeB: 1} {
		out, err := nsmAs(t, b.NetNS, who, "get", "wires", "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		var wires struct{ Items []any }
		if err := json.Unmarshal([]byte(out), &wires); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if len(wires.Items) != want {
			t.Errorf("%s sees %d wires, want %d: %s", filepath.Base(who), len(wires.Items), want, out)
		}
	}

	stop := ping(t, far, onB.far[0], server)
	expires := func() (at time.Time) {
		out, err := nsmAs(t, b.NetNS, web, "get", "wires", "far-0", "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		var w wireInfo
		if err := json.Unmarshal([]byte(out), &w); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return w.Expires
	}
	for range 3 {
		s.renew()
		before := expires()
		eventually(t, 30*time.Second, func() error {
			if now := expires(); !now.After(before) {
				return fmt.Errorf("it expires at %v still", now)
			}
			return nil
		})
	}
	if sent, lost := stop(); lost > 0 || sent == 0 {
		t.Errorf("%d of %d datagrams are lost", lost, sent)
	}
}

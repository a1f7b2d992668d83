// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/internal/nstest"
	"github.com/openvwire/nsm/internal/statedir"
	"github.com/openvwire/nsm/nsmgr"
	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/registry/memory"
	"github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// realRow is a row of the table of bad input that takes a real socket or disk.
type realRow struct {
	name string
	want *nserr.Reason
	do   func(t *testing.T, dir string) error
}

var badReal = []realRow{
	{"oversized message", nserr.TooLarge, func(t *testing.T, dir string) error {
		s := serveReal(t, dir)
		err := s.request(t, func(req *networkservice.NetworkServiceRequest) {
			req.Connection.Labels = map[string]string{"big": strings.Repeat("x", 1<<20)}
		})
		if n := s.endpoint.Len(); n != 0 {
			t.Errorf("%d connections", n)
		}
		return err
	}},
	{"oversized label", nserr.BadRequest, func(t *testing.T, dir string) error {
		return serveReal(t, dir).request(t, func(req *networkservice.NetworkServiceRequest) {
			req.Connection.Labels = map[string]string{"big": strings.Repeat("x", 256<<10)}
		})
	}},
	{"oversized Request at a manager", nserr.TooLarge, func(t *testing.T, dir string) error {
		m := manageReal(t, dir)
		defer m.close()
		request := func(label string) error {
			_, err := networkservice.NewNetworkServiceClient(m.cc).Request(t.Context(), &networkservice.NetworkServiceRequest{Connection: &networkservice.Connection{
				Id: "1", NetworkService: "db", Path: &networkservice.Path{PathSegments: []*networkservice.PathSegment{{Name: "web", Id: "1"}}},
				Labels: map[string]string{"big": label},
			}})
			return err
		}
		err := request(strings.Repeat("x", 1<<20))
		if again := request("x"); !errors.Is(again, nserr.UnknownService) {
			t.Errorf("another one afterwards: %v", again)
		}
		if u := m.Usage(); u.Wires != 0 {
			t.Errorf("%d connections", u.Wires)
		}
		return err
	}},
	{"oversized registration at a manager", nserr.TooLarge, func(t *testing.T, dir string) error {
		m := manageReal(t, dir)
		defer m.close()
		err := registerReal(t, m.cc, m.registry)
		if u := m.Usage(); u.Endpoints != 1 {
			t.Errorf("%d endpoints, want the good one", u.Endpoints)
		}
		return err
	}},
	{"oversized registration at a registry", nserr.TooLarge, func(t *testing.T, dir string) error {
		r := openReal(t, dir)
		defer r.close()
		cc, stop := dialReal(t, dir, "registry", r.server.Register)
		defer stop()
		return registerReal(t, cc, r)
	}},
	{"oversized query at a registry", nserr.TooLarge, func(t *testing.T, dir string) error {
		r := openReal(t, dir)
		defer r.close()
		cc, stop := dialReal(t, dir, "registry", r.server.Register)
		defer stop()
		find := func(name string) error {
			stream, err := api.NewNetworkServiceRegistryClient(cc).Find(t.Context(), &api.NetworkServiceQuery{NetworkService: &api.NetworkService{Name: name}})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}
		err := find(strings.Repeat("x", 1<<20))
		if again := find("x"); again != io.EOF {
			t.Errorf("another one afterwards: %v", again)
		}
		return err
	}},
	{"port that is taken", nserr.AddressInUse, func(t *testing.T, dir string) error {
		l, err := rpc.Listen(t.Context(), "tcp://127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return listenAgain(t, rpc.URL(l.Addr()))
	}},
	{"two managers on one socket", nserr.AddressInUse, func(t *testing.T, dir string) error {
		url := "unix://" + filepath.Join(dir, "nsm.io.sock")
		l, err := rpc.Listen(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return listenAgain(t, url)
	}},
	{"socket path that is a file", nserr.AddressInUse, func(t *testing.T, dir string) error {
		path := filepath.Join(dir, "nsm.io.sock")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return listenAgain(t, "unix://"+path)
	}},
	{"disk that is full", nserr.StateDir, func(t *testing.T, dir string) error {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Errorf("something is left open in %s: %v", dir, err)
			}
		}()
		r := openReal(t, dir)
		defer r.close()
		fill(t, filepath.Join(dir, "filler"))
		var err error
		for i := 0; err == nil && i < 100; i++ { // the last page of the file has room for some
			if err = r.register(fmt.Sprintf("%0200d", i)); err == nil {
				continue
			}
			if r.knows(fmt.Sprintf("%0200d", i)) {
				t.Error("what could not be written is registered")
			}
		}
		if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
			t.Fatal(err)
		}
		if err := r.register("db"); err != nil {
			t.Errorf("with room again: %v", err)
		}
		return err
	}},
	{"registry file that cannot be read", nserr.StateDir, func(t *testing.T, dir string) error {
		_, err := memory.Open[*api.NetworkService](memory.Config{Path: dir}) // a directory
		return err
	}},
	{"registry file that two processes use", nserr.StateDir, func(t *testing.T, dir string) error {
		r := openReal(t, dir)
		defer r.close()
		_, err := memory.Open[*api.NetworkService](memory.Config{Path: filepath.Join(dir, "services.log")})
		return err
	}},
	{"state directory that is a file", nserr.StateDir, func(t *testing.T, dir string) error {
		path := filepath.Join(dir, "state")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := statedir.Open(path)
		return err
	}},
	{"state directory that others may write to", nserr.StateDir, func(t *testing.T, dir string) error {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		_, err := statedir.Open(dir)
		return err
	}},
	{"state directory that two processes use", nserr.StateDir, func(t *testing.T, dir string) error {
		d, err := statedir.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		_, err = statedir.Open(dir)
		return err
	}},
}

func TestBadInputOnRealSocketsAndDisks(t *testing.T) {
	for _, row := range slices.Concat(badReal, badState) {
		t.Run(row.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "dir") // whose mode TempDir does not depend on
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			open := nstest.Descriptors()
			checkRefused(t, row.do(t, dir), row.want)
			if now := nstest.Descriptors(); len(now) > len(open) {
				t.Errorf("descriptors left: %v, were %v", now, open)
			}
		})
	}
}

func listenAgain(t *testing.T, url string) error {
	t.Helper()
	l, err := rpc.Listen(t.Context(), url)
	if err == nil {
		l.Close()
	}
	return err
}

// real is an endpoint on a real Unix socket with mutual TLS.
type real struct {
	endpoint *endpoint.Server
	client   networkservice.NetworkServiceClient
	close    func()
}

func serveReal(t *testing.T, dir string) *real {
	t.Helper()
	db := &identity{svid: newAuthority(t).issue(t, "db")}
	r := &real{endpoint: endpoint.New("db", endpoint.Chain(), token.NewGenerator(db, TokenLifetime), nil, silent)}
	cc, stop := dialReal(t, dir, "db", r.endpoint.Register)
	r.client = networkservice.NewNetworkServiceClient(cc)
	r.close = func() {
		stop()
		r.endpoint.Stop()
	}
	return r
}

var silent = slog.New(slog.DiscardHandler)

// dialReal serves on a real Unix socket with mutual TLS, and connects.
func dialReal(t *testing.T, dir, name string, register func(grpc.ServiceRegistrar)) (cc *grpc.ClientConn, stop func()) {
	t.Helper()
	a := newAuthority(t)
	bundle := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(TrustDomain), a.certs())
	web, server := &identity{svid: a.issue(t, "web")}, &identity{svid: a.issue(t, name)}
	clientCreds, _ := rpc.MutualTLS(web, bundle)
	_, serverCreds := rpc.MutualTLS(server, bundle)
	url := "unix://" + filepath.Join(dir, name+".sock")
	l, err := rpc.Listen(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.ServerOptions{Credentials: serverCreds, Logger: silent})
	register(s)
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	cc, err = rpc.Dial(url, rpc.DialOptions{Credentials: clientCreds, Tokens: token.NewGenerator(web, TokenLifetime)})
	if err != nil {
		t.Fatal(err)
	}
	return cc, func() {
		_ = cc.Close()
		s.Stop()
		serving.Wait()
	}
}

// realManager is a manager on a real socket, whose registry has files.
type realManager struct {
	*nsmgr.Manager
	cc       *grpc.ClientConn // to it
	registry *realRegistry
	close    func()
}

func manageReal(t *testing.T, dir string) *realManager {
	t.Helper()
	r := openReal(t, dir)
	who := &identity{svid: newAuthority(t).issue(t, "manager")}
	tokens := token.NewGenerator(who, TokenLifetime)
	peers := peer.NewPool(peer.PoolConfig{Name: "manager", Logger: silent}) // there is nobody to dial
	m, err := nsmgr.New(nsmgr.Config{
		Name: "manager", URL: "tcp://192.0.2.1:5001", Tokens: tokens, Peers: peers, Sockets: rpc.NewSockets(), Logger: silent,
		Registry: r.local.Dial(rpc.LocalCaller{Identity: who.local, Tokens: tokens}),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	cc, stop := dialReal(t, dir, "manager", m.Register)
	return &realManager{Manager: m, cc: cc, registry: r, close: func() {
		stop()
		m.Stop()
		peers.Close()
		r.close()
	}}
}

// registerReal registers an endpoint that is too large, and a good one afterwards.
func registerReal(t *testing.T, cc *grpc.ClientConn, r *realRegistry) error {
	t.Helper()
	register := func(label string) error {
		_, err := api.NewNetworkServiceEndpointRegistryClient(cc).Register(regpath.Path{}.ToOutgoing(t.Context()), &api.NetworkServiceEndpoint{
			Name: "db-1", NetworkServiceNames: []string{"db"}, Url: "tcp://192.0.2.2:1",
			NetworkServiceLabels: map[string]*api.NetworkServiceLabels{"db": {Labels: map[string]string{"big": label}}},
		})
		return err
	}
	err := register(strings.Repeat("x", 1<<20))
	for nse := range r.endpoints.Find(t.Context(), nil) {
		t.Errorf("%s is registered", nse.Object.GetName())
	}
	if again := register("x"); again != nil {
		t.Errorf("another one afterwards: %v", again)
	}
	return err
}

// request sends a good request, changed, and closes everything.
func (r *real) request(t *testing.T, change func(*networkservice.NetworkServiceRequest)) error {
	t.Helper()
	defer r.close()
	good := func() *networkservice.NetworkServiceRequest {
		return &networkservice.NetworkServiceRequest{Connection: &networkservice.Connection{
			Id: "1", NetworkService: "db", Path: &networkservice.Path{PathSegments: []*networkservice.PathSegment{{Name: "web", Id: "1"}}},
		}}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req := good()
	change(req)
	_, err := r.client.Request(ctx, req)
	got, goodErr := r.client.Request(ctx, good())
	if goodErr != nil {
		t.Errorf("a good request afterwards: %v", goodErr)
	} else if _, err := r.client.Close(ctx, got); err != nil {
		t.Error(err)
	}
	return err
}

// realRegistry is a registry with files.
type realRegistry struct {
	services  *memory.Store[*api.NetworkService]
	endpoints *memory.Store[*api.NetworkServiceEndpoint]
	server    *registry.Server
	local     *rpc.Local
	client    api.NetworkServiceRegistryClient
	close     func()
}

func openReal(t *testing.T, dir string) *realRegistry {
	t.Helper()
	r := &realRegistry{}
	var err error
	if r.services, err = memory.Open[*api.NetworkService](memory.Config{Path: filepath.Join(dir, "services.log"), Sync: true, Logger: silent}); err != nil {
		t.Fatal(err)
	}
	if r.endpoints, err = memory.Open[*api.NetworkServiceEndpoint](memory.Config{Path: filepath.Join(dir, "endpoints.log"), Logger: silent}); err != nil {
		t.Fatal(err)
	}
	a := newAuthority(t)
	who, operator := &identity{svid: a.issue(t, "registry")}, &identity{svid: a.issue(t, "operator")}
	r.server = registry.New(registry.Config{
		Name: "registry", Tokens: token.NewGenerator(who, TokenLifetime), Services: r.services, Endpoints: r.endpoints, Logger: silent,
		Policy: registry.Strict{MaySpeakFor: func(caller, _ string) bool { return caller == ID("manager") }},
	})
	r.local = rpc.NewLocal(rpc.LocalOptions{Identity: who.local, Logger: silent})
	r.server.Register(r.local)
	r.client = api.NewNetworkServiceRegistryClient(r.local.Dial(rpc.LocalCaller{Identity: operator.local, Tokens: token.NewGenerator(operator, TokenLifetime)}))
	r.close = func() {
		r.server.Close()
		r.local.Close()
		_ = r.services.Close()
		_ = r.endpoints.Close()
	}
	return r
}

func (r *realRegistry) register(name string) error {
	_, err := r.client.Register(regpath.Path{}.ToOutgoing(context.Background()), &api.NetworkService{Name: name})
	return err
}

func (r *realRegistry) knows(name string) bool {
	for ns, err := range r.services.Find(context.Background(), &api.NetworkService{Name: name}) {
		if err == nil && ns.Object.GetName() == name {
			return true
		}
	}
	return false
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; size /= 2 {
		for {
			if _, err := f.Write(make([]byte, size)); err != nil {
				break
			}
		}
	}
}

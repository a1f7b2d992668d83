// SPDX-License-Identifier: Apache-2.0

package nsmgr

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// issue returns an SVID that nothing signs: who calls is known without TLS here.
func issue(t testing.TB, name string) *x509svid.SVID {
	t.Helper()
	id := spiffeid.RequireFromString("spiffe://test/" + name)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), URIs: []*url.URL{id.URL()}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}
}

// upstream is a registry of endpoints that answers as the test says.
type upstream struct {
	registry.UnimplementedNetworkServiceEndpointRegistryServer
	got    *registry.NetworkServiceEndpoint
	answer *registry.NetworkServiceEndpoint // nil: what was registered
}

func (u *upstream) Register(_ context.Context, nse *registry.NetworkServiceEndpoint) (*registry.NetworkServiceEndpoint, error) {
	u.got = nse
	if u.answer != nil {
		return u.answer, nil
	}
	return nse, nil
}

func (u *upstream) Unregister(context.Context, *registry.NetworkServiceEndpoint) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (u *upstream) Find(_ *registry.NetworkServiceEndpointQuery, s registry.NetworkServiceEndpointRegistry_FindServer) error {
	<-s.Context().Done()
	return s.Context().Err()
}

// Whatever a peer registers, and whatever the registry answers: it is refused with
// a reason, or goes to the registry as of this node, with the node's labels, and as
// no forwarder; nothing is held afterwards.
func FuzzRegister(f *testing.F) {
	const own = "tcp://192.0.2.1:5001"
	self, caller := issue(f, "manager"), issue(f, "nse")
	up := &upstream{}
	domain := rpc.NewLocal(rpc.LocalOptions{})
	f.Cleanup(domain.Close)
	regpath.RegisterEndpoints(domain, up)
	quiet := slog.New(slog.DiscardHandler)
	sockets := rpc.NewSockets()
	peers := peer.NewPool(peer.PoolConfig{Name: "manager", Logger: quiet, Dial: func(string) (grpc.ClientConnInterface, io.Closer, error) {
		return domain.Dial(rpc.LocalCaller{}), nil, nil
	}})
	f.Cleanup(peers.Close)
	m, err := New(Config{
		Name: "manager", URL: own, Labels: map[string]string{"nodeName": "a"}, Tokens: token.NewGenerator(self, time.Hour),
		Peers: peers, Sockets: sockets, Registry: domain.Dial(rpc.LocalCaller{}), Logger: quiet,
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(m.Stop)
	server := rpc.NewLocal(rpc.LocalOptions{Logger: quiet, Identity: func() rpc.Identity { return rpc.Identity{ID: self.ID.String(), Cert: self.Certificates[0]} }})
	f.Cleanup(server.Close)
	m.Register(server)
	client := registry.NewNetworkServiceEndpointRegistryClient(server.Dial(rpc.LocalCaller{
		Identity: func() rpc.Identity { return rpc.Identity{ID: caller.ID.String(), Cert: caller.Certificates[0]} },
		Tokens:   token.NewGenerator(caller, time.Hour),
	}))
	socket, err := os.CreateTemp(f.TempDir(), "socket")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = socket.Close() })
	inode, err := rpc.InodeURL(socket)
	if err != nil {
		f.Fatal(err)
	}

	labels := func(names ...string) map[string]*registry.NetworkServiceLabels {
		out := make(map[string]*registry.NetworkServiceLabels)
		for _, n := range names {
			out[n] = &registry.NetworkServiceLabels{Labels: map[string]string{"app": "db"}}
		}
		return out
	}
	add := func(nse, answer *registry.NetworkServiceEndpoint) {
		raw, err := proto.Marshal(nse)
		if err != nil {
			f.Fatal(err)
		}
		reply, err := proto.Marshal(answer)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, reply)
	}
	type endpoint = registry.NetworkServiceEndpoint
	good := &endpoint{Name: "e", NetworkServiceNames: []string{"s"}, Url: inode, NetworkServiceLabels: labels("s")}
	add(good, nil)
	add(good, &endpoint{Name: "x", Url: "unix:///elsewhere", ExpirationTime: &timestamppb.Timestamp{Seconds: -1 << 40}})
	add(&endpoint{Name: "e", NetworkServiceNames: []string{"s"}, Url: "tcp://h:1", NetworkServiceLabels: map[string]*registry.NetworkServiceLabels{"s": {}}}, good)
	add(&endpoint{Name: "e", NetworkServiceNames: []string{"s", "forwarder"}, Url: "unix:///f"}, nil)
	add(&endpoint{Name: "e", NetworkServiceNames: []string{"s"}, Url: "unix:///f", NetworkServiceLabels: labels("forwarder")}, nil)
	add(&endpoint{Name: "e", NetworkServiceNames: []string{"s"}, Url: "inproc://f"}, nil)
	add(&endpoint{Name: strings.Repeat("e", 300), NetworkServiceNames: []string{""}, Url: "inode://x"}, nil)
	add(&endpoint{Url: "file:///etc"}, nil)
	f.Fuzz(func(t *testing.T, raw, reply []byte) {
		nse, answer := new(endpoint), new(endpoint)
		if proto.Unmarshal(raw, nse) != nil || proto.Unmarshal(reply, answer) != nil {
			return
		}
		ctx := regpath.Path{}.ToOutgoing(t.Context())
		switch {
		case nse.GetUrl() == inode:
			ctx = rpc.WithFiles(ctx, socket)
		case isInode(nse.GetUrl()):
			t.Skip("a descriptor that does not come is waited for")
		}
		up.got, up.answer = nil, nil
		if len(reply) > 0 {
			up.answer = answer
		}
		got, err := client.Register(ctx, nse)
		switch {
		case err != nil && nserr.From(err).Reason == nserr.Internal:
			t.Errorf("no reason: %v", err)
		case err == nil:
			checkRegistered(t, nse, up.got, got)
		}
		if _, err := client.Unregister(regpath.Path{}.ToOutgoing(t.Context()), nse); err != nil {
			t.Errorf("unregistered: %v", err)
		}
		if left := m.locals.all(); len(left) != 0 || sockets.Len() != 0 { // Usage counts an expiry that comes too late, too
			t.Errorf("left: %v, %d sockets", left, sockets.Len())
		}
	})
}

// checkRegistered compares what an endpoint said with what the registry and the
// endpoint were told.
func checkRegistered(t *testing.T, said, registered, told *registry.NetworkServiceEndpoint) {
	t.Helper()
	if registered.GetUrl() != "tcp://192.0.2.1:5001" || registered.GetPathIds()[0] != "spiffe://test/nse" || registered.GetName() != said.GetName() {
		t.Errorf("%v was registered as %v", said, registered)
	}
	if told.GetUrl() != said.GetUrl() {
		t.Errorf("%v was told it is at %q", said, told.GetUrl())
	}
	for service, labels := range registered.GetNetworkServiceLabels() {
		want, given := said.GetNetworkServiceLabels()[service].GetLabels()["nodeName"]
		if !given {
			want = "a"
		}
		if service == "forwarder" || labels.GetLabels()["nodeName"] != want {
			t.Errorf("%v was registered with %v for %s", said, labels, service)
		}
	}
	for _, service := range registered.GetNetworkServiceNames() {
		if service == "forwarder" {
			t.Error("became a forwarder")
		}
	}
}

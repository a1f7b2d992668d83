// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/forwarder"
	"github.com/openvwire/nsm/forwarder/kernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/wireguard"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/registration"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/test/interop/ref"
)

// forwarderPart is a running forwarder of ours, with the real kernel. Its node is
// a namespace of its own, with one link that has the tunnel's address.
type forwarderPart struct {
	part
	*forwarder.Forwarder
	node    *netns.Table
	tunnels *wireguard.Userspace
}

const underlayMTU = 1500

// ourForwarder runs our forwarder on a Unix socket, registered with a manager of
// either make.
func ourForwarder(t *testing.T, s ref.Security, name, manager string, tunnelIP netip.Addr) forwarderPart {
	t.Helper()
	node := newWorkload(t)
	node.addLink(t, "uplink", netip.PrefixFrom(tunnelIP, 24), underlayMTU)
	tunnels, err := wireguard.NewUserspace(t.Context(), holderOf(t, node))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { endHolder(t, tunnels) })
	k, err := kernel.New(kernel.Config{Name: name, Namespaces: node.table, WireGuard: tunnels, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	sockets := rpc.NewSockets()
	pool := ourPool(s, name, sockets)
	config := forwarder.Config{
		Name: name, TunnelIP: tunnelIP, Tokens: tokensOf(s), Peers: pool, Sockets: sockets,
		Registry: dialOurs(t, s, manager), Kernel: k, Namespaces: node.table, Logger: quiet,
	}
	if !s.Checked {
		config.Policy = everybody{}
	}
	f, err := forwarder.New(config)
	if err != nil {
		t.Fatal(err)
	}
	p := serveOurs(t, s, ref.Socket(t), func(g *grpc.Server) { f.Register(g) })
	r := registerOurs(t, s, p.url, manager, &registry.NetworkServiceEndpoint{
		Name:                 name,
		NetworkServiceNames:  []string{"forwarder"},
		NetworkServiceLabels: map[string]*registry.NetworkServiceLabels{"forwarder": {Labels: map[string]string{"p2p": "true"}}},
	})
	serving := p.stop
	p.stop = sync.OnceFunc(func() {
		r.Abandon()
		serving()
		f.Stop()
		pool.Close()
	})
	t.Cleanup(p.stop)
	return forwarderPart{part: p, Forwarder: f, node: node.table, tunnels: tunnels}
}

// ourPool returns peers as our parts have them.
func ourPool(s ref.Security, name string, sockets *rpc.Sockets) *peer.Pool {
	creds, _ := credentialsOf(s)
	dial := rpc.DialOptions{Credentials: creds, Tokens: tokensOf(s)}
	return peer.NewPool(peer.PoolConfig{Name: name, Logger: quiet, Dial: func(url string) (grpc.ClientConnInterface, io.Closer, error) {
		cc, err := sockets.Dial(url, dial)
		return cc, cc, err
	}})
}

// registerOurs registers what listens on a Unix socket as our parts do.
func registerOurs(t *testing.T, s ref.Security, url, manager string, nse *registry.NetworkServiceEndpoint, services ...*registry.NetworkService) *registration.Registration {
	t.Helper()
	path := strings.TrimPrefix(url, "unix://")
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { _ = socket.Close() })
	if nse.Url, err = rpc.InodeURL(socket); err != nil {
		t.Fatal(err)
	}
	r, err := registration.Start(soon(t), registration.Config{
		Registry: dialOurs(t, s, manager), Endpoint: nse, Services: services, Socket: socket, Logger: quiet,
	})
	if err != nil {
		t.Fatalf("%s cannot register at %s: %v", nse.GetName(), manager, err)
	}
	return r
}

// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"io"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/openvwire/nsm/nsmgr"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/test/interop/ref"
)

// managerPart is a running manager of ours: part.url is its Unix socket.
type managerPart struct {
	part
	public string // its TCP address, which registries learn
}

// ourManager runs our manager on a Unix socket and on a loopback TCP port.
func ourManager(t *testing.T, s ref.Security, name, registryURL string) managerPart {
	t.Helper()
	ctx := soon(t)
	listeners := make(map[string]string) // address as asked for: as it is
	clientCreds, serverCreds := credentialsOf(s)
	server := rpc.NewServer(rpc.ServerOptions{Credentials: serverCreds, Logger: quiet})
	var serving sync.WaitGroup
	var serve []func()
	socket := ref.Socket(t)
	for _, address := range []string{socket, ref.Loopback} {
		l, err := rpc.Listen(ctx, address)
		if err != nil {
			t.Fatal(err)
		}
		listeners[address] = rpc.URL(l.Addr())
		serve = append(serve, func() {
			if err := server.Serve(l); err != nil {
				t.Errorf("%s on %s: %v", name, address, err)
			}
		})
	}
	public := listeners[ref.Loopback]

	sockets := rpc.NewSockets()
	dial := rpc.DialOptions{Credentials: clientCreds, Tokens: tokensOf(s)}
	pool := peer.NewPool(peer.PoolConfig{Name: name, Logger: quiet, Dial: func(url string) (grpc.ClientConnInterface, io.Closer, error) {
		cc, err := sockets.Dial(url, dial)
		return cc, cc, err
	}})
	config := nsmgr.Config{
		Name: name, URL: public, Tokens: tokensOf(s), Peers: pool, Sockets: sockets,
		Registry: dialOurs(t, s, registryURL), Logger: quiet,
	}
	if !s.Checked {
		config.Policy = everybody{}
	}
	manager, err := nsmgr.New(config)
	if err != nil {
		t.Fatal(err)
	}
	manager.Register(server)
	for _, f := range serve {
		serving.Go(f)
	}
	p := managerPart{public: public, part: part{url: socket, stop: sync.OnceFunc(func() {
		server.Stop()
		serving.Wait()
		manager.Stop()
		pool.Close()
	})}}
	t.Cleanup(p.stop)
	if err := manager.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return p
}

// everybody is the policy of hops on plaintext, where tokens have no audience.
type everybody struct{}

func (everybody) Admit(rpc.Caller, path.Path, time.Time) error { return nil }
func (everybody) MayObserve(string, []string) bool             { return true }

var _ hop.Policy = everybody{}

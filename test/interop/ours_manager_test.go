// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"sync"
	"testing"
	"time"

	"github.com/openvwire/nsm/nsmgr"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/path"
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
	return ourManagerAt(t, s, name, registryURL, ref.Socket(t), ref.Loopback)
}

// ourManagerAt runs our manager at the addresses, such as those of one before.
func ourManagerAt(t *testing.T, s ref.Security, name, registryURL, socket, public string) managerPart {
	t.Helper()
	ctx := soon(t)
	_, serverCreds := credentialsOf(s)
	server := rpc.NewServer(rpc.ServerOptions{Credentials: serverCreds, Logger: quiet})
	var serving sync.WaitGroup
	var serve []func()
	for _, address := range []*string{&socket, &public} {
		l, err := rpc.Listen(ctx, *address)
		if err != nil {
			t.Fatal(err)
		}
		*address = rpc.URL(l.Addr())
		serve = append(serve, func() {
			if err := server.Serve(l); err != nil {
				t.Errorf("%s on %s: %v", name, l.Addr(), err)
			}
		})
	}

	sockets := rpc.NewSockets()
	pool := ourPool(s, name, sockets)
	config := nsmgr.Config{
		MayForward: forwarders, MayRelay: relays,
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

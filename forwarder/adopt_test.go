// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"context"
	"crypto/x509"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/openvwire/nsm/forwarder/kernel/memkernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
)

// leftBehind is a kernel in which an earlier life has left links.
type leftBehind struct {
	*memkernel.Kernel
	found   []plan.Found
	removed chan plan.Wire
}

func (k *leftBehind) FindLinks(context.Context) ([]plan.Found, error) { return k.found, nil }

func (k *leftBehind) Remove(_ context.Context, w plan.Wire) error {
	k.removed <- w
	return nil
}

// A device whose namespace nothing else shows is removed in the end like all that
// nobody claims; to its namespace, which somebody else may use by then, there is
// no reference to give back.
func TestAdoptHidden(t *testing.T) {
	self, err := netns.New()
	if err != nil {
		t.Skipf("no network namespace: %v", err)
	}
	table, err := netns.NewTableAt(self)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	other, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	key, err := table.Add(other) // by another wire
	if err != nil {
		t.Fatal(err)
	}
	defer table.Release(key)

	synctest.Test(t, func(t *testing.T) {
		k := &leftBehind{Kernel: memkernel.New("f"), removed: make(chan plan.Wire, 2), found: []plan.Found{
			{Tag: plan.Tag{Owner: "f", ID: "u", Side: plan.Client}, NetNS: key, Name: "nsm-1", LinkKind: "tun", Hidden: true},
		}}
		peers := peer.NewPool(peer.PoolConfig{})
		defer peers.Close()
		f, err := New(Config{
			Name: "f", Kernel: k, Namespaces: table, Peers: peers, Sockets: rpc.NewSockets(),
			Tokens:   func(*x509.Certificate) (string, time.Time, error) { return "", time.Time{}, nil },
			Registry: new(grpc.ClientConn), // nobody asks it
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Adopt(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if len(k.removed) != 0 {
			t.Errorf("removed before its time: %+v", <-k.removed)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(k.removed) != 1 {
			t.Errorf("%d wires removed, want one", len(k.removed))
		}
		f.Stop()
	})
	if _, err := table.Get(key); err != nil {
		t.Errorf("the other wire's namespace: %v", err)
	}
}

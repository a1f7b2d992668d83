// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Two endpoints of one name and identity on one node: the first keeps the name while it
// answers. The second is told so, and what to do.
func TestTwoEndpointsOfOneName(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		n := m.Node("a")
		one := n.Serve(Service{Name: "db", Endpoint: "db-host"})
		_, err := n.TryServe(Service{Name: "db", Endpoint: "db-host"})
		if !errors.Is(err, nserr.NameInUse) {
			t.Errorf("the second: %v", err)
		}
		w := n.Client("web").Connect("kernel://db/nsm-1")
		Pass(5 * time.Minute) // with renewals
		if one.Server.Len() != 1 || !Up(w) {
			t.Errorf("the first has %d connections", one.Server.Len())
		}
	})
}

// An endpoint that has died, or answers no more, is replaced at once.
func TestEndpointOfADeadOnesName(t *testing.T) {
	for name, die := range map[string]func(*Mesh, *Endpoint){
		"dead": func(_ *Mesh, e *Endpoint) { e.Vanish() },
		"frozen": func(m *Mesh, e *Endpoint) {
			m.Network.SetFate(func(c Call) Fate {
				if c.To == e.url {
					return LoseRequest
				}
				return Deliver
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				n := m.Node("a")
				one := n.Serve(Service{Name: "db", Endpoint: "db-host"})
				die(m, one)
				start := time.Now()
				two, err := n.TryServe(Service{Name: "db", Endpoint: "db-host"})
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("registered after %v", took)
				}
				n.Client("web").Connect("kernel://db/nsm-1")
				if two.Server.Len() != 1 || !slices.Contains(m.Registered(), "db-host") {
					t.Errorf("the second has %d connections, registered are %v", two.Server.Len(), m.Registered())
				}
			})
		})
	}
}

// While an endpoint is replaced by the next of its name, the forwarder of its node is told
// the one's address or the other's, never that of its own manager, as if it were elsewhere.
func TestAddressWhileReplaced(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		n := m.Node("a")
		e := n.Serve(Service{Name: "db"})
		find := func() (urls []string) {
			var at peer.Peer
			stream, err := api.NewNetworkServiceEndpointRegistryClient(n.Forwarder().dial(n.ManagerURL())).Find(t.Context(),
				&api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: &api.NetworkServiceEndpoint{Name: "db-a"}}, grpc.Peer(&at))
			if err == nil {
				err = rpc.Drain(stream, func(r *api.NetworkServiceEndpointResponse) error {
					urls = append(urls, r.GetNetworkServiceEndpoint().GetUrl())
					return nil
				})
			}
			if err != nil {
				t.Error(err)
			}
			for _, url := range urls {
				rpc.DiscardReplyFile(&at, url)
			}
			return urls
		}
		for range 40 {
			var asking sync.WaitGroup
			asking.Go(func() {
				for range 100 {
					if urls := find(); slices.Contains(urls, n.ManagerURL()) {
						t.Errorf("the forwarder is told that the endpoint is at %v", urls)
					}
				}
			})
			e = e.Restart()
			if asking.Wait(); t.Failed() {
				return
			}
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
)

// silent has every Request and Close to some URLs lost: who is there has stopped, or
// its node is gone without a word.
func (m *Mesh) silent(fate Fate, urls ...string) {
	m.Network.SetFate(func(c Call) Fate {
		for _, url := range urls {
			if c.To == url && (c.Method == "Request" || c.Method == "Close" && fate == LoseRequest) {
				return fate
			}
		}
		return Deliver
	})
}

// soon connects clients one after the other, each of which must take no longer than
// most.
func (c *Client) soon(n int, most time.Duration) (wires []*client.Wire) {
	c.mesh.t.Helper()
	for i := range n {
		start := time.Now()
		wires = append(wires, c.Connect(fmt.Sprintf("kernel://db/nsm-%d", i)))
		if took := time.Since(start); took > most {
			c.mesh.t.Errorf("client %d was connected after %v", i, took)
		}
	}
	return wires
}

func (c *Client) closeAll(wires []*client.Wire) {
	for _, w := range wires {
		c.Close(w)
	}
}

// A node that says nothing any more costs one endpoint's patience, not the client's
// whole time.
func TestSilentNode(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b, c := m.Node("a"), m.Node("b"), m.Node("c")
		b.Serve(Service{Name: "db", Endpoint: "one"})
		c.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
		m.silent(LoseRequest, b.ManagerURL())
		web := a.Client("web")
		wires := web.soon(4, time.Second)
		m.silent(Deliver)
		Pass(hop.CloseTimeout) // of those that were lost
		web.closeAll(wires)
		m.CheckEmpty()
	})
}

// The same for an endpoint, here or elsewhere, that was stopped.
func TestSilentEndpoint(t *testing.T) {
	for _, across := range []bool{false, true} {
		t.Run(fmt.Sprint("across ", across), func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				a, b := m.Node("a"), m.Node("b")
				at := a
				if across {
					at = b
				}
				one := at.Serve(Service{Name: "db", Endpoint: "one"})
				at.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
				m.silent(LoseRequest, one.url)
				web := a.Client("web")
				wires := web.soon(4, time.Second)
				m.silent(Deliver)
				Pass(hop.CloseTimeout)
				web.closeAll(wires)
				m.CheckEmpty()
			})
		})
	}
}

// A forwarder that says nothing is passed by if there is another one.
func TestSilentForwarder(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		a.StartForwarder("second", map[string]string{"p2p": "true"})
		a.Serve(Service{Name: "db"})
		m.silent(LoseRequest, "inproc://forwarder-a")
		web := a.Client("web")
		wires := web.soon(2, 2*time.Second)
		m.silent(Deliver)
		Pass(hop.CloseTimeout) // of those that were lost
		web.closeAll(wires)
		m.CheckEmpty()
	})
}

// Slow is not dead: if all endpoints take their time, one is given it.
func TestSlowEndpoints(t *testing.T) {
	slow := func(endpoint.Handler) endpoint.Handler {
		return endpoint.Funcs{OnRequest: func(ctx context.Context, _ *endpoint.Request) error {
			select {
			case <-time.After(3 * time.Second):
				return nil
			case <-ctx.Done():
				return nserr.TimedOut.Errorf("%w", ctx.Err())
			}
		}}
	}
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		chain := func(next endpoint.Handler) endpoint.Handler {
			return endpoint.Funcs{OnRequest: func(ctx context.Context, r *endpoint.Request) error {
				if err := slow(nil).Request(ctx, r); err != nil {
					return err
				}
				return next.Request(ctx, r)
			}, OnClose: next.Close}
		}
		a.Serve(Service{Name: "db", Endpoint: "one", With: []endpoint.Middleware{chain}})
		b.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24", With: []endpoint.Middleware{chain}})
		web := a.Client("web")
		web.closeAll(web.soon(2, client.DefaultRequestTimeout))
		m.CheckEmpty()
	})
}

// An answer that comes after the deadline is for nobody: what was built for it is
// closed.
func TestLateAnswer(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b, c := m.Node("a"), m.Node("b"), m.Node("c")
		one := b.Serve(Service{Name: "db", Endpoint: "one"})
		c.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
		m.silent(LoseReply, b.ManagerURL())
		web := a.Client("web")
		wires := web.soon(4, time.Second)
		for _, w := range wires {
			if got := w.Connection().GetNetworkServiceEndpointName(); got != "two" {
				t.Errorf("connected to %s", got)
			}
		}
		if n := m.Network.CallsTo(b.ManagerURL(), "Request"); n == 0 {
			t.Error("one was not asked")
		}
		if len(one.Pool.Leases()) != 0 || b.Kernel.Links() != 0 || b.Forwarder().Usage().Wires != 0 {
			t.Errorf("left at one: leases %v, %d links", one.Pool.Leases(), b.Kernel.Links())
		}
		web.closeAll(wires)
		m.CheckEmpty()
	})
}

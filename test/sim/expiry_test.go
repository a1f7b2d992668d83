// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/nserr"
)

// A client that is killed leaves its wire for as long as its last token is good,
// less the time that its Request had: then it is gone everywhere, to the second.
func TestVanishedClient(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				m.Userspace = shape.tunnel
				r := newRig(m, shape.payload, shape.across)
				full := m.Leftovers()
				r.c.Vanish()
				Pass(TokenLifetime - client.DefaultRequestTimeout - time.Second)
				if left := m.Leftovers(); !slices.Equal(left, full) {
					t.Errorf("too early: %q of %q are left", left, full)
				}
				Pass(2 * time.Second)
				m.CheckEmpty()
			})
		})
	}
}

// When a Close does not get through, each hop lets go by itself.
func TestEachHopExpires(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", true)
		m.Network.SetFate(func(c Call) Fate {
			if c.Method == "Close" {
				return LoseRequest
			}
			return Deliver
		})
		if err := r.w.Close(t.Context()); err == nil {
			t.Error("a Close that was lost succeeded")
		}
		Pass(TokenLifetime)
		m.CheckEmpty()
	})
}

// An endpoint that is killed is replaced by another one, wherever that is.
func TestVanishedEndpoint(t *testing.T) {
	for _, payload := range []string{"IP", "ETHERNET"} {
		t.Run(payload, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				a, b, c := m.Node("a"), m.Node("b"), m.Node("c")
				endpoints := make(map[string]*Endpoint)
				for i, n := range []*Node{a, b, c} {
					e := n.Serve(Service{Name: "db", Payload: payload, CIDR: []string{"10.60.0.0/24", "10.61.0.0/24", "10.62.0.0/24"}[i]})
					endpoints[e.name] = e
				}
				web := a.Client("web")
				w := web.Connect("kernel://db/nsm-1")
				for len(endpoints) > 1 {
					name := w.Connection().GetNetworkServiceEndpointName()
					endpoints[name].Vanish()
					delete(endpoints, name)
					start := time.Now()
					for w.Connection().GetNetworkServiceEndpointName() == name || !Up(w) {
						_, changed, _ := w.Status()
						select {
						case <-changed:
						case <-time.After(time.Minute):
							t.Fatalf("still without an endpoint after %v", time.Since(start))
						}
					}
					t.Logf("healed after %v", time.Since(start))
					if healed := time.Since(start); healed > 4*time.Second {
						t.Errorf("healed after %v", healed)
					}
					Pass(time.Minute)
				}
				web.Close(w)
				m.CheckEmpty()
			})
		})
	}
}

// With no endpoint left the client goes on asking, now and then, and has the one
// that comes at once.
func TestEndpointComesLate(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", true)
		r.e.Stop()
		Pass(5 * time.Minute)
		if tries, _, err := r.w.Status(); tries < 10 || tries > 40 || err == nil {
			t.Errorf("%d tries in 5 minutes, last: %v", tries, err)
		}
		late := r.a.Serve(Service{Name: "db", CIDR: "10.61.0.0/24"})
		Pass(100 * time.Millisecond)
		if tries, _, err := r.w.Status(); err != nil || tries != 0 || r.w.Connection().GetNetworkServiceEndpointName() != late.name {
			t.Errorf("at %s after %d tries: %v", r.w.Connection().GetNetworkServiceEndpointName(), tries, err)
		}
		r.c.Close(r.w)
		m.CheckEmpty()
	})
}

// Clients with Retry wait for a service that does not exist yet, wherever it comes:
// all wires of a client on one watch, and they are up as soon as it is there.
func TestConnectWaits(t *testing.T) {
	for _, across := range []bool{false, true} {
		t.Run(fmt.Sprint("across nodes ", across), func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				const many = 20
				a := m.Node("a")
				at := a
				if across {
					at = m.Node("b")
				}
				c := a.Client("web")
				if _, err := c.Try(t.Context(), "kernel://db/nsm-1"); nserr.From(err).Reason != nserr.UnknownService {
					t.Errorf("without Retry: %v", err)
				}
				m.Network.Forget()
				m.Space("web") // not made by two at once
				var connecting sync.WaitGroup
				wires := make([]*client.Wire, many)
				for i := range many {
					connecting.Go(func() {
						w, err := c.Ask(t.Context(), client.Request{Service: "db", Interface: fmt.Sprint("nsm-", i), Retry: true})
						if err != nil {
							t.Error(err)
						}
						wires[i] = w
					})
				}
				Pass(2 * time.Minute)
				if n := m.Network.CallsBy("web", "Find"); n != 2 {
					t.Errorf("%d looks at the registry for %d wires that wait", n, many)
				}
				m.Network.Forget()
				Pass(time.Minute)
				if n := m.Network.CallsBy("web", "Request"); n > 3*many {
					t.Errorf("%d wires asked %d times in a minute", many, n)
				}
				e := at.Serve(Service{Name: "db"})
				came := time.Now()
				connecting.Wait()
				if d := time.Since(came); d > 100*time.Millisecond {
					t.Errorf("up after %v", d)
				}
				// The same when all of them lose it, and it comes again.
				Settle()
				e.Vanish()
				Pass(2 * time.Minute)
				at.Serve(Service{Name: "db"})
				Pass(100 * time.Millisecond)
				for _, w := range wires {
					if tries, _, err := w.Status(); err != nil || !Up(w) {
						t.Errorf("%s is not up again after %d tries: %v", w.ID(), tries, err)
					}
					c.Close(w)
				}
				m.CheckEmpty()
			})
		})
	}
}

// An endpoint can ask its clients to come again, or to go elsewhere.
func TestAskedByTheEndpoint(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		one := b.Serve(Service{Name: "db", Endpoint: "one", CIDR: "10.60.0.0/24"})
		c := a.Client("web")
		w := c.Connect("kernel://db/nsm-1")
		b.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
		ask := func(state networkservice.State) {
			for _, v := range one.Server.Monitor().Visible(ID("observer")) {
				one.Server.Monitor().Amend(v.Conn().GetId(), func(c *networkservice.Connection) bool {
					c.State = state
					return true
				})
			}
			Settle()
		}
		m.Network.Forget()
		ask(networkservice.State_REFRESH_REQUESTED)
		if n := m.Network.CallsTo(one.url, "Request"); n != 1 || !Up(w) || w.Connection().GetNetworkServiceEndpointName() != "one" {
			t.Errorf("%d refreshes, wire %v", n, w.Connection())
		}
		for i := 0; w.Connection().GetNetworkServiceEndpointName() == "one"; i++ {
			if i == 3 {
				t.Fatal("asked three times, and still there")
			}
			ask(networkservice.State_RESELECT_REQUESTED)
			Pass(time.Second)
		}
		if len(one.Pool.Leases()) != 0 || one.Server.Len() != 0 {
			t.Errorf("endpoint one still has %d leases and %d connections", len(one.Pool.Leases()), one.Server.Len())
		}
		if !Up(w) || w.Interface() != "nsm-1" {
			t.Errorf("wire %v", w.Connection())
		}
		c.Close(w)
		m.CheckEmpty()
	})
}

// A wire that has expired is listed no more, although the next hop does not answer the
// Close: nobody waits for that.
func TestExpiredWireIsNotListed(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", true)
		listed := func() (n int) {
			t.Helper()
			stream, err := m.Admin(t, r.c.part, r.a).Wires(t.Context(), &adminv1.WiresRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for {
				if _, err := stream.Recv(); err != nil {
					return n
				}
				n++
			}
		}
		r.c.Vanish()
		m.Network.SetFate(func(c Call) Fate {
			if c.Method == "Close" {
				return LoseRequest
			}
			return Deliver
		})
		Pass(TokenLifetime - client.DefaultRequestTimeout - time.Second)
		if n := listed(); n != 1 {
			t.Errorf("%d wires before its end", n)
		}
		Pass(time.Second + 10*time.Millisecond)
		if n := listed(); n != 0 {
			t.Errorf("%d wires after its end", n)
		}
		Pass(TokenLifetime)
		m.CheckEmpty()
	})
}

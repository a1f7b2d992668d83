// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// However far a first Request has come when its caller gives up or its answer is
// lost, nothing is left of it soon afterwards.
func TestLostRequests(t *testing.T) {
	for _, fate := range []Fate{LoseRequest, LoseReply, Double} {
		for hop := range 5 {
			t.Run(fmt.Sprintf("%v at hop %d", fate, hop), func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					a, b := m.Node("a"), m.Node("b")
					b.Serve(Service{Name: "db"})
					c := a.Client("web")
					nth := 0
					m.Network.SetFate(func(c Call) Fate {
						if c.Method != "Request" {
							return Deliver
						}
						if nth++; nth == hop+1 {
							return fate
						}
						return Deliver
					})
					w, err := c.Try(t.Context(), "kernel://db/nsm-1")
					if (err == nil) != (fate == Double) {
						t.Fatalf("error = %v", err)
					}
					Pass(15 * time.Second)
					if err != nil {
						m.CheckEmpty()
						w = c.Connect("kernel://db/nsm-1") // at once, under the same name
					}
					c.Close(w)
					m.CheckEmpty()
				})
			})
		}
	}
}

// A client that gives up while its Request is under way leaves nothing.
func TestGivenUp(t *testing.T) {
	for hop := range 5 {
		t.Run(fmt.Sprint(hop), func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				a, b := m.Node("a"), m.Node("b")
				b.Serve(Service{Name: "db"})
				c := a.Client("web")
				ctx, cancel := context.WithCancel(t.Context())
				nth := 0
				m.Network.SetFate(func(c Call) Fate {
					if c.Method == "Request" {
						if nth++; nth == hop+1 {
							cancel()
						}
					}
					return Deliver
				})
				if w, err := c.Try(ctx, "kernel://db/nsm-1"); err == nil { // the answer was quicker
					c.Close(w)
				}
				if ctx.Err() == nil {
					t.Fatal("no Request came that far")
				}
				Pass(15 * time.Second)
				m.CheckEmpty()
			})
		})
	}
}

// A client that was killed and starts again asks for the same connection and gets
// it, interface, addresses and all.
func TestClientComesBack(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", true)
		before, steps := View(r.w), r.steps()
		r.c.Vanish()
		Pass(time.Second)
		r.c = r.a.Client("web")
		r.w = r.c.Connect("kernel://db/nsm-1")
		if diff := cmp.Diff(before, View(r.w)); diff != "" {
			t.Errorf("the wire has changed (-before +after):\n%s", diff)
		}
		if now := r.steps(); now != steps {
			t.Errorf("the kernels were changed in %d steps", now-steps)
		}
		r.c.Close(r.w)
		m.CheckEmpty()
	})
}

// When the endpoint has gone while the client was away, the client gets another.
func TestClientComesBackToAnotherEndpoint(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		one := a.Serve(Service{Name: "db", Endpoint: "one"})
		c := a.Client("web")
		c.Connect("kernel://db/nsm-1")
		c.Vanish()
		one.Vanish()
		b.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
		Pass(2 * time.Minute) // until the registration of one has ended
		c = a.Client("web")
		w := c.Connect("kernel://db/nsm-1")
		if got := w.Connection().GetNetworkServiceEndpointName(); got != "two" {
			t.Errorf("connected to %s", got)
		}
		c.Close(w)
		m.CheckEmpty()
	})
}

// When the forwarder of a wire fails and another one's answer is lost, that one is
// told to close what it may have built: nobody else knows of it. That the path of the
// wire still names the first one makes no difference, nor that the manager has
// forgotten whom it had asked.
func TestLostAnswerOfAnotherForwarder(t *testing.T) {
	for _, forgotten := range []bool{false, true} {
		t.Run(fmt.Sprint("manager restarted: ", forgotten), func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				a := m.BareNode("a")
				one := a.StartForwarder("one", map[string]string{"p2p": "true"})
				two := a.StartForwarder("two", map[string]string{"p2p": "true"})
				a.Serve(Service{Name: "db"})
				c := a.Client("web")
				c.Connect("kernel://db/nsm-1")
				if n := one.Usage().Wires; n != 1 {
					t.Fatalf("%d wires at the first forwarder", n)
				}
				asked, closed := 0, 0
				m.Network.SetFate(func(c Call) Fate {
					switch {
					case c.Method == "Close" && c.To == two.url && asked == 1:
						closed++
					case c.Method != "Request":
					case c.To == one.url:
						return Refuse
					case c.To == two.url:
						if asked++; asked == 1 {
							return LoseReply
						}
						return Refuse
					}
					return Deliver
				})
				if forgotten {
					one.Stop()
					a.StopManager()
					a.StartManager()
				} else {
					a.Manager.Monitor().Down(a.Manager.Monitor().All()[0].Conn().GetId())
				}
				Pass(time.Minute)
				if asked < 2 {
					t.Fatalf("the second forwarder was asked %d times", asked)
				}
				if closed != 1 {
					t.Errorf("it was told %d times to close what it may have built", closed)
				}
				if n := two.Usage().Wires; n != 0 {
					t.Errorf("%d wires are left there", n)
				}
			})
		})
	}
}

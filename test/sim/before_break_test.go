// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/client"
)

// askedToMove has the endpoint's clients take another path.
func askedToMove(e *Endpoint) {
	for _, v := range e.Server.Monitor().All() {
		e.Server.Monitor().Amend(v.Conn().GetId(), func(c *networkservice.Connection) bool {
			c.State = networkservice.State_RESELECT_REQUESTED
			return true
		})
	}
}

// The old path carries packets until the new one does: it is closed after the new
// endpoint has answered, wherever the two are.
func TestMakeBeforeBreak(t *testing.T) {
	for _, tt := range []struct{ one, two string }{{"a", "a"}, {"a", "b"}, {"b", "a"}, {"b", "b"}, {"b", "c"}} {
		for _, payload := range []string{"IP", "ETHERNET"} {
			t.Run(fmt.Sprintf("%s to %s, %s", tt.one, tt.two, payload), func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					nodes := map[string]*Node{"a": m.Node("a"), "b": m.Node("b"), "c": m.Node("c")}
					one := nodes[tt.one].Serve(Service{Name: "db", Endpoint: "one", Payload: payload})
					c := nodes["a"].Client("web")
					w := c.Connect("kernel://db/nsm-1")
					two := nodes[tt.two].Serve(Service{Name: "db", Endpoint: "two", Payload: payload, CIDR: "10.61.0.0/24"})
					var order []string
					m.Network.SetFate(func(c Call) Fate {
						for _, e := range []*Endpoint{one, two} {
							if c.To == e.url {
								order = append(order, c.Method+" "+e.name)
							}
						}
						return Deliver
					})
					askedToMove(one)
					Pass(time.Second)
					m.Network.SetFate(nil)
					order = slices.DeleteFunc(order, func(s string) bool { return !strings.HasPrefix(s, "Request ") && !strings.HasPrefix(s, "Close ") })
					if !slices.Equal(order, []string{"Request two", "Close one"}) {
						t.Errorf("the endpoints heard %v", order)
					}
					if name := w.Connection().GetNetworkServiceEndpointName(); name != "two" || !Up(w) {
						t.Errorf("at %s, %v", name, w.Connection().GetState())
					}
					c.Close(w)
					m.CheckEmpty()
				})
			})
		}
	}
}

// When there is no other path the old one is left alone, in the kernel too.
func TestNoOtherPath(t *testing.T) {
	for _, across := range []bool{false, true} {
		for name, prepare := range map[string]func(*rig){
			"no other endpoint": func(*rig) {},
			"the other endpoint is dead": func(r *rig) {
				r.b.Serve(Service{Name: "db", Endpoint: "dead", CIDR: "10.61.0.0/24"}).Vanish()
			},
			"the other endpoint refuses": func(r *rig) {
				r.b.Serve(Service{Name: "db", Endpoint: "full", CIDR: "10.61.0.0/31"})
				other := r.a.Client("other")
				if _, err := other.Ask(r.t.Context(), client.Request{Service: "db", Endpoint: "full"}); err != nil {
					r.t.Fatal(err)
				}
			},
		} {
			t.Run(fmt.Sprintf("across %v, %s", across, name), func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					r := newRig(m, "IP", across)
					prepare(r)
					before, steps := View(r.w), r.steps()
					askedToMove(r.e)
					Pass(30 * time.Second)
					if now := View(r.w); now.Endpoint != before.Endpoint || now.Src != before.Src || !Up(r.w) {
						t.Errorf("the wire is %+v, was %+v", now, before)
					}
					if now := r.steps(); now != steps {
						t.Errorf("the kernels were changed in %d steps", now-steps)
					}
					r.c.Close(r.w)
				})
			})
		}
	}
}

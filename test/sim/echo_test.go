// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/endpoint"
)

// echoing tells watchers the state that a Request had, as endpoints of the reference do.
type echoing struct {
	endpoint.Handler
	e *Endpoint
}

func (h *echoing) Request(ctx context.Context, r *endpoint.Request) error {
	state := r.Connection.GetState()
	err := h.Handler.Request(ctx, r)
	if state == networkservice.State_RESELECT_REQUESTED {
		time.AfterFunc(5*time.Millisecond, func() { askedToMove(h.e) })
	}
	return err
}

// A client that has asked for another path hears its own wish from the endpoint that it
// has got. It is not asked for another one again, without end.
func TestOwnWishIsHeardAgain(t *testing.T) {
	for _, across := range []bool{false, true} {
		Run(t, func(t *testing.T, m *Mesh) {
			a := m.Node("a")
			at := a
			if across {
				at = m.Node("b")
			}
			one := a.Serve(Service{Name: "db", Endpoint: "one"})
			c := a.Client("web")
			w := c.Connect("kernel://db/nsm-1")
			h := &echoing{}
			h.e = at.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24", With: []endpoint.Middleware{
				func(next endpoint.Handler) endpoint.Handler { h.Handler = next; return h },
			}})
			one.Stop()
			Pass(10 * time.Second)
			if name := w.Connection().GetNetworkServiceEndpointName(); name != "two" || !Up(w) {
				t.Fatalf("at %s, %v", name, w.Connection().GetState())
			}
			m.Network.Forget()
			Pass(10 * time.Second)
			if n := m.Network.CallsTo(a.ManagerURL(), "Request"); n > 1 {
				t.Errorf("%d Requests within 10 s, of a wire that is well", n)
			}
			// A wish that is another's is heard still.
			three := a.Serve(Service{Name: "db", Endpoint: "three", CIDR: "10.62.0.0/24"})
			askedToMove(h.e)
			Pass(time.Second)
			if name := w.Connection().GetNetworkServiceEndpointName(); name != "three" || !Up(w) {
				t.Errorf("at %s, %v, want it to go to %s", name, w.Connection().GetState(), three.name)
			}
			c.Close(w)
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/nserr"
)

// A WireGuard device is made while the other node is being asked. Of one that was made
// in vain nothing is left, also where the kernel does not let go of it at first.
func TestPreparedInVain(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		Run(t, func(t *testing.T, m *Mesh) {
			a, b := m.Node("a"), m.Node("b")
			holds := a.stuck()
			var meanwhile int // links of node a when the endpoint is asked
			refuses := func(endpoint.Handler) endpoint.Handler {
				return endpoint.Funcs{OnRequest: func(context.Context, *endpoint.Request) error {
					time.Sleep(time.Millisecond)
					meanwhile = a.Kernel.Links()
					return nserr.Busy.Errorf("not now")
				}}
			}
			b.Serve(Service{Name: "db", Endpoint: "no", With: []endpoint.Middleware{refuses}})
			holds.Store(stuck)
			c := a.Client("web")
			if _, err := c.Try(t.Context(), "kernel://db/nsm-1"); !errors.Is(err, nserr.Busy) {
				t.Fatalf("%v, want %s", err, nserr.Busy.Code)
			}
			if meanwhile != 1 {
				t.Errorf("%d links while the endpoint was asked, want the device", meanwhile)
			}
			holds.Store(false)
			Pass(2 * time.Minute)
			if n := a.Kernel.Links() + b.Kernel.Links(); n != 0 {
				t.Errorf("%d links are left", n)
			}

			b.Serve(Service{Name: "db", Endpoint: "yes", CIDR: "10.61.0.0/24"})
			w := c.Connect("kernel://db/nsm-1")
			if n := a.Kernel.Links() + b.Kernel.Links(); n != 2 {
				t.Errorf("%d links, want one at each node", n)
			}
			c.Close(w)
			m.CheckEmpty()
		})
	}
}

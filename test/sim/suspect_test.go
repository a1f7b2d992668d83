// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
)

// reselect asks for another path, as a client does whose packets have stopped.
func reselect(r *Raw, url string, req *networkservice.NetworkServiceRequest, got *networkservice.Connection) (*networkservice.Connection, error) {
	again := Again(req, got)
	again.Connection.State = networkservice.State_RESELECT_REQUESTED
	again.Connection.NetworkServiceEndpointName, again.Connection.Mechanism = "", nil
	return r.Request(url, again)
}

// Whoever asks for another path is not sent back to the endpoint that it comes
// from while there is another one.
func TestReselectLeavesTheEndpoint(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b, c := m.Node("a"), m.Node("b"), m.Node("c")
		b.Serve(Service{Name: "db", Endpoint: "one"})
		b.Serve(Service{Name: "db", Endpoint: "neighbour", CIDR: "10.61.0.0/24"})
		c.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.62.0.0/24"})
		for i := range 6 {
			web := m.Raw(fmt.Sprint("web-", i))
			req := web.Message("db")
			req.Connection.NetworkServiceEndpointName = "one"
			got, err := web.Request(a.ManagerURL(), req)
			if err != nil {
				t.Fatal(err)
			}
			if got, err = reselect(web, a.ManagerURL(), req, got); err != nil {
				t.Fatal(err)
			}
			// Its node may be what is broken.
			if name := got.GetNetworkServiceEndpointName(); name != "two" {
				t.Errorf("client %d was moved from one to %s", i, name)
			}
			if err := web.Close(a.ManagerURL(), got); err != nil {
				t.Error(err)
			}
		}
		m.CheckEmpty()
	})
}

// A node that is dead is found out once, not by every client and for every endpoint
// of it; when it is back it gets its share again.
func TestDeadNodeIsAskedOnce(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b, c := m.Node("a"), m.Node("b"), m.Node("c")
		b.Serve(Service{Name: "db", Endpoint: "one"})
		b.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
		c.Serve(Service{Name: "db", Endpoint: "three", CIDR: "10.62.0.0/24"})
		m.Network.SetFate(func(call Call) Fate {
			if call.To == b.ManagerURL() && call.From == "forwarder-a" {
				return Refuse
			}
			return Deliver
		})
		m.Network.Forget()
		web := a.Client("web")
		if got := connectMany(web, 12, ""); got["three"] != 12 {
			t.Errorf("clients were spread %v", got)
		}
		if n := m.Network.CallsTo(b.ManagerURL(), "Request"); n != 1 {
			t.Errorf("the dead node was asked %d times", n)
		}
		m.Network.SetFate(nil)
		Pass(40 * time.Second) // its endpoints have renewed their registrations
		if got := connectMany(web, 12, ""); got["one"] != 4 || got["two"] != 4 {
			t.Errorf("when the node is back clients were spread %v", got)
		}
		m.CheckEmpty()
	})
}

// Suspects are all that there is: they are asked.
func TestSuspectsAreNotLeftOut(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		b.Serve(Service{Name: "db"})
		web := m.Raw("web")
		req := web.Message("db")
		got, err := web.Request(a.ManagerURL(), req)
		if err != nil {
			t.Fatal(err)
		}
		if got, err = reselect(web, a.ManagerURL(), req, got); err != nil {
			t.Fatal(err)
		}
		if err := web.Close(a.ManagerURL(), got); err != nil {
			t.Error(err)
		}
		m.CheckEmpty()
	})
}

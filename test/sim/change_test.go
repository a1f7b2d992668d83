// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"cmp"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/client"
)

// A connection may be asked for anew with something changed. What it was before
// is gone.
func TestChangedRequests(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*networkservice.NetworkServiceRequest)
		want   string // endpoint
	}{
		{"another endpoint", func(r *networkservice.NetworkServiceRequest) {
			r.Connection.NetworkServiceEndpointName = "two"
		}, "two"},
		{"another endpoint on another node", func(r *networkservice.NetworkServiceRequest) {
			r.Connection.NetworkServiceEndpointName = "far"
		}, "far"},
		{"another service", func(r *networkservice.NetworkServiceRequest) {
			r.Connection.NetworkService, r.Connection.NetworkServiceEndpointName = "cache", ""
		}, "cache-a"},
		{"another path, any endpoint", func(r *networkservice.NetworkServiceRequest) {
			r.Connection.State, r.Connection.NetworkServiceEndpointName, r.Connection.Mechanism = networkservice.State_RESELECT_REQUESTED, "", nil
		}, ""},
		{"another interface name", func(r *networkservice.NetworkServiceRequest) {
			r.Connection.Mechanism.Parameters["name"] = "nsm-9"
		}, "one"},
		{"another MTU", func(r *networkservice.NetworkServiceRequest) {
			r.Connection.Context.MTU = 1300
		}, "one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				a, b := m.Node("a"), m.Node("b")
				one := a.Serve(Service{Name: "db", Endpoint: "one"})
				two := a.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
				far := b.Serve(Service{Name: "db", Endpoint: "far", CIDR: "10.62.0.0/24"})
				cache := a.Serve(Service{Name: "cache", CIDR: "10.63.0.0/24"})
				web := m.Raw("web")
				req := web.Message("db")
				req.Connection.NetworkServiceEndpointName = "one"
				got, err := web.Request(a.ManagerURL(), req)
				if err != nil {
					t.Fatal(err)
				}
				again := Again(req, got)
				tt.change(again)
				asked := proto.Clone(again.Connection).(*networkservice.Connection)
				if got, err = web.Request(a.ManagerURL(), again); err != nil {
					t.Fatal(err)
				}
				Pass(time.Second) // what is left of the old path lingers
				name := got.GetNetworkServiceEndpointName()
				if tt.want != "" && name != tt.want {
					t.Errorf("endpoint %s, want %s", name, tt.want)
				}
				for _, e := range []*Endpoint{one, two, far, cache} {
					want := 0
					if e.name == name {
						want = 1
					}
					if n := e.Server.Len(); n != want || len(e.Pool.Leases()) != want {
						t.Errorf("%s has %d connections and %d leases, want %d", e.name, n, len(e.Pool.Leases()), want)
					}
				}
				if links := a.Kernel.Links() + b.Kernel.Links(); links != 2 {
					t.Errorf("%d links", links)
				}
				if far.Server.Len() == 0 && b.Forwarder().Usage().Wires != 0 {
					t.Error("a wire is left on node b")
				}
				if asked.GetMechanism() != nil && got.GetMechanism().GetParameters()["name"] != asked.GetMechanism().GetParameters()["name"] {
					t.Errorf("interface %v, asked %v", got.GetMechanism(), asked.GetMechanism())
				}
				if mtu := asked.GetContext().GetMTU(); mtu < 1500 && tt.want == "one" && got.GetContext().GetMTU() != mtu && mtu != 0 {
					t.Errorf("MTU %d, asked %d", got.GetContext().GetMTU(), mtu)
				}
				if err := web.Close(a.ManagerURL(), got); err != nil {
					t.Error(err)
				}
				m.CheckEmpty()
			})
		})
	}
}

// An interface that nobody named keeps its name, whatever becomes of the path.
func TestGeneratedNameStays(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		one := a.Serve(Service{Name: "db", Endpoint: "one"})
		c := a.Client("web")
		w := c.Connect("kernel://db")
		name := w.Interface()
		b.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
		one.Vanish()
		Pass(time.Minute)
		if w.Connection().GetNetworkServiceEndpointName() != "two" || w.Interface() != name {
			t.Errorf("interface %s at %s, was %s at one", w.Interface(), w.Connection().GetNetworkServiceEndpointName(), name)
		}
		c.Close(w)
		m.CheckEmpty()
	})
}

// When a forwarder dies another one of the node takes its wires over. The dead
// one's interface stays, so that it needs another name.
func TestForwarderTakesOver(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		a.StartForwarder("second", map[string]string{"p2p": "true"})
		e := b.Serve(Service{Name: "db"})
		c := a.Client("web")
		w := c.Connect("kernel://db")
		through := w.Connection().GetPath().GetPathSegments()[2].GetName()
		if through != "forwarder-a" {
			t.Fatalf("through %s", through)
		}
		a.Forwarder().Stop()
		Pass(2 * time.Minute)
		segments := w.Connection().GetPath().GetPathSegments()
		if tries, _, err := w.Status(); err != nil || tries != 0 || len(segments) != 6 || segments[2].GetName() == through {
			t.Fatalf("%d tries, %v, path %v", tries, err, segments)
		}
		if e.Server.Len() == 0 {
			t.Error("no connection at the endpoint")
		}
		c.Close(w)
		a.StartForwarder("forwarder-a", map[string]string{"p2p": "true"})
		Pass(TokenLifetime) // of what only the dead one knew
		m.CheckEmpty()
	})
}

// A client that is closed while it connects neither hangs nor leaves anything.
func TestCloseWhileConnecting(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		a.Serve(Service{Name: "db"})
		c := a.Client("web")
		m.Network.SetFate(func(call Call) Fate {
			if call.Method == "Request" && call.From == "web" {
				return LoseReply
			}
			return Deliver
		})
		failed := make(chan error, 1)
		go func() {
			_, err := c.Try(t.Context(), "kernel://db/nsm-1")
			failed <- err
		}()
		Settle()
		start := time.Now()
		if err := c.Client.Close(); err != nil {
			t.Error(err)
		}
		if err := <-failed; err == nil {
			t.Error("connected after Close")
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("Close took %v", d)
		}
		m.CheckEmpty()
		if _, err := c.Try(t.Context(), "kernel://db/nsm-1"); err == nil {
			t.Error("a closed client connects")
		}
	})
}

// The MTU of a wire is that of its path. When the path becomes another one it is
// what the client has asked for, as far as the new one takes it.
func TestMTUOfAnotherPath(t *testing.T) {
	for _, wish := range []uint32{0, 9000, 1480, 1300} {
		Run(t, func(t *testing.T, m *Mesh) {
			a, b := m.Node("a"), m.Node("b")
			far := b.Serve(Service{Name: "db", Endpoint: "far"})
			c := a.Client("web")
			r := client.Request{Service: "db", Interface: "nsm-1"}
			if wish != 0 {
				r.Context = &networkservice.ConnectionContext{MTU: wish}
			}
			w, err := c.Ask(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			check := func(where string, want uint32) {
				t.Helper()
				if got := w.Connection().GetContext().GetMTU(); got != want || w.Connection().GetNetworkServiceEndpointName() != where {
					t.Errorf("asked for %d: MTU %d at %s, want %d at %s", wish, got, w.Connection().GetNetworkServiceEndpointName(), want, where)
				}
			}
			asked := cmp.Or(wish, 1500)
			check("far", min(asked, 1440))
			Pass(10 * time.Minute)
			check("far", min(asked, 1440))
			a.Serve(Service{Name: "db", Endpoint: "near", CIDR: "10.61.0.0/24"})
			far.Vanish()
			Pass(time.Minute)
			check("near", asked)
			Pass(10 * time.Minute)
			check("near", asked)
			c.Close(w)
			m.CheckEmpty()
		})
	}
}

// An underlay that takes less from now on, or more again, is noticed, and the wires over
// it follow at their next refresh.
func TestUnderlayMTUChanges(t *testing.T) {
	for _, shape := range shapes {
		if !shape.across {
			continue
		}
		t.Run(shape.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				m.Userspace = shape.tunnel
				a, b := m.Node("a"), m.Node("b")
				b.Serve(Service{Name: "db", Payload: shape.payload, CIDR: shape.cidr})
				c := a.Client("web")
				w := c.Connect("kernel://db/nsm-1")
				before := w.Connection().GetContext().GetMTU()
				for _, less := range []int{100, 0} {
					b.Kernel.SetUnderlayMTU(1500 - less)
					b.Forwarder().Reconcile(t.Context())
					b.Forwarder().Reconcile(t.Context())
					Pass(3 * time.Minute)
					if said := strings.Count(m.logs.String(), "the underlay's MTU has changed"); said != map[int]int{100: 1, 0: 2}[less] {
						t.Errorf("said %d times", said)
					}
					want := before - uint32(less)
					if shape.tunnel { // which is cut into sixteens
						want = before - uint32((less+15)/16*16)
					}
					if got := w.Connection().GetContext().GetMTU(); got != want || !Up(w) {
						t.Errorf("MTU %d over an underlay that takes %d bytes less than when it was %d", got, less, before)
					}
				}
				c.Close(w)
				m.CheckEmpty()
			})
		})
	}
}

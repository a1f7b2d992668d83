// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"
	"testing"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

func (m *Mesh) registered(name string) bool { return slices.Contains(m.Registered(), name) }

// An endpoint that was killed is known to be dead as soon as anybody has found out,
// on its node or elsewhere: no client is sent there any more. When it is back, it is
// known at once.
func TestDeadEndpointIsUnregistered(t *testing.T) {
	for _, tt := range []struct {
		name string
		find func(t *testing.T, m *Mesh, a, b *Node)
	}{
		{"by whom it served", nil}, // a wire from a to the endpoint, which is there before
		{"by a client elsewhere", func(t *testing.T, m *Mesh, a, b *Node) { m.ask(t, a, "one") }},
		{"by a client here", func(t *testing.T, m *Mesh, a, b *Node) { m.ask(t, b, "one") }},
		{"by clients here that got another one", func(t *testing.T, m *Mesh, a, b *Node) {
			for range 2 {
				m.ask(t, b, "")
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				a, b := m.Node("a"), m.Node("b")
				one := b.Serve(Service{Name: "db", Endpoint: "one"})
				web := a.Client("web")
				w := web.Connect("kernel://db/nsm-1")
				b.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
				if tt.find != nil {
					web.Close(w)
				}
				one.Vanish()
				if tt.find != nil {
					tt.find(t, m, a, b)
				}
				Pass(300 * time.Millisecond)
				if m.registered("one") {
					t.Error("the dead endpoint is still registered")
				}
				if n := m.logged("WARN", "endpoint is dead"); n != 1 {
					t.Errorf("said %d times", n)
				}
				Pass(10 * time.Second)
				if tt.find == nil {
					if got := w.Connection().GetNetworkServiceEndpointName(); got != "two" || !Up(w) {
						t.Errorf("the wire is at %s, %v", got, w.Connection().GetState())
					}
					web.Close(w)
				}
				back := one.service
				back.Pool = nil
				b.Serve(back)
				if !m.registered("one") {
					t.Error("it is back, and not registered")
				}
				if got := connectMany(web, 4, ""); got["one"] != 2 {
					t.Errorf("when it is back clients are spread %v", got)
				}
				m.CheckEmpty()
			})
		})
	}
}

// ask connects and closes a client; endpoint is the one it wants, "" for any.
func (m *Mesh) ask(t *testing.T, n *Node, endpoint string) {
	t.Helper()
	web := m.Raw("web")
	req := web.Message("db")
	req.Connection.NetworkServiceEndpointName = endpoint
	got, err := web.Request(n.ManagerURL(), req)
	switch {
	case endpoint == "" && err != nil:
		t.Error(err)
	case endpoint == "":
		if err := web.Close(n.ManagerURL(), got); err != nil {
			t.Error(err)
		}
	case err == nil:
		t.Error("a dead endpoint has answered")
	case nserr.From(err).Reason != nserr.EndpointGone && nserr.From(err).Reason != nserr.UnknownEndpoint:
		t.Error(err)
	}
	Settle()
}

// One that lives is not dropped because somebody could not reach it, and if it was
// dropped by mistake it is back at once.
func TestLivingEndpointStays(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		one := a.Serve(Service{Name: "db", Endpoint: "one"})
		refuse := func() {
			m.Network.SetFate(func(c Call) Fate {
				if c.To == one.url {
					return Refuse
				}
				return Deliver
			})
		}
		refuse()
		m.Network.Forget()
		m.ask(t, a, "one")
		if !m.registered("one") || m.Network.CallsBy("one", "Register") != 0 {
			t.Error("one was dropped")
		}
		a.abandoned.Store(true) // as it seems
		m.ask(t, a, "one")
		if m.registered("one") {
			t.Error("one is registered")
		}
		a.abandoned.Store(false)
		m.Network.SetFate(nil)
		Pass(200 * time.Millisecond)
		if !m.registered("one") {
			t.Error("one is not back")
		}
		web := a.Client("web")
		web.Close(web.Connect("kernel://db/nsm-1"))
		m.CheckEmpty()
	})
}

// The registry may be away meanwhile: then the node itself knows, and nothing waits.
func TestDeadEndpointWithoutRegistry(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		one := a.Serve(Service{Name: "db", Endpoint: "one"})
		a.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
		m.StopRegistry()
		one.Vanish()
		m.ask(t, a, "one")
		Pass(time.Second)
		m.Network.Forget()
		if got := connectMany(a.Client("web"), 6, ""); got["two"] != 6 {
			t.Errorf("clients are spread %v", got)
		}
		if n := m.Network.CallsTo(one.url, "Request"); n != 0 {
			t.Errorf("the dead endpoint was asked %d times", n)
		}
		m.StartRegistry()
	})
}

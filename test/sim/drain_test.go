// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/nserr"
)

// drain asks the manager of a node as an identity and returns what was told last.
func (m *Mesh) drain(ctx context.Context, n *Node, who string, req *adminv1.DrainRequest) (*adminv1.DrainProgress, error) {
	stream, err := adminv1.NewAdminClient(m.Stranger(who).Dial(n.ManagerURL())).Drain(ctx, req)
	if err != nil {
		return nil, err
	}
	var last *adminv1.DrainProgress
	for {
		p, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return last, nil
		case err != nil:
			return last, err
		}
		last = p
	}
}

// An endpoint that is drained loses all its wires to others, and gets none, until
// that is taken back. It goes on registering and notices nothing.
func TestDrain(t *testing.T) {
	for _, across := range []bool{false, true} {
		for _, who := range []string{"operator", "one"} {
			t.Run(fmt.Sprintf("across %v by %s", across, who), func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					a, b := m.Node("a"), m.Node("b")
					at := a
					if across {
						at = b
					}
					one := at.Serve(Service{Name: "db", Endpoint: "one"})
					var wires []*client.Wire
					c := a.Client("web")
					for i := range 5 {
						wires = append(wires, c.Connect(fmt.Sprintf("kernel://db/nsm-%d", i)))
					}
					two := b.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
					got, err := m.drain(t.Context(), at, who, &adminv1.DrainRequest{Endpoints: []string{"one"}})
					if err != nil || got.GetWires() != 0 || got.GetMoved() != 5 {
						t.Fatalf("%v, %v", got, err)
					}
					Pass(time.Second)
					for _, w := range wires {
						if name := w.Connection().GetNetworkServiceEndpointName(); name != "two" || !Up(w) {
							t.Errorf("wire %s is at %s, %v", w.ID(), name, w.Connection().GetState())
						}
					}
					if n := one.Server.Len(); n != 0 || two.Server.Len() != 5 || len(one.Pool.Leases()) != 0 {
						t.Errorf("%d connections at one, %d at two, leases %v", n, two.Server.Len(), one.Pool.Leases())
					}
					Pass(3 * time.Minute) // the endpoint renews its registration
					if names := m.Registered(); slices.Contains(names, "one") {
						t.Errorf("registered: %v", names)
					}
					for i := range 3 {
						w := c.Connect(fmt.Sprintf("kernel://db/more-%d", i))
						if name := w.Connection().GetNetworkServiceEndpointName(); name != "two" {
							t.Errorf("a new wire goes to %s", name)
						}
						c.Close(w)
					}
					if _, err := c.Ask(t.Context(), client.Request{Service: "db", Endpoint: "one", Interface: "pinned"}); err == nil {
						t.Error("who names it gets it")
					}

					if _, err := m.drain(t.Context(), at, who, &adminv1.DrainRequest{Endpoints: []string{"one"}, Undo: true}); err != nil {
						t.Fatal(err)
					}
					Pass(time.Second)
					if names := m.Registered(); !slices.Contains(names, "one") {
						t.Errorf("registered: %v", names)
					}
					w, err := c.Ask(t.Context(), client.Request{Service: "db", Endpoint: "one", Interface: "pinned"})
					if err != nil {
						t.Fatal(err)
					}
					for _, w := range append(wires, w) {
						c.Close(w)
					}
					m.CheckEmpty()
				})
			})
		}
	}
}

// A node that is drained has no wires to its endpoints left, and endpoints that come
// to it get none.
func TestDrainNode(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		b.Serve(Service{Name: "db", Endpoint: "far-db", CIDR: "10.62.0.0/24"})
		b.Serve(Service{Name: "lan", Endpoint: "far-lan", Payload: "ETHERNET", CIDR: "10.63.0.0/24"})
		c := a.Client("web")
		db, lan := c.Connect("kernel://db/nsm-1"), c.Connect("kernel://lan/nsm-2")
		a.Serve(Service{Name: "db", Endpoint: "near-db"})
		a.Serve(Service{Name: "lan", Endpoint: "near-lan", Payload: "ETHERNET", CIDR: "10.61.0.0/24"})
		if got, err := m.drain(t.Context(), b, "operator", &adminv1.DrainRequest{}); err != nil || got.GetMoved() != 2 {
			t.Fatalf("%v, %v", got, err)
		}
		b.Serve(Service{Name: "db", Endpoint: "late-db", CIDR: "10.64.0.0/24"})
		Pass(time.Minute)
		for w, want := range map[*client.Wire]string{db: "near-db", lan: "near-lan"} {
			if name := w.Connection().GetNetworkServiceEndpointName(); name != want {
				t.Errorf("%s is at %s", w.ID(), name)
			}
		}
		if names := m.Registered(); !slices.Equal(names, []string{"forwarder-a", "forwarder-b", "near-db", "near-lan"}) {
			t.Errorf("registered: %v", names)
		}
		if _, err := m.drain(t.Context(), b, "operator", &adminv1.DrainRequest{Endpoints: []string{"far-db"}, Undo: true}); !errors.Is(err, nserr.BadRequest) {
			t.Errorf("one endpoint of a node that is drained: %v", err)
		}
		// What comes later is registered when the drain is taken back: at its next renewal.
		if _, err := m.drain(t.Context(), b, "operator", &adminv1.DrainRequest{Undo: true}); err != nil {
			t.Fatal(err)
		}
		Pass(time.Second)
		if names := m.Registered(); !slices.Contains(names, "late-db") || !slices.Contains(names, "far-lan") {
			t.Errorf("registered: %v", names)
		}
		c.Close(db)
		c.Close(lan)
		m.CheckEmpty()
	})
}

// Wires that have nowhere to go stay, and are told.
func TestDrainWithoutAlternative(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", true)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		got, err := m.drain(ctx, r.b, "operator", &adminv1.DrainRequest{Endpoints: []string{"db-b"}})
		if !errors.Is(err, nserr.TimedOut) || got.GetWires() != 1 || !slices.Equal(got.GetStuck(), []string{r.w.ID()}) {
			t.Errorf("%v, %v", got, err)
		}
		if _, err := m.drain(t.Context(), r.b, "operator", &adminv1.DrainRequest{Endpoints: []string{"db-b"}, Undo: true}); err != nil {
			t.Fatal(err)
		}
		Pass(time.Minute)
		if !Up(r.w) || r.w.Connection().GetNetworkServiceEndpointName() != "db-b" {
			t.Errorf("the wire is %v", r.w.Connection())
		}
		r.c.Close(r.w)
		m.CheckEmpty()
	})
}

// Not everybody may drain, and not everything is there to be drained.
func TestDrainRefused(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", true)
		for name, tt := range map[string]struct {
			node *Node
			who  string
			req  *adminv1.DrainRequest
			want error
		}{
			"somebody":            {r.b, "web", &adminv1.DrainRequest{Endpoints: []string{"db-b"}}, nserr.NotAllowed},
			"somebody, the node":  {r.b, "db-b", &adminv1.DrainRequest{}, nserr.NotAllowed},
			"nothing":             {r.b, "operator", &adminv1.DrainRequest{Endpoints: []string{"none"}}, nserr.UnknownEndpoint},
			"on another node":     {r.a, "operator", &adminv1.DrainRequest{Endpoints: []string{"db-b"}}, nserr.UnknownEndpoint},
			"a forwarder":         {r.b, "operator", &adminv1.DrainRequest{Endpoints: []string{"forwarder-b"}}, nserr.UnknownEndpoint},
			"one of two is there": {r.b, "operator", &adminv1.DrainRequest{Endpoints: []string{"db-b", "none"}}, nserr.UnknownEndpoint},
		} {
			if _, err := m.drain(t.Context(), tt.node, tt.who, tt.req); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", name, err, tt.want)
			}
		}
		if !slices.Contains(m.Registered(), "db-b") || r.w.Connection().GetState() != networkservice.State_UP {
			t.Error("something was drained")
		}
	})
}

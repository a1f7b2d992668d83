// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"slices"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/payload"
	"github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/sdk/client"
	nse "github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

// referenceNode is a node whose manager, forwarder and registry are the reference's.
type referenceNode struct {
	registry, manager, forwarder *ref.Server
}

func newReferenceNode(t *testing.T, as func(string) ref.Security) referenceNode {
	t.Helper()
	reg := ref.Registry(t, as("registry"), ref.Loopback)
	manager := ref.Manager(t, as("manager"), ref.ManagerConfig{Name: "manager", Registry: reg.URL()})
	forwarder := ref.Forwarder(t, as("forwarder"), ref.ForwarderConfig{Name: "forwarder", Manager: manager.URL()})
	return referenceNode{reg, manager, forwarder}
}

func ipService(name string) *registry.NetworkService {
	return &registry.NetworkService{Name: name, Payload: payload.IP}
}

// Our client and endpoint on a node of the reference's: the endpoint registers
// itself and its service, the path is checked as the reference's own clients do,
// the client's refresh keeps the wire, and watchers of the reference's manager see
// an empty first state, every refresh, and the end.
func TestOurWorkloadsOnReferenceNode(t *testing.T) {
	t.Parallel() // mostly it waits
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		node := newReferenceNode(t, as)
		server := ourEndpoint(t, as("endpoint"), "nse", ipService("echo"), "10.30.0.0/24", node.manager.URL())
		user := as("client")
		user.Lifetime = refreshedTokens
		c := ourClient(t, user, "client", node.manager.URL())

		events, known := watch(t, ours.Dial(t, as("observer"), node.manager.URL()), "client", "")
		if len(known) != 0 {
			t.Errorf("known before anybody asked: %v", known)
		}
		wire, in := connect(t, c, "echo", "nsm-c")
		made := events.untilUp()

		conn := wire.Connection()
		if got, want := names(conn.GetPath()), []string{"client", "manager", "forwarder", "nse"}; !slices.Equal(got, want) {
			t.Errorf("path %v, want %v", got, want)
		}
		for _, s := range conn.GetPath().GetPathSegments() {
			if s.GetExpires() == nil {
				t.Errorf("segment %s does not say when it expires", s.GetName())
			}
		}
		if want := inodeURL(t, in); conn.GetMechanism().GetParameters()["inodeURL"] != want {
			t.Errorf("the client's namespace came back as %v, want %s", conn.GetMechanism(), want)
		}
		if got := wire.Addrs(); len(got) != 1 || got[0].String() != "10.30.0.1" {
			t.Errorf("addresses %v", got)
		}
		if wire.Interface() != "nsm-c" {
			t.Errorf("interface %q", wire.Interface())
		}
		until := made.GetPath().GetPathSegments()[0].GetExpires().AsTime()
		events.until("a refresh by the client", func(_ networkservice.ConnectionEventType, conn *networkservice.Connection) bool {
			return conn.GetPath().GetPathSegments()[0].GetExpires().AsTime().After(until)
		})

		last, held := watch(t, ours.Dial(t, as("forwarder"), server.URL), "nse", "")
		if len(held) != 1 {
			t.Errorf("the endpoint has %v", held)
		}
		if err := wire.Close(soon(t)); err != nil {
			t.Errorf("close: %v", err)
		}
		events.untilDeleted()
		last.untilDeleted()
	})
}

// An endpoint put together as programs do it comes and goes at the reference's
// manager, and nobody else can take its name.
func TestOurEndpointAtReferenceManager(t *testing.T) {
	ca := ref.NewCA(t, "example.org")
	as := func(path string) ref.Security { return ca.MutualTLS(t, path) }
	node := newReferenceNode(t, as)
	direct := ref.NewRegistryClient(t.Context(), t, as("observer"), node.registry.URL())
	in := newWorkload(t)
	config := nse.Config{
		Name: "nse", Services: []nse.Service{{Name: "echo", Labels: map[string]string{"role": "primary"}}},
		Handler: nse.Chain(nse.Interface(in.File()), nse.Addresses(ours.Addresses(t, "10.30.0.0/24"), nse.Strict)),
		Manager: node.manager.URL(), Source: source{as("endpoint")}, Logger: ours.Quiet,
	}
	e, err := nse.Serve(soon(t), config)
	if err != nil {
		t.Fatal(err)
	}
	events := watchEndpoints(t, direct, &registry.NetworkServiceEndpoint{Name: "nse"})
	if got := events.want("nse", false); got.GetNetworkServiceLabels()["echo"].GetLabels()["role"] != "primary" {
		t.Errorf("registered as %v", got)
	}

	thief := config
	thief.Source = source{as("thief")}
	if stolen, err := nse.Serve(soon(t), thief); err == nil {
		t.Error("another identity could register under the same name")
		_ = stolen.Stop(soon(t))
	}

	c := ourClient(t, as("client"), "client", node.manager.URL())
	wire, _ := connect(t, c, "echo", "nsm-c")
	if got := wire.Connection().GetNetworkServiceEndpointName(); got != "nse" {
		t.Errorf("the wire leads to %q", got)
	}
	if err := wire.Close(soon(t)); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := e.Stop(soon(t)); err != nil {
		t.Errorf("stop: %v", err)
	}
	events.want("nse", true)
}

// untilState waits until the wire is in the state, and returns the connection.
func untilState(t *testing.T, w *client.Wire, what string, want func(*networkservice.Connection) bool) *networkservice.Connection {
	t.Helper()
	ctx := soon(t)
	for {
		attempts, changed, err := w.Status()
		if conn := w.Connection(); want(conn) {
			return conn
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%s: not seen; %d attempts failed, the last with %v; the connection is %v", what, attempts, err, w.Connection())
		}
	}
}

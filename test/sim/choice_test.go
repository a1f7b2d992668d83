// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/regpath"
)

// connectMany connects n clients and counts which endpoint they got.
func connectMany(c *Client, n int, query string) map[string]int {
	c.mesh.t.Helper()
	got := make(map[string]int)
	for i := range n {
		w := c.Connect(fmt.Sprintf("kernel://db/nsm-%d%s", i, query))
		got[w.Connection().GetNetworkServiceEndpointName()]++
		c.Close(w)
	}
	return got
}

func TestRoundRobin(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		a.Serve(Service{Name: "db", Endpoint: "one"})
		b.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
		b.Serve(Service{Name: "db", Endpoint: "three", CIDR: "10.62.0.0/24"})
		if got := connectMany(a.Client("web"), 12, ""); got["one"] != 4 || got["two"] != 4 || got["three"] != 4 {
			t.Errorf("clients were spread %v", got)
		}
		m.CheckEmpty()
	})
}

// to makes a route of a match.
func to(weight uint32, key, value string) *api.Destination {
	return &api.Destination{DestinationSelector: map[string]string{key: value}, Weight: weight}
}

// A weight is the destination's, however many endpoints it has.
func TestWeights(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		m.Apply(a, &api.NetworkService{Name: "db", Matches: []*api.Match{{Routes: []*api.Destination{to(3, "size", "big"), to(1, "size", "small")}}}})
		for i := range 3 {
			a.Serve(Service{Name: "db", Endpoint: fmt.Sprintf("big-%d", i), Labels: map[string]string{"size": "big"}, CIDR: fmt.Sprintf("10.60.%d.0/24", i)})
		}
		a.Serve(Service{Name: "db", Endpoint: "small", Labels: map[string]string{"size": "small"}, CIDR: "10.61.0.0/24"})
		got := connectMany(a.Client("web"), 60, "")
		if got["small"] < 13 || got["small"] > 17 || got["big-0"] < 12 || got["big-1"] < 12 || got["big-2"] < 12 {
			t.Errorf("weights 3, of three endpoints, and 1 spread 60 clients %v", got)
		}
	})
}

// Rules are tried in order; templates compare with the client's labels, among
// them the node's.
func TestMatches(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		m.Apply(a, &api.NetworkService{Name: "db"}) // the operator's
		a.Serve(Service{Name: "db", Endpoint: "on-a", Labels: map[string]string{"app": "db"}})
		b.Serve(Service{Name: "db", Endpoint: "on-b", Labels: map[string]string{"app": "db"}, CIDR: "10.61.0.0/24"})
		b.Serve(Service{Name: "db", Endpoint: "firewall", Labels: map[string]string{"app": "firewall"}, CIDR: "10.62.0.0/24"})
		c := m.Node("c")
		for _, tt := range []struct {
			name    string
			matches []*api.Match
			at      *Node
			query   string
			want    string // endpoint, or the reason it fails with
		}{
			{"the endpoint on the client's own node", []*api.Match{
				{Routes: []*api.Destination{to(0, "nodeName", "{{.nodeName}}")}},
			}, a, "", "on-a"},
			{"on the other one as well", []*api.Match{
				{SourceSelector: map[string]string{"app": "web"}, Routes: []*api.Destination{{DestinationSelector: map[string]string{"nodeName": "{{.nodeName}}", "app": "db"}}}},
			}, b, "?app=web", "on-b"},
			{"none there, and no fallthrough", []*api.Match{
				{Routes: []*api.Destination{to(0, "nodeName", "{{.nodeName}}")}},
				{Routes: []*api.Destination{to(0, "app", "firewall")}},
			}, c, "", "NSM-3003"},
			{"none there, fallthrough", []*api.Match{
				{Fallthrough: true, Routes: []*api.Destination{to(0, "nodeName", "{{.nodeName}}")}},
				{Routes: []*api.Destination{to(0, "app", "firewall")}},
			}, c, "", "firewall"},
			{"by the client's labels", []*api.Match{
				{SourceSelector: map[string]string{"app": "firewall"}, Routes: []*api.Destination{to(0, "nodeName", "a")}},
				{Routes: []*api.Destination{to(0, "app", "firewall")}},
			}, c, "?app=firewall", "on-a"},
			{"by the client's labels, otherwise", []*api.Match{
				{SourceSelector: map[string]string{"app": "firewall"}, Routes: []*api.Destination{to(0, "nodeName", "a")}},
				{Routes: []*api.Destination{to(0, "app", "firewall")}},
			}, c, "?app=web", "firewall"},
		} {
			m.Apply(a, &api.NetworkService{Name: "db", Matches: tt.matches})
			client := tt.at.Client("web")
			w, err := client.Try(t.Context(), "kernel://db/nsm-1"+tt.query)
			got := ""
			if err != nil {
				got = nserr.From(err).Reason.Code
			} else {
				got = w.Connection().GetNetworkServiceEndpointName()
				client.Close(w)
			}
			if got != tt.want {
				t.Errorf("%s: %s, want %s (%v)", tt.name, got, tt.want, err)
			}
			client.Vanish()
		}
		m.CheckEmpty()
	})
}

// The metadata of a match names what a forwarder must be able to do.
func TestForwarderSelection(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.BareNode("a")
		a.StartForwarder("plain", map[string]string{"p2p": "true"})
		a.StartForwarder("fast", map[string]string{"p2p": "true", "fast": "yes"})
		a.StartForwarder("odd", map[string]string{"fast": "yes"})
		m.Apply(a, &api.NetworkService{Name: "db"}) // the operator's
		a.Serve(Service{Name: "db"})
		c := a.Client("web")
		for _, tt := range []struct {
			name string
			meta *api.Metadata
			want []string
		}{
			{"by default those for point-to-point wires", nil, []string{"plain", "fast"}},
			{"those that are fast", &api.Metadata{Labels: map[string]string{"fast": "yes", "p2p": "true"}}, []string{"fast"}},
			{"nobody", &api.Metadata{Labels: map[string]string{"fast": "very"}}, nil},
		} {
			m.Apply(a, &api.NetworkService{Name: "db", Matches: []*api.Match{{Metadata: tt.meta, Routes: []*api.Destination{{}}}}})
			w, err := c.Try(t.Context(), "kernel://db/nsm-1")
			if len(tt.want) == 0 {
				if nserr.From(err).Reason != nserr.NoForwarder {
					t.Errorf("%s: %v", tt.name, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			through := w.Connection().GetPath().GetPathSegments()[2].GetName()
			if through != tt.want[0] && through != tt.want[len(tt.want)-1] {
				t.Errorf("%s: through %s, want one of %v", tt.name, through, tt.want)
			}
			Pass(5 * time.Minute)
			if now := w.Connection().GetPath().GetPathSegments()[2].GetName(); now != through {
				t.Errorf("%s: a refresh moved the wire from %s to %s", tt.name, through, now)
			}
			c.Close(w)
		}
		m.CheckEmpty()
	})
}

// While the registry is away, wires are refreshed, new ones are made from what is
// known, and a forwarder can even start.
func TestRegistryAway(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", false)
		m.StopRegistry()
		Pass(40 * time.Second) // registrations are renewed after half a minute at most
		other := r.a.Client("other")
		if w, err := other.Try(t.Context(), "kernel://db/nsm-1"); err != nil {
			t.Errorf("a new wire: %v", err)
		} else {
			other.Close(w)
		}
		Pass(20 * time.Minute)
		if tries, _, err := r.w.Status(); err != nil || tries != 0 || !Up(r.w) {
			t.Errorf("after 20 minutes without a registry: %d tries, %v", tries, err)
		}
		r.a.Forwarder().Restart()
		Pass(10 * time.Minute)
		if tries, _, err := r.w.Status(); err != nil || tries != 0 || !Up(r.w) {
			t.Errorf("after a restart of the forwarder: %d tries, %v", tries, err)
		}
		m.StartRegistry()
		Pass(5 * time.Second)
		if names := m.Registered(); len(names) != 2 {
			t.Errorf("the new registry knows %v", names)
		}
		w := other.Connect("kernel://db/nsm-1")
		other.Close(w)
		r.c.Close(r.w)
		m.CheckEmpty()
	})
}

// A watcher of the registry that does not read delays nobody, and learns in the
// end what is true.
func TestSlowRegistryWatcher(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		s := m.Stranger("slow")
		stream, err := api.NewNetworkServiceEndpointRegistryClient(s.Dial(RegistryURL)).Find(t.Context(),
			&api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: &api.NetworkServiceEndpoint{}, Watch: true})
		if err != nil {
			t.Fatal(err)
		}
		a := m.Node("a")
		registrar := m.Stranger("registrar")
		client := api.NewNetworkServiceEndpointRegistryClient(registrar.Dial(RegistryURL))
		ctx := regpath.Path{}.ToOutgoing(t.Context())
		start := time.Now()
		const many = 200
		for i := range many {
			nse := &api.NetworkServiceEndpoint{Name: fmt.Sprintf("e-%03d", i), NetworkServiceNames: []string{"x"}, Url: "tcp://x:1"}
			if _, err := client.Register(ctx, nse); err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 {
				if _, err := client.Unregister(ctx, nse); err != nil {
					t.Fatal(err)
				}
			}
		}
		Settle()
		if d := time.Since(start); d != 0 {
			t.Errorf("registering took %v with a watcher that does not read", d)
		}
		found, err := api.NewNetworkServiceEndpointRegistryClient(registrar.Dial(a.ManagerURL())).Find(
			metadata.NewOutgoingContext(t.Context(), nil), &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"x"}}})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(api.ReadNetworkServiceEndpointList(found)); n != many/2 {
			t.Errorf("the manager knows %d of %d", n, many/2)
		}
		known := make(map[string]bool)
		for known["e-199"] == false {
			r, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if r.GetDeleted() {
				delete(known, r.GetNetworkServiceEndpoint().GetName())
			} else {
				known[r.GetNetworkServiceEndpoint().GetName()] = true
			}
			Settle()
		}
		delete(known, "forwarder-a")
		if len(known) != many/2 || known["e-000"] || !known["e-001"] {
			t.Errorf("the slow watcher knows %d, want %d", len(known), many/2)
		}
	})
}

// Who names an endpoint gets that one or none.
func TestPinnedEndpoint(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		a.Serve(Service{Name: "db", Endpoint: "one"})
		two := b.Serve(Service{Name: "db", Endpoint: "two", CIDR: "10.61.0.0/24"})
		c := a.Client("web")
		for range 4 {
			w, err := c.Ask(t.Context(), client.Request{Service: "db", Interface: "nsm-1", Endpoint: "two"})
			if err != nil {
				t.Fatal(err)
			}
			if got := w.Connection().GetNetworkServiceEndpointName(); got != "two" {
				t.Errorf("asked for two, got %s", got)
			}
			c.Close(w)
		}
		w, err := c.Ask(t.Context(), client.Request{Service: "db", Endpoint: "two"})
		if err != nil {
			t.Fatal(err)
		}
		two.Vanish()
		Pass(2 * time.Minute)
		if tries, _, err := w.Status(); err == nil || tries == 0 {
			t.Errorf("connected to %s while two was away", w.Connection().GetNetworkServiceEndpointName())
		}
		two.Restart()
		Pass(time.Minute)
		if _, _, err := w.Status(); err != nil || w.Connection().GetNetworkServiceEndpointName() != "two" {
			t.Errorf("when two is back: %v, connected to %s", err, w.Connection().GetNetworkServiceEndpointName())
		}
		c.Close(w)
		if _, err := c.Ask(t.Context(), client.Request{Service: "db", Endpoint: "three"}); nserr.From(err).Reason != nserr.UnknownEndpoint {
			t.Errorf("an endpoint that does not exist: %v", err)
		}
		m.CheckEmpty()
	})
}

// A mechanism that turns out not to work leaves the turn to the next one; if none
// works the client is told why for each.
func TestNextMechanism(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		a.Serve(Service{Name: "db", Payload: "ETHERNET"})
		web := m.Raw("web")
		req := web.Message("db")
		kernel := req.MechanismPreferences[0]
		broken := &networkservice.Mechanism{Cls: "REMOTE", Type: "VXLAN"} // from nowhere
		nameless := proto.Clone(kernel).(*networkservice.Mechanism)
		delete(nameless.Parameters, "inodeURL")

		req.MechanismPreferences = []*networkservice.Mechanism{broken, nameless, kernel}
		got, err := web.Request(a.ManagerURL(), req)
		if err != nil {
			t.Fatal(err)
		}
		if got.GetMechanism().GetType() != "KERNEL" || a.Kernel.Links() != 2 {
			t.Errorf("mechanism %v, %d links", got.GetMechanism(), a.Kernel.Links())
		}
		if err := web.Close(a.ManagerURL(), got); err != nil {
			t.Error(err)
		}

		req = web.Message("db")
		req.MechanismPreferences = []*networkservice.Mechanism{broken, nameless}
		_, err = web.Request(a.ManagerURL(), req)
		if !errors.Is(err, nserr.BadMechanism) || !strings.Contains(err.Error(), "src_ip") || !strings.Contains(err.Error(), "inodeURL") {
			t.Errorf("none works: %v", err)
		}
		m.CheckEmpty()
	})
}

// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/watch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open lets everybody see everything.
type open struct{}

func (open) Admit(rpc.Caller, path.Path, time.Time) error { return nil }
func (open) IsObserver(string) bool                       { return true }

// newServer returns the server of manager "mgr" on node "a". Each endpoint is
// "NAME SERVICE URL" and may have a node's name.
func newServer(t testing.TB, endpoints ...string) *Server {
	t.Helper()
	c := Config{
		Name: "mgr", URL: "tcp://a:5001", Labels: map[string]string{nodeLabel: "a"}, ForwarderService: "forwarder",
		Wires:     hop.NewMonitor(open{}),
		Endpoints: watch.New[string, *registry.NetworkServiceEndpoint](),
	}
	for _, e := range endpoints {
		f := strings.Fields(e)
		nse := &registry.NetworkServiceEndpoint{Name: f[0], NetworkServiceNames: []string{f[1]}, Url: f[2]}
		if len(f) > 3 {
			nse.NetworkServiceLabels = map[string]*registry.NetworkServiceLabels{f[1]: {Labels: map[string]string{nodeLabel: f[3]}}}
		}
		c.Endpoints.Put(nse.Name, nse)
	}
	c.Offering = func(service string) (out []*registry.NetworkServiceEndpoint) {
		for _, nse := range c.Endpoints.All() {
			if slices.Contains(nse.NetworkServiceNames, service) {
				out = append(out, nse)
			}
		}
		return out
	}
	c.Here = func(nse *registry.NetworkServiceEndpoint, _ time.Time) (*registry.NetworkServiceEndpoint, bool) {
		return nse, true
	}
	return New(c)
}

// publish makes a wire known whose path has these names; "mgr" at index is us.
func (s *Server) publish(index int, names string, change ...func(*networkservice.Connection)) *hop.View {
	c := &networkservice.Connection{
		NetworkService: "db", NetworkServiceEndpointName: "db-1", Path: &networkservice.Path{Index: uint32(index)},
		Mechanism: &networkservice.Mechanism{Cls: mechanism.Local, Type: mechanism.TypeKernel, Parameters: map[string]string{"name": "nsm-1"}},
	}
	for i, name := range strings.Fields(names) {
		c.Path.PathSegments = append(c.Path.PathSegments, &networkservice.PathSegment{Name: name, Id: name + string(rune('0'+i))})
	}
	c.Id = c.Path.PathSegments[index].Id
	for _, f := range change {
		f(c)
	}
	s.config.Wires.Publish(c)
	v, _ := s.config.Wires.Get(c.Id)
	return v
}

func TestTrail(t *testing.T) {
	s := newServer(t, "fwd forwarder tcp://a:5001", "fwd-b forwarder tcp://b:5001 b", "fwd-c forwarder tcp://c:5001",
		"db-1 db tcp://b:5001", "mid chain tcp://a:5001")
	labelled := func(c *networkservice.Connection) { c.Labels = map[string]string{nodeLabel: "b"} }
	for _, tt := range []struct {
		name   string
		view   *hop.View
		roles  string // initials
		nodes  string // "-" is not known
		client string
		end    string
	}{
		{"one node", s.publish(1, "web mgr fwd db-1"), "CMFE", "a a a b", "web", "db-1"},
		{"across nodes", s.publish(1, "web mgr fwd mgr-b fwd-b db-1"), "CMFMFE", "a a a b b b", "web", "db-1"},
		{"from elsewhere", s.publish(3, "web mgr-b fwd-b mgr fwd db-1", labelled), "CMFMFE", "b b b a a b", "web", "db-1"},
		{"endpoint with another name", s.publish(1, "web mgr fwd segment"), "CMFE", "a a a b", "web", "segment"},
		{"forwarder nobody knows", s.publish(1, "web mgr gone db-1"), "CMFE", "a a - b", "web", "db-1"},
		{"node without a name", s.publish(1, "web mgr fwd mgr-c fwd-c x"), "CMFMFE", "a a a c:5001 c:5001 b", "web", "x"},
		{"chain, first wire", s.publish(1, "web mgr fwd mid mgr fwd db-1"), "CMFEMFE", "a a a a a a b", "web", "mid"},
		{"chain, second wire", s.publish(4, "web mgr fwd mid mgr fwd db-1"), "CMFEMFE", "- a a a a a b", "mid", "db-1"},
		{"ends here", s.publish(1, "web mgr"), "CM", "a a", "web", "mgr"},
	} {
		tr := s.trail(tt.view)
		var roles string
		var nodes []string
		for _, h := range tr.hops {
			roles += strings.TrimPrefix(h.GetRole().String(), "ROLE_")[:1]
			node := h.GetNode()
			if node == "" {
				node = "-"
			}
			nodes = append(nodes, node)
		}
		if got := strings.Join(nodes, " "); roles != tt.roles || got != tt.nodes {
			t.Errorf("%s: roles %s on %s, want %s on %s", tt.name, roles, got, tt.roles, tt.nodes)
		}
		if c, e := tr.hops[tr.client].GetName(), tr.hops[tr.endpoint].GetName(); c != tt.client || e != tt.end {
			t.Errorf("%s: from %s to %s, want from %s to %s", tt.name, c, e, tt.client, tt.end)
		}
	}
}

// What a forwarder's metrics say of the workloads' interfaces.
func TestInterfaces(t *testing.T) {
	s := newServer(t, "fwd forwarder tcp://a:5001", "fwd-b forwarder tcp://b:5001 b")
	metrics := func(at int, server, client string) func(*networkservice.Connection) {
		return func(c *networkservice.Connection) {
			c.Path.PathSegments[at].Metrics = map[string]string{"server_interface": server, "client_interface": client}
		}
	}
	tunnel := func(c *networkservice.Connection) {
		c.Mechanism = &networkservice.Mechanism{Cls: mechanism.Remote, Type: mechanism.TypeVXLAN}
	}
	near := s.publish(1, "web mgr fwd mgr-b fwd-b db-1", metrics(2, "KERNEL/ignored", "VXLAN/nsm-1"), metrics(4, "VXLAN/db-1", "KERNEL/db-1"))
	far := s.publish(3, "web mgr-b fwd-b mgr fwd db-1", tunnel, metrics(2, "KERNEL/nsm-1", "VXLAN/nsm-1"), metrics(4, "VXLAN/db-9", "KERNEL/db-9"))
	silent := s.publish(1, "web mgr fwd db-1")
	for _, tt := range []struct {
		view *hop.View
		want string
	}{
		{near, "KERNEL nsm-1, VXLAN db-1"},
		{far, "VXLAN nsm-1, KERNEL db-9"},
		{silent, "KERNEL nsm-1,  "},
	} {
		w := s.trail(tt.view).summary()
		got := w.GetClient().GetMechanism() + " " + w.GetClient().GetInterface() + ", " + w.GetEndpoint().GetMechanism() + " " + w.GetEndpoint().GetInterface()
		if got != tt.want {
			t.Errorf("at %s: %q, want %q", tt.view.Conn().GetId(), got, tt.want)
		}
	}
}

// A forwarder that is not ours, or not there, is shown as such.
func TestDescribeWithoutForwarder(t *testing.T) {
	reference := rpc.NewLocal(rpc.LocalOptions{})
	defer reference.Close()
	peers := peer.NewPool(peer.PoolConfig{Dial: func(string) (grpc.ClientConnInterface, io.Closer, error) {
		return reference.Dial(rpc.LocalCaller{}), nil, nil
	}})
	defer peers.Close()
	s := newServer(t, "fwd forwarder tcp://a:5001")
	s.config.Peers = peers
	local := rpc.NewLocal(rpc.LocalOptions{})
	defer local.Close()
	adminv1.RegisterAdminServer(local, s)
	client := adminv1.NewAdminClient(local.Dial(rpc.LocalCaller{Identity: func() rpc.Identity { return rpc.Identity{ID: "spiffe://test/web"} }}))

	for _, tt := range []struct{ path, want string }{
		{"web mgr fwd db-1", "does not serve nsm.admin.v1"},
		{"web mgr gone db-1", "not registered"},
	} {
		v := s.publish(1, tt.path)
		d, err := client.DescribeWire(t.Context(), &adminv1.DescribeWireRequest{Id: v.Conn().GetId()})
		if err != nil {
			t.Fatal(err)
		}
		if len(d.GetKernel()) != 1 || !strings.Contains(d.GetKernel()[0].GetError(), tt.want) || d.GetKernel()[0].GetForwarder() != strings.Fields(tt.path)[2] {
			t.Errorf("%s: kernel %v, want %q", tt.path, d.GetKernel(), tt.want)
		}
		if len(d.GetLegs()) != 1 || d.GetLegs()[0].GetType() != mechanism.TypeKernel || d.GetLegs()[0].GetFrom() != "web" {
			t.Errorf("%s: legs %v", tt.path, d.GetLegs())
		}
	}
}

// A hop is believed about the hops behind us only, and where nobody knows better.
func TestLearn(t *testing.T) {
	s := newServer(t, "fwd forwarder tcp://a:5001")
	tr := s.trail(s.publish(1, "web mgr fwd mgr-b fwd-b x"))
	d := &adminv1.WireDescription{}
	version := &adminv1.BuildVersion{Version: "v9"}
	tr.learn(d, &adminv1.WireDescription{
		Hops: []*adminv1.Hop{
			{Id: "web0", Node: "lie", Version: version}, {Id: "mgr1", Node: "lie", Version: version}, {Id: "fwd2", Node: "lie", Version: version},
			{Id: "mgr-b3", Node: "b"}, {Id: "fwd-b4", Node: "b", Version: version}, {Id: "unknown", Node: "lie"},
		},
		Kernel: []*adminv1.KernelObjects{{Forwarder: "fwd"}, {Forwarder: "fwd-b"}, {Forwarder: "stranger"}},
	})
	var got []string
	for _, h := range tr.hops {
		got = append(got, h.GetNode()+"/"+h.GetVersion().GetVersion())
	}
	for _, k := range d.GetKernel() {
		got = append(got, k.GetNode())
	}
	if want := []string{"a/", "a/", "a/v9", "b/", "b/v9", "/", "a", "b", ""}; !slices.Equal(got, want) {
		t.Errorf("learnt %q, want %q", got, want)
	}
}

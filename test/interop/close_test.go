// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/kernel"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/sendfd"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/next"

	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

// ourNode is a node of ours with two endpoints of the reference's.
type ourNode struct {
	registry  ours.Part
	manager   managerPart
	forwarder forwarderPart
	servers   map[string]*workload // of the endpoints, by name
}

func newOurNode(t *testing.T, as func(string) ref.Security) ourNode {
	t.Helper()
	reg := refRegistry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
	manager := ourManager(t, as("manager"), "manager", reg.URL)
	n := ourNode{registry: reg, manager: manager, servers: make(map[string]*workload),
		forwarder: ourForwarder(t, as("forwarder"), "forwarder", manager.URL, tunnelIP)}
	ref.RegisterService(t, as("operator"), reg.URL, ipService("echo"))
	for name, cidr := range map[string]string{"nse-1": "10.61.0.0/24", "nse-2": "10.62.0.0/24"} {
		n.servers[name] = newWorkload(t)
		ref.Endpoint(t, as(name), ref.EndpointConfig{
			Name: name, Service: "echo", CIDR: cidr, Manager: manager.URL, NetNS: n.servers[name].path(), IfName: "nsm-e",
		})
	}
	return n
}

// The reference closes what our manager does not know, never has or no longer:
// after a restart the Close still takes the wire away.
func TestReferenceClosesAtOurManager(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		node := newOurNode(t, as)
		raw := networkservice.NewNetworkServiceClient(dialRef(t, as("client"), node.manager.URL))
		if _, err := raw.Close(soon(t), &networkservice.Connection{
			Id: "never", NetworkService: "echo",
			Path: &networkservice.Path{PathSegments: []*networkservice.PathSegment{{Name: "client", Id: "never"}}},
		}); err != nil {
			t.Errorf("close of an unknown connection: %v", err)
		}

		workload := newWorkload(t)
		client := ref.Client(t, as("client"), ref.ClientConfig{Name: "client", Manager: node.manager.URL, NetNS: workload.path(), IfName: "nsm-c"})
		conn := mustRequest(t, client, "id", "echo")
		node.manager.Stop()
		ourManagerAt(t, as("manager"), "manager", node.registry.URL, node.manager.URL, node.manager.public)
		watchEndpoints(t, ourRegistryClient(t, as("operator"), node.manager.URL), &registry.NetworkServiceEndpoint{Name: "forwarder"}).want("forwarder", false)
		if _, err := client.Close(soon(t), conn); err != nil {
			t.Errorf("close after a restart: %v", err)
		}
		workload.mustBeEmpty(t)
		node.servers[conn.GetNetworkServiceEndpointName()].mustBeEmpty(t)
		node.forwarder.mustForget(t, conn.GetPath().GetPathSegments()[2].GetId())
	})
}

// RESELECT_REQUESTED of the reference's makes our hops leave one endpoint for
// another; the client keeps its interface.
func TestReferenceReselectsAtOurManager(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		node := newOurNode(t, as)
		workload := newWorkload(t)
		client := next.NewNetworkServiceClient(sendfd.NewClient(),
			networkservice.NewNetworkServiceClient(dialRef(t, as("client"), node.manager.URL)))
		request := func(conn *networkservice.Connection) *networkservice.Connection {
			t.Helper()
			preference := kernel.New("file://" + workload.path())
			preference.Parameters["name"] = "nsm-c"
			got, err := client.Request(soon(t), &networkservice.NetworkServiceRequest{
				Connection: conn, MechanismPreferences: []*networkservice.Mechanism{preference},
			})
			if err != nil {
				t.Fatal(err)
			}
			ip := got.GetContext().GetIpContext()
			mustReach(t, workload, ip.GetSrcIpAddrs()[0], node.servers[got.GetNetworkServiceEndpointName()], ip.GetDstIpAddrs()[0])
			return got
		}
		first := request(&networkservice.Connection{
			Id: "id", NetworkService: "echo",
			Path: &networkservice.Path{PathSegments: []*networkservice.PathSegment{{Name: "client", Id: "id"}}},
		})
		old := first.GetNetworkServiceEndpointName()

		again := first.Clone() // as begin.DefaultReselectFunc has it
		again.Mechanism, again.NetworkServiceEndpointName, again.State = nil, "", networkservice.State_RESELECT_REQUESTED
		second := request(again)
		if second.GetNetworkServiceEndpointName() == old || second.GetState() != networkservice.State_UP {
			t.Errorf("%s again, state %v", old, second.GetState())
		}
		node.servers[old].mustBecomeEmpty(t)
		if _, err := client.Close(soon(t), second); err != nil {
			t.Errorf("close: %v", err)
		}
		workload.mustBeEmpty(t)
	})
}

// Our client reselects at the reference's manager when an endpoint asks it to: the
// wish travels through the reference's hops, and the old endpoint is closed.
func TestOurClientReselectsAtReferenceManager(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		node := newReferenceNode(t, as)
		endpoints := map[string]endpointPart{
			"nse-1": ourEndpoint(t, as("endpoint-1"), "nse-1", ipService("echo"), "10.61.0.0/24", node.manager.URL()),
			"nse-2": ourEndpoint(t, as("endpoint-2"), "nse-2", ipService("echo"), "10.62.0.0/24", node.manager.URL()),
		}
		wire, _ := connect(t, ourClient(t, as("client"), "client", node.manager.URL()), "echo", "nsm-c")
		old := wire.Connection().GetNetworkServiceEndpointName()
		events, held := watch(t, ours.Dial(t, as("forwarder"), endpoints[old].URL), old, "")
		if len(held) != 1 {
			t.Fatalf("%s has %v", old, held)
		}
		endpoints[old].Monitor().Amend(held[0].GetId(), func(c *networkservice.Connection) bool {
			c.State = networkservice.State_RESELECT_REQUESTED
			return true
		})
		events.untilDeleted()
		untilState(t, wire, "another endpoint", func(c *networkservice.Connection) bool {
			return c.GetState() == networkservice.State_UP && c.GetNetworkServiceEndpointName() != old
		})
	})
}

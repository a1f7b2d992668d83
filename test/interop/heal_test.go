// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"slices"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

// untilElsewhere waits for the connection to be up with another endpoint.
func (c changes) untilElsewhere(than string) *networkservice.Connection {
	c.t.Helper()
	return c.until("another endpoint than "+than, func(typ networkservice.ConnectionEventType, conn *networkservice.Connection) bool {
		return typ == networkservice.ConnectionEventType_UPDATE && conn.GetState() == networkservice.State_UP &&
			conn.GetNetworkServiceEndpointName() != than
	})
}

// Our endpoint dies on a node of the reference's: the end of our monitor stream
// travels as DOWN to the reference's client, which goes to the other one.
func TestReferenceClientLeavesOurDeadEndpoint(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		node := newReferenceNode(t, as)
		endpoints := map[string]endpointPart{
			"nse-1": ourEndpoint(t, as("endpoint-1"), "nse-1", ipService("echo"), "10.51.0.0/24", node.manager.URL()),
			"nse-2": ourEndpoint(t, as("endpoint-2"), "nse-2", ipService("echo"), "10.52.0.0/24", node.manager.URL()),
		}
		client := ref.Client(t, as("client"), ref.ClientConfig{Name: "client", Manager: node.manager.URL(), IfName: "nsm-c", Heal: true})
		first := mustRequest(t, client, "id", "echo").GetNetworkServiceEndpointName()
		events, _ := watch(t, ours.Dial(t, as("client"), node.manager.URL()), "client", "id")

		endpoints[first].Part.Stop()
		events.untilDown()
		conn := events.untilElsewhere(first)
		if got, want := names(conn.GetPath()), []string{"client", "manager", "forwarder", conn.GetNetworkServiceEndpointName()}; !slices.Equal(got, want) {
			t.Errorf("path %v, want %v", got, want)
		}
	})
}

// The reference's endpoint dies, on a node of ours or of the reference's: our
// client hears of it and goes to the other one, and on our node packets flow there.
func TestOurClientLeavesReferencesDeadEndpoint(t *testing.T) {
	t.Parallel() // mostly it waits
	for _, node := range []string{"our node", "reference node"} {
		t.Run(node, func(t *testing.T) {
			onBoth(t, func(t *testing.T, as func(string) ref.Security) {
				reg := refRegistry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
				var manager string
				if node == "our node" {
					manager = ourManager(t, as("manager"), "manager", reg.URL).URL
					ourForwarder(t, as("forwarder"), "forwarder", manager, tunnelIP)
				} else {
					manager = ref.Manager(t, as("manager"), ref.ManagerConfig{Name: "manager", Registry: reg.URL}).URL()
					ref.Forwarder(t, as("forwarder"), ref.ForwarderConfig{Name: "forwarder", Manager: manager})
				}
				ref.RegisterService(t, as("operator"), reg.URL, ipService("echo"))
				endpoints, servers := map[string]*ref.Server{}, map[string]*workload{}
				for name, cidr := range map[string]string{"nse-1": "10.51.0.0/24", "nse-2": "10.52.0.0/24"} {
					servers[name] = newWorkload(t)
					endpoints[name] = ref.Endpoint(t, as(name), ref.EndpointConfig{
						Name: name, Service: "echo", CIDR: cidr, Manager: manager, NetNS: servers[name].path(), IfName: "nsm-e",
					})
				}
				wire, in := connect(t, ourClient(t, as("client"), "client", manager), "echo", "nsm-c")
				first := wire.Connection().GetNetworkServiceEndpointName()

				endpoints[first].Stop()
				untilState(t, wire, "DOWN", func(c *networkservice.Connection) bool {
					return c.GetState() == networkservice.State_DOWN
				})
				conn := untilState(t, wire, "another endpoint", func(c *networkservice.Connection) bool {
					return c.GetState() == networkservice.State_UP && c.GetNetworkServiceEndpointName() != first
				})
				if node == "our node" {
					ip := conn.GetContext().GetIpContext()
					mustReach(t, in, ip.GetSrcIpAddrs()[0], servers[conn.GetNetworkServiceEndpointName()], ip.GetDstIpAddrs()[0])
					servers[first].mustBecomeEmpty(t)
				}
				if err := wire.Close(soon(t)); err != nil {
					t.Errorf("close: %v", err)
				}
			})
		})
	}
}

// An endpoint closes a connection by itself: its DELETE is a DOWN for the client,
// whichever make the hops between are, and the client gets it back.
func TestDeleteIsDown(t *testing.T) {
	t.Parallel() // mostly it waits
	t.Run("our endpoint, reference node, our client", func(t *testing.T) {
		onBoth(t, func(t *testing.T, as func(string) ref.Security) {
			node := newReferenceNode(t, as)
			server := ourEndpoint(t, as("endpoint"), "nse", ipService("echo"), "10.53.0.0/24", node.manager.URL())
			wire, _ := connect(t, ourClient(t, as("client"), "client", node.manager.URL()), "echo", "nsm-c")
			events, _ := watch(t, ours.Dial(t, as("client"), node.manager.URL()), "client", "")

			server.Monitor().Delete(lastID(wire.Connection()))
			events.untilDown()
			untilState(t, wire, "UP again", func(c *networkservice.Connection) bool { return c.GetState() == networkservice.State_UP })
			events.untilUp()
		})
	})
	t.Run("reference endpoint, our node, reference client", func(t *testing.T) {
		onBoth(t, func(t *testing.T, as func(string) ref.Security) {
			reg := refRegistry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
			manager := ourManager(t, as("manager"), "manager", reg.URL)
			ourForwarder(t, as("forwarder"), "forwarder", manager.URL, tunnelIP)
			ref.RegisterService(t, as("operator"), reg.URL, ipService("echo"))
			server, workload := newWorkload(t), newWorkload(t)
			e := ref.Endpoint(t, as("endpoint"), ref.EndpointConfig{
				Name: "nse", Service: "echo", CIDR: "10.53.0.0/24", Manager: manager.URL, NetNS: server.path(), IfName: "nsm-e",
			})
			client := ref.Client(t, as("client"), ref.ClientConfig{
				Name: "client", Manager: manager.URL, NetNS: workload.path(), IfName: "nsm-c", Heal: true,
			})
			conn := mustRequest(t, client, "id", "echo")
			events, _ := watch(t, ours.Dial(t, as("client"), manager.URL), "client", "id")

			closeAs(t, as("forwarder"), e.URL(), conn, 2)
			events.untilDown()
			back := events.untilUp()
			ip := back.GetContext().GetIpContext()
			mustReach(t, workload, ip.GetSrcIpAddrs()[0], server, ip.GetDstIpAddrs()[0])
		})
	})
}

// A stream of ours that ends because its server stops must not end with Canceled,
// which the reference's clients take as their own wish and heal no more.
func TestOurStreamsDoNotEndCanceled(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		reg := ours.Registry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
		manager := ourManager(t, as("manager"), "manager", reg.URL)
		forwarder := ourForwarder(t, as("forwarder"), "forwarder", manager.URL, tunnelIP)
		server := ourEndpoint(t, as("endpoint"), "nse", ipService("echo"), "10.54.0.0/24", manager.URL)
		for _, p := range []struct {
			name string
			part ours.Part
		}{{"endpoint", server.Part}, {"forwarder", forwarder.Part}, {"manager", manager.Part}} {
			events, _ := watch(t, dialRef(t, as("client"), p.part.URL), "client", "")
			ended := make(chan error, 1)
			go func() {
				_, err := events.stream.Recv()
				ended <- err
			}()
			p.part.Stop()
			if err := <-ended; status.Code(err) == codes.Canceled || status.Code(err) == codes.OK {
				t.Errorf("the stream of the %s ended with %v", p.name, err)
			}
		}
	})
}

// lastID is the id of a connection at its endpoint.
func lastID(conn *networkservice.Connection) string {
	segments := conn.GetPath().GetPathSegments()
	return segments[len(segments)-1].GetId()
}

// closeAs closes a connection at one of its hops on behalf of the hop before,
// whose place in the path is index.
func closeAs(t *testing.T, s ref.Security, url string, conn *networkservice.Connection, index int) {
	t.Helper()
	conn = conn.Clone()
	conn.Path.Index = uint32(index)
	conn.Id = conn.Path.PathSegments[index].Id
	ctx, cancel := context.WithTimeout(t.Context(), requestTimeout)
	defer cancel()
	if _, err := networkservice.NewNetworkServiceClient(ours.Dial(t, s, url)).Close(ctx, conn); err != nil {
		t.Logf("close at %s: %v", url, err) // the reference's may wait in vain for a descriptor
	}
}

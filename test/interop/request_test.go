// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/payload"
	"github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

var tunnelIP = netip.MustParseAddr("192.0.2.1") // of our forwarders

// requestTimeout is the deadline of a Request of a client with short tokens: well
// below refreshedTokens, from which the reference's servers take it off.
const (
	refreshedTokens = 8 * time.Second // first refresh after 1.5 s
	requestTimeout  = 2 * time.Second
)

// The reference's client and endpoint on a node of ours: the wire is made in both
// namespaces with the addresses of the reference's IPAM, packets flow, the
// client's own refresh keeps it, and Close removes it.
func TestReferenceWorkloadsOnOurNode(t *testing.T) {
	t.Parallel() // mostly it waits
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		reg := ours.Registry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
		manager := ourManager(t, as("manager"), "manager", reg.URL)
		forwarder := ourForwarder(t, as("forwarder"), "forwarder", manager.URL, tunnelIP)
		ref.RegisterService(t, as("operator"), reg.URL, &registry.NetworkService{Name: "echo", Payload: payload.IP})
		server, workload := newWorkload(t), newWorkload(t)
		ref.Endpoint(t, as("endpoint"), ref.EndpointConfig{
			Name: "nse", Service: "echo", CIDR: "10.20.0.0/24", Manager: manager.URL, NetNS: server.path(), IfName: "nsm-e",
		})
		user := as("client")
		user.Lifetime = refreshedTokens
		client := ref.Client(t, user, ref.ClientConfig{Name: "client", Manager: manager.URL, NetNS: workload.path(), IfName: "nsm-c"})

		conn := mustRequest(t, client, "id", "echo")
		if got, want := names(conn.GetPath()), []string{"client", "manager", "forwarder", "nse"}; !slices.Equal(got, want) {
			t.Errorf("path %v, want %v", got, want)
		}
		for _, segment := range conn.GetPath().GetPathSegments() {
			if segment.GetExpires() == nil {
				t.Errorf("segment %s does not say when it expires", segment.GetName())
			}
		}
		if got := conn.GetMechanism().GetParameters()["inodeURL"]; got != "file://"+workload.path() {
			t.Errorf("the client's namespace came back as %q", got)
		}
		ip := conn.GetContext().GetIpContext()
		if len(ip.GetSrcIpAddrs()) != 1 || !strings.HasPrefix(ip.GetSrcIpAddrs()[0], "10.20.0.") {
			t.Fatalf("addresses %v", ip)
		}
		mustReach(t, workload, ip.GetSrcIpAddrs()[0], server, ip.GetDstIpAddrs()[0])
		mustReach(t, server, ip.GetDstIpAddrs()[0], workload, ip.GetSrcIpAddrs()[0])
		before := workload.link(t, "nsm-c").Attrs()

		news, known := watch(t, ours.Dial(t, as("manager"), forwarder.URL), "forwarder", "")
		if len(known) != 1 || known[0].GetId() != conn.GetPath().GetPathSegments()[2].GetId() {
			t.Errorf("the forwarder knows %v", known)
		}
		news.untilUp() // by the client's own refresh
		after := workload.link(t, "nsm-c").Attrs()
		if before.Index != after.Index {
			t.Errorf("the interface was made anew: index %d, then %d", before.Index, after.Index)
		}
		mustReach(t, workload, ip.GetSrcIpAddrs()[0], server, ip.GetDstIpAddrs()[0])

		if _, err := client.Close(soon(t), conn); err != nil {
			t.Errorf("close: %v", err)
		}
		news.untilDeleted()
		workload.mustBeEmpty(t)
		server.mustBeEmpty(t)
	})
}

// mustRequest asks for a service with a deadline that suits short tokens.
func mustRequest(t *testing.T, client networkservice.NetworkServiceClient, id, service string) *networkservice.Connection {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), requestTimeout)
	defer cancel()
	conn, err := client.Request(ctx, &networkservice.NetworkServiceRequest{
		Connection: &networkservice.Connection{Id: id, NetworkService: service},
	})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

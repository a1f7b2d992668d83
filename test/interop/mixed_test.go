// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"testing"

	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

// A node whose manager is of one make and whose forwarder is of the other serves
// workloads of both. With our forwarder packets flow.
func TestMixedNodes(t *testing.T) {
	for _, make := range []string{"manager", "forwarder"} {
		t.Run("our "+make, func(t *testing.T) {
			onBoth(t, func(t *testing.T, as func(string) ref.Security) {
				reg := ours.Registry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
				var manager string
				if make == "manager" {
					manager = ourManager(t, as("manager"), "manager", reg.URL).URL
					ref.Forwarder(t, as("forwarder"), ref.ForwarderConfig{Name: "forwarder", Manager: manager})
				} else {
					manager = ref.Manager(t, as("manager"), ref.ManagerConfig{Name: "manager", Registry: reg.URL}).URL()
					ourForwarder(t, as("forwarder"), "forwarder", manager, tunnelIP)
				}
				ref.RegisterService(t, as("operator"), reg.URL, ipService("theirs"))
				theirs := newWorkload(t)
				ref.Endpoint(t, as("endpoint-1"), ref.EndpointConfig{
					Name: "nse-1", Service: "theirs", CIDR: "10.81.0.0/24", Manager: manager, NetNS: theirs.path(), IfName: "nsm-e",
				})
				servers := map[string]*workload{
					"theirs": theirs,
					"ours":   ourEndpoint(t, as("endpoint-2"), "nse-2", ipService("ours"), "10.82.0.0/24", manager).in,
				}
				theirClients := newWorkload(t)
				client := ref.Client(t, as("client-1"), ref.ClientConfig{Name: "client-1", Manager: manager, NetNS: theirClients.path(), IfName: "nsm-c"})
				c := ourClient(t, as("client-2"), "client-2", manager)
				for service, server := range servers {
					conn := mustRequest(t, client, "id-"+service, service)
					if ip := conn.GetContext().GetIpContext(); make == "forwarder" {
						mustReach(t, theirClients, ip.GetSrcIpAddrs()[0], server, ip.GetDstIpAddrs()[0])
					}
					if _, err := client.Close(soon(t), conn); err != nil {
						t.Errorf("%s: close: %v", service, err)
					}
					wire, in := connect(t, c, service, "nsm-c")
					if ip := wire.Connection().GetContext().GetIpContext(); make == "forwarder" {
						mustReach(t, in, ip.GetSrcIpAddrs()[0], server, ip.GetDstIpAddrs()[0])
					}
					if err := wire.Close(soon(t)); err != nil {
						t.Errorf("%s: close: %v", service, err)
					}
					for _, w := range []*workload{theirClients, in, server} {
						w.mustBeEmpty(t)
					}
				}
			})
		})
	}
}

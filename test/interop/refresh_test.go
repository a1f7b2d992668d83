// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"strings"
	"sync"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/internal/nstest"
	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/test/interop/ref"
)

// Descriptors go along with every refresh and Close, both ways: none may stay open.
// All parts of both makes are in this process, so it is enough to count. grpcfd
// keeps one of each file until its connection ends, and closes connections when it
// finds the time.
func TestRefreshesLeaveNoDescriptors(t *testing.T) {
	const refreshes, slack = 50, 8
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		node := newOurNode(t, as)
		workload := newWorkload(t)
		user := ref.Client(t, as("client"), ref.ClientConfig{Name: "client", Manager: node.manager.URL, NetNS: workload.path(), IfName: "nsm-c"})
		before := namespacesOpen()
		conn := mustRequest(t, user, "id", "echo")
		established := namespacesOpen()
		for range refreshes {
			var err error
			if conn, err = user.Request(soon(t), &networkservice.NetworkServiceRequest{Connection: conn}); err != nil {
				t.Fatal(err)
			}
		}
		if now := namespacesOpen(); now > established+slack {
			t.Errorf("%d namespaces open after the first Request, %d after %d refreshes", established, now, refreshes)
		}
		if _, err := user.Close(soon(t), conn); err != nil {
			t.Errorf("close: %v", err)
		}
		if now := namespacesOpen(); now > before+slack {
			t.Errorf("%d namespaces open before the first Request, %d after the Close", before, now)
		}
	})
}

// Our hops share one connection per peer, where the reference's open one per wire:
// a burst of Requests through ours is too much for none of its parts.
func TestManyWiresToOneReferenceEndpoint(t *testing.T) {
	const wires = 64
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		reg := refRegistry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
		manager := ourManager(t, as("manager"), "manager", reg.URL)
		ourForwarder(t, as("forwarder"), "forwarder", manager.URL, tunnelIP)
		ref.RegisterService(t, as("operator"), reg.URL, ipService("echo"))
		server, in := newWorkload(t), newWorkload(t)
		ref.Endpoint(t, as("endpoint"), ref.EndpointConfig{
			Name: "nse", Service: "echo", CIDR: "10.71.0.0/16", Manager: manager.URL, NetNS: server.path(),
		})
		c := ourClient(t, as("client"), "client", manager.URL)
		var requests sync.WaitGroup
		for range wires {
			requests.Go(func() {
				// grpcfd closes files twice and now and then takes that for a failure.
				_, err := c.Request(soon(t), client.Request{Service: "echo", NetNS: in.File(), Retry: true})
				if err != nil {
					t.Error(err)
				}
			})
		}
		requests.Wait()
		if got := in.census(t).Links - in.empty.Links; got != wires {
			t.Errorf("%d interfaces, want %d", got, wires)
		}
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		in.mustBeEmpty(t)
		server.mustBeEmpty(t)
	})
}

// namespacesOpen is how many descriptors of network namespaces this process has.
func namespacesOpen() (n int) {
	for _, target := range nstest.Descriptors() {
		if strings.HasPrefix(target, "net:[") {
			n++
		}
	}
	return n
}

// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/payload"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/test/interop/ours"
	"github.com/openvwire/nsm/test/interop/ref"
)

// mustBeDenied checks what a client of the reference looks for.
func mustBeDenied(t *testing.T, what string, err error) {
	t.Helper()
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "no sufficient privileges") {
		t.Errorf("%s: %v", what, err)
	}
}

// A forwarder of the reference that nobody has named does not become one.
func TestUnnamedReferenceForwarderIsRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		reg := ours.Registry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
		manager := ourManager(t, as("manager"), "manager", reg.URL)
		thief := ref.NewImpatientRegistryClient(t.Context(), t, as("thief"), manager.URL)
		forwarder := endpoint("forwarder-x", "forwarder", "tcp://127.0.0.1:1", map[string]string{"p2p": "true"})
		_, err := thief.Endpoints.Register(soon(t), forwarder)
		mustBeDenied(t, "a forwarder that is not named", err)
		mustRegister(t, ref.NewRegistryClient(t.Context(), t, as("forwarder"), manager.URL), forwarder)
	})
}

// A manager of the reference that nobody has named registers nothing for others.
func TestUnnamedReferenceManagerIsRefused(t *testing.T) {
	ca := ref.NewCA(t, "example.org")
	as := func(path string) ref.Security { return ca.MutualTLS(t, path) } // on plaintext nobody proves anything
	reg := ours.Registry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
	for _, name := range []string{"thief", "manager"} {
		manager := ref.Manager(t, as(name), ref.ManagerConfig{Name: name, Registry: reg.URL})
		client := ref.NewImpatientRegistryClient(t.Context(), t, as("endpoint"), manager.URL())
		_, err := client.Endpoints.Register(soon(t), endpoint("nse-"+name, "echo", "tcp://127.0.0.1:1", nil))
		if name != "thief" {
			if err != nil {
				t.Errorf("a manager that is named: %v", err)
			}
			continue
		}
		mustBeDenied(t, "a manager that is not named", err)
		direct := ourRegistryClient(t, as("observer"), reg.URL)
		if left := findEndpoints(t, direct, &api.NetworkServiceEndpoint{Name: "nse-thief"}); len(left) != 0 {
			t.Errorf("registered all the same: %v", left)
		}
	}
}

// A node of the reference whose forwarder nobody has named here gets no wire to
// our node: nothing but its word says for whom it asks.
func TestUnnamedReferenceNodeIsRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, as func(string) ref.Security) {
		reg := ours.Registry(t, as("registry"), ref.DefaultExpiry, ref.Loopback)
		near := ref.Manager(t, as("manager-a"), ref.ManagerConfig{Name: "manager-a", Registry: reg.URL})
		ref.Forwarder(t, as("thief"), ref.ForwarderConfig{Name: "forwarder-a", Manager: near.URL()})
		far := ourManager(t, as("manager-b"), "manager-b", reg.URL)
		forwarder := ourForwarder(t, as("forwarder-b"), "forwarder-b", far.URL, tunnelIP)
		server := ourEndpoint(t, as("endpoint"), "nse", &api.NetworkService{Name: "far", Payload: payload.Ethernet}, "10.40.0.0/24", far.URL)

		client := ref.Client(t, as("client"), ref.ClientConfig{Name: "client", Manager: near.URL()})
		ctx, cancel := context.WithTimeout(t.Context(), requestTimeout)
		defer cancel()
		conn, err := client.Request(ctx, &networkservice.NetworkServiceRequest{Connection: &networkservice.Connection{Id: "id", NetworkService: "far"}})
		if err == nil || !strings.Contains(err.Error(), "no sufficient privileges") && !errors.Is(rpc.DecodeError(err), nserr.NotAllowed) {
			t.Errorf("path %v, %v", names(conn.GetPath()), err)
		}
		server.in.mustBeEmpty(t)
		if u := forwarder.Usage(); u.Wires != 0 {
			t.Errorf("the forwarder has %d wires", u.Wires)
		}
	})
}

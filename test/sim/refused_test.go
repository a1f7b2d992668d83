// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"errors"
	"strings"
	"testing"

	api "github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Whoever gets no endpoint is told why.
func TestWhyNoEndpoint(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		c := a.Client("web")
		refused := func(want *nserr.Reason, says ...string) {
			t.Helper()
			_, err := c.Try(t.Context(), "kernel://db/nsm-1")
			if !errors.Is(err, want) {
				t.Fatalf("%v, want %s", err, want.Code)
			}
			for _, text := range says {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q does not name %q", err, text)
				}
			}
		}
		refused(nserr.UnknownService, "db")
		m.Apply(a, &api.NetworkService{Name: "db"})
		refused(nserr.NoEndpoint, "db")

		fails := func(reason *nserr.Reason, why string) []endpoint.Middleware {
			return []endpoint.Middleware{func(endpoint.Handler) endpoint.Handler {
				return endpoint.Funcs{OnRequest: func(context.Context, *endpoint.Request) error { return reason.Errorf("%s", why) }}
			}}
		}
		a.Serve(Service{Name: "db", Endpoint: "one", With: fails(nserr.Busy, "the disk is full")})
		a.Serve(Service{Name: "db", Endpoint: "two", With: fails(nserr.NotAllowed, "the lights are out"), CIDR: "10.61.0.0/24"})
		m.Apply(a, &api.NetworkService{Name: "db", Matches: []*api.Match{{Routes: []*api.Destination{to(0, "role", "primary")}}}})
		refused(nserr.NoMatch, "2 endpoints")
		m.Apply(a, &api.NetworkService{Name: "db", Matches: []*api.Match{{SourceSelector: map[string]string{"app": "web"}}, {SourceSelector: map[string]string{"app": "cron", "tier": "1"}}}})
		refused(nserr.NoMatch, "no match of db applies to a client with nodeName=a", "{app=web} {app=cron tier=1}", "nsm get service db")
		m.Apply(a, &api.NetworkService{Name: "db"})
		refused(nserr.EndpointsFailed, "one", "the disk is full", "two", "the lights are out")
		m.CheckEmpty()
	})
}

// The forwarder's own namespace is the node's: it is not for whoever can name it.
func TestNodesOwnNamespace(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		a.Serve(Service{Name: "db"})
		c := a.Client("web")
		_, err := c.Client.Request(t.Context(), client.Request{Service: "db", Interface: "nsm-1"}) // for this process
		if !errors.Is(err, nserr.NotAllowed) {
			t.Errorf("%v, want %s", err, nserr.NotAllowed.Code)
		}
		m.CheckEmpty()
	})
}

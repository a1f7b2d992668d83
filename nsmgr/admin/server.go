// SPDX-License-Identifier: Apache-2.0

// Package admin is the manager's side of nsm.admin.v1: how an operator looks at
// a mesh and changes its services.
//
// It holds no state. Wires come from the manager's monitor, services, endpoints
// and nodes from its view of the registry, and what stands in the kernel is
// asked along the path when somebody wants to know (describe.go). Every list is
// the same procedure (list.go): all items, then, for those who watch, changes.
//
// Who may do what:
//
//	list            every identity of the mesh; of the wires those whose path it
//	                is on, or all if the policy names it an observer
//	describe        the same wires
//	apply, delete   as a registration by the same caller: the first owner of a
//	                name keeps it
//	profile         whom the manager's configuration names
//	drain           the owner of the endpoint, and whom the manager's configuration names
//
// No answer holds a token or a private key.
package admin

import (
	"context"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/profile"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/watch"
)

// nodeLabel is the label that says which node something is on (protocol.md §3.7).
const nodeLabel = "nodeName"

// Config is what there is to show, and the way to change it. It belongs to the
// manager; all of it is needed.
type Config struct {
	Name             string            // of the manager
	URL              string            // under which other nodes reach it
	Labels           map[string]string // of its node
	ForwarderService string            // that forwarders offer

	Wires     *hop.Monitor
	Services  *watch.Map[string, *registry.NetworkService]
	Endpoints *watch.Map[string, *registry.NetworkServiceEndpoint] // forwarders among them
	// Offering returns the endpoints of one network service, by name.
	Offering func(service string) []*registry.NetworkServiceEndpoint
	// Here returns an endpoint with the address that holds on this node, false if
	// it has expired.
	Here func(nse *registry.NetworkServiceEndpoint, now time.Time) (*registry.NetworkServiceEndpoint, bool)

	// Drain takes the wires away from endpoints of this node on behalf of who.
	Drain func(ctx context.Context, who string, req *adminv1.DrainRequest, report func(*adminv1.DrainProgress) error) error
	// Drained reports whether that goes on, or has been done.
	Drained func(*registry.NetworkServiceEndpoint) bool

	Profile profile.Server // of this process

	Peers    *peer.Pool                            // to forwarders of this node
	Registry grpc.ClientConnInterface              // the domain's, to look things up
	Proxy    registry.NetworkServiceRegistryServer // the manager's, to change things in the caller's name
}

// Server implements nsm.admin.v1.Admin.
type Server struct {
	profile.Server
	config  Config
	node    string // name of the own node
	started time.Time
}

// New returns a server for the parts of a manager that starts now.
func New(c Config) *Server {
	node := c.Labels[nodeLabel]
	if node == "" {
		node = c.Name
	}
	return &Server{Server: c.Profile, config: c, node: node, started: time.Now()}
}

// Version tells what build answers.
func (s *Server) Version(ctx context.Context, _ *adminv1.VersionRequest) (*adminv1.BuildVersion, error) {
	if _, err := identify(ctx); err != nil {
		return nil, err
	}
	return hop.BuildVersion(), nil
}

// identify returns who calls.
func identify(ctx context.Context) (string, error) {
	id := hop.Identity(rpc.CallerFrom(ctx))
	if id == "" {
		return "", nserr.NoIdentity.Errorf("the caller has shown no identity")
	}
	return id, nil
}

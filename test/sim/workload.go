// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"crypto/x509"
	"os"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/ipam"
	"github.com/openvwire/nsm/sdk/nsurl"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/registration"
	"github.com/openvwire/nsm/sdk/rpc"
)

// Service is what an endpoint serves.
type Service struct {
	Name     string            // of the network service
	Endpoint string            // name of the endpoint; default SERVICE-NODE
	Payload  string            // default IP
	CIDR     string            // default 10.60.0.0/24
	Labels   map[string]string // of the endpoint
	With     []endpoint.Middleware
	Lie      func(*networkservice.Connection) *networkservice.Connection // what becomes of each answer
	Leases   string                                                      // file of what it had before a restart; default none
	Pool     *ipam.Pool                                                  // in place of CIDR: what an endpoint of that name had before
}

// Endpoint is a running endpoint.
type Endpoint struct {
	*part
	Server *endpoint.Server
	Pool   *ipam.Pool

	node         *Node
	service      Service
	socket       *os.File
	leases       *endpoint.Leases // nil = none
	registration *registration.Registration
}

// Serve is TryServe that must succeed.
func (n *Node) Serve(s Service) *Endpoint {
	n.mesh.t.Helper()
	e, err := n.TryServe(s)
	if err != nil {
		n.mesh.t.Fatal(err)
	}
	return e
}

// TryServe starts an endpoint on the node and registers it with the manager there.
func (n *Node) TryServe(s Service) (*Endpoint, error) {
	t := n.mesh.t
	t.Helper()
	if s.Endpoint == "" {
		s.Endpoint = s.Name + "-" + n.Name
	}
	if s.CIDR == "" {
		s.CIDR = "10.60.0.0/24"
	}
	if s.Pool == nil {
		groups, err := ipam.ParseGroups(s.CIDR)
		if err != nil {
			t.Fatal(err)
		}
		if s.Pool, err = ipam.New(groups); err != nil {
			t.Fatal(err)
		}
	}
	p := n.mesh.newPart(s.Endpoint)
	e := &Endpoint{part: p, Pool: s.Pool, node: n, service: s, socket: n.mesh.file()}
	chain := append(slices.Clone(s.With), endpoint.Interface(n.mesh.Space(s.Endpoint)))
	if s.Leases != "" {
		leases, err := endpoint.OpenLeases(s.Leases, s.Pool, p.log)
		if err != nil {
			t.Fatal(err)
		}
		e.leases, chain = leases, append(chain, leases.Remember)
	}
	chain = append(chain, endpoint.Addresses(s.Pool, endpoint.Strict))
	e.Server = endpoint.New(s.Endpoint, endpoint.Chain(chain...), p.tokens, p.policy, p.log)
	url, err := rpc.InodeURL(e.socket)
	if err != nil {
		t.Fatal(err)
	}
	p.listen(url, func(r grpc.ServiceRegistrar) {
		if s.Lie == nil {
			e.Server.Register(r)
			return
		}
		rpc.RegisterNetworkService(r, liar{e.Server, s.Lie})
		rpc.RegisterMonitorConnection(r, e.Server.Monitor())
	})
	labels := make(map[string]string)
	for k, v := range s.Labels {
		labels[k] = v
	}
	n.endpoints = append(n.endpoints, e)
	e.registration, err = registration.Start(t.Context(), registration.Config{
		Registry: p.dial(n.ManagerURL()),
		Endpoint: &api.NetworkServiceEndpoint{
			Name: s.Endpoint, Url: url, NetworkServiceNames: []string{s.Name},
			NetworkServiceLabels: map[string]*api.NetworkServiceLabels{s.Name: {Labels: labels}},
		},
		Services: []*api.NetworkService{{Name: s.Name, Payload: s.Payload}},
		Socket:   e.socket,
		Logger:   p.log,
	})
	if err != nil {
		e.gone()
		return nil, err
	}
	synctest.Wait() // every manager knows it
	return e, nil
}

// liar answers with what becomes of an honest answer.
type liar struct {
	*endpoint.Server
	lie func(*networkservice.Connection) *networkservice.Connection
}

func (l liar) Request(ctx context.Context, req *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	got, err := l.Server.Request(ctx, req)
	if err != nil {
		return nil, err
	}
	return l.lie(got), nil
}

// Vanish ends the endpoint without a word, as a SIGKILL does.
func (e *Endpoint) Vanish() {
	e.registration.Abandon()
	e.gone()
}

// Stop unregisters the endpoint and ends it.
func (e *Endpoint) Stop() {
	e.mesh.t.Helper()
	if err := e.registration.Stop(e.mesh.t.Context()); err != nil {
		e.mesh.t.Errorf("%s does not unregister: %v", e.name, err)
	}
	e.gone()
}

func (e *Endpoint) gone() {
	e.hangUp()
	e.Server.Stop()
	if e.leases != nil {
		_ = e.leases.Close()
	}
	e.peers.Close()
	e.node.endpoints = slices.DeleteFunc(e.node.endpoints, func(o *Endpoint) bool { return o == e })
}

// Restart ends the endpoint without a word and starts one of the same name that
// knows nothing, on another socket.
func (e *Endpoint) Restart() *Endpoint {
	e.mesh.t.Helper()
	e.Vanish()
	s := e.service
	s.Pool = nil
	return e.node.Serve(s)
}

// Client is a workload with its client library.
type Client struct {
	*part
	*client.Client
	node *Node

	mu    sync.Mutex
	wires []*client.Wire // that were up; guarded by mu
}

// Client starts a client on the node, in a namespace of its own.
func (n *Node) Client(name string, change ...func(*client.Config)) *Client {
	n.mesh.t.Helper()
	return n.ClientAs(name, name, change...)
}

// ClientAs is Client with another identity than its name says.
func (n *Node) ClientAs(name, identity string, change ...func(*client.Config)) *Client {
	t := n.mesh.t
	t.Helper()
	p := n.mesh.newPartAs(name, identity)
	config := client.Config{Name: name, Manager: n.ManagerURL(), Peers: p.peers, Logger: p.log}
	if p.skew != 0 {
		config.Verify = func(path path.Path, manager *x509.Certificate, now time.Time) error {
			return client.VerifyPath(path, manager, now.Add(p.skew))
		}
	}
	for _, f := range change {
		f(&config)
	}
	c, err := client.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	out := &Client{part: p, Client: c, node: n}
	n.clients = append(n.clients, out)
	return out
}

// Try asks for the wire that the URL names.
func (c *Client) Try(ctx context.Context, url string) (*client.Wire, error) {
	c.mesh.t.Helper()
	u, err := nsurl.Parse(url)
	if err != nil {
		return nil, err
	}
	return c.Ask(ctx, client.Request{Service: u.Service, Interface: u.Interface, Labels: u.Labels})
}

// Ask is Client.Request into the client's own namespace, unless another is given.
func (c *Client) Ask(ctx context.Context, r client.Request) (*client.Wire, error) {
	c.mesh.t.Helper()
	if r.NetNS == nil {
		r.NetNS = c.mesh.Space(c.name)
	}
	w, err := c.Client.Request(ctx, r)
	if err == nil {
		c.mu.Lock()
		c.wires = append(c.wires, w)
		c.mu.Unlock()
	}
	return w, err
}

// Connect is Try that must succeed.
func (c *Client) Connect(url string) *client.Wire {
	c.mesh.t.Helper()
	w, err := c.Try(c.mesh.t.Context(), url)
	if err != nil {
		c.mesh.t.Fatalf("%s: %v", url, err)
	}
	synctest.Wait()
	return w
}

// Close closes a wire, which must succeed.
func (c *Client) Close(w *client.Wire) {
	c.mesh.t.Helper()
	if err := w.Close(c.mesh.t.Context()); err != nil {
		c.mesh.t.Errorf("close %s: %v", w.ID(), err)
	}
	synctest.Wait()
}

// Vanish ends the client without a word. Its wires stay until they expire.
func (c *Client) Vanish() {
	for _, w := range c.wires {
		w.Leave()
	}
	_ = c.Client.Close() // has no wires any more
	c.peers.Close()
	c.node.clients = slices.DeleteFunc(c.node.clients, func(o *Client) bool { return o == c })
}

// view is what must not change while a wire lives: everything but tokens and
// expiries.
type view struct {
	IDs, Names         []string
	Mechanism          map[string]string
	Src, Dst, Endpoint string
}

// View returns what must not change while a wire lives.
func View(w *client.Wire) view { return viewOf(w.Connection()) }

func viewOf(c *networkservice.Connection) (v view) {
	for _, s := range c.GetPath().GetPathSegments() {
		v.IDs, v.Names = append(v.IDs, s.GetId()), append(v.Names, s.GetName())
	}
	v.Mechanism = c.GetMechanism().GetParameters()
	v.Src = strings.Join(c.GetContext().GetIpContext().GetSrcIpAddrs(), ",")
	v.Dst = strings.Join(c.GetContext().GetIpContext().GetDstIpAddrs(), ",")
	v.Endpoint = c.GetNetworkServiceEndpointName()
	return v
}

// Up reports whether the wire is up as far as its client knows.
func Up(w *client.Wire) bool { return w.Connection().GetState() == networkservice.State_UP }

// SPDX-License-Identifier: Apache-2.0

// Package endpoint serves network services.
//
//	groups, err := ipam.ParseGroups("10.60.0.0/24")
//	…
//	pool, err := ipam.New(groups)
//	…
//	e, err := endpoint.Serve(ctx, endpoint.Config{
//		Name:     "database-1",
//		Services: []endpoint.Service{{Name: "database", Labels: map[string]string{"role": "primary"}}},
//		Handler:  endpoint.Chain(endpoint.Interface(nil), endpoint.Addresses(pool, endpoint.Strict)),
//	})
//	if err != nil {
//		return err
//	}
//	defer e.Stop(ctx)
//
// A [Handler] completes each connection: its addresses, routes, DNS names. They
// are put together like net/http middleware: a [Middleware] gets the next handler
// and returns one that does something before or after it.
//
//	func Audit(next endpoint.Handler) endpoint.Handler {
//		return endpoint.Funcs{
//			OnRequest: func(ctx context.Context, r *endpoint.Request) error {
//				log.Println("request from", r.Owner)
//				return next.Request(ctx, r)
//			},
//			OnClose: next.Close,
//		}
//	}
//
// All calls for one connection are made one after the other; those for different
// connections run at the same time.
package endpoint

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/internal/undo"
	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/registration"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// DefaultManager is the socket of the node's manager (protocol.md §1.3).
const DefaultManager = rpc.DefaultManager

// Service is a network service that an endpoint offers.
type Service struct {
	Name    string
	Payload string            // IP or ETHERNET; default IP
	Labels  map[string]string // by which matches select the endpoint
}

// Config says what to serve.
type Config struct {
	Name     string // unique in the domain
	Services []Service
	Handler  Handler

	Manager string // URL; default DefaultManager
	// ListenOn is the URL to serve on; default a Unix socket without a path, which
	// reaches the manager as a descriptor.
	ListenOn string

	// Source is who the endpoint is. Default: identity.Open, closed again at Stop.
	Source        identity.Source
	TokenLifetime time.Duration // default 10 min
	Policy        hop.Policy    // nil means hop.Strict
	// KeepServices leaves it to others to register the network services.
	KeepServices bool

	Logger *slog.Logger // nil means slog.Default()
}

// Server implements the NetworkService and MonitorConnection services for a
// Handler. Serve makes one that is registered and reachable; New makes one to be
// put on any server.
type Server struct {
	log     *slog.Logger
	hop     hop.Hop
	monitor *hop.Monitor
	handler Handler
	wires   *conn.Table[wire]

	refusals nserr.Book // why Requests were refused, by connection
}

// wire is what the endpoint remembers of a connection.
type wire struct {
	binding hop.Binding
	conn    *networkservice.Connection // as last answered, in this hop's view
}

// New returns a server that is not registered anywhere.
func New(name string, h Handler, tokens token.Generator, policy hop.Policy, log *slog.Logger) *Server {
	if log == nil {
		log = slog.Default()
	}
	s := &Server{
		log:     log.With("part", "endpoint", "name", name),
		monitor: hop.NewMonitor(policy),
		handler: h,
	}
	s.hop = hop.Hop{Name: name, Tokens: tokens, Policy: policy, Monitor: s.monitor}
	s.wires = conn.NewTable[wire](s.expire)
	return s
}

// Register puts the endpoint's services on a server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	rpc.RegisterNetworkService(r, s)
	rpc.RegisterMonitorConnection(r, s.monitor)
}

// Monitor tells what happens to the endpoint's connections.
func (s *Server) Monitor() *hop.Monitor { return s.monitor }

// Len returns the number of connections known or being worked on.
func (s *Server) Len() int { return s.wires.Len() }

// Stop ends the server's work. Connections are forgotten, not closed.
func (s *Server) Stop() { s.wires.Close() }

// Endpoint is a Server that listens and stays registered until Stop.
type Endpoint struct {
	*Server
	registration *registration.Registration
	name         string
	manager      *grpc.ClientConn
	grpc         *grpc.Server
	serving      sync.WaitGroup
	opened       undo.Stack
}

// Serve registers an endpoint and serves it. It returns when the endpoint can be
// asked for, or cannot be registered.
func Serve(ctx context.Context, c Config) (_ *Endpoint, err error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	e := &Endpoint{}
	defer func() {
		if err != nil {
			e.release()
		}
	}()
	if c.Source == nil {
		if c.Source, err = identity.Open(ctx, identity.Config{Logger: c.Logger}); err != nil {
			return nil, err
		}
		e.opened.Call(func() { _ = c.Source.Close() })
	}
	clientCreds, serverCreds := rpc.MutualTLS(c.Source, c.Source)
	tokens := token.NewGenerator(c.Source, c.TokenLifetime)

	e.Server = New(c.Name, c.Handler, tokens, c.Policy, c.Logger)
	e.opened.Call(e.Server.Stop)
	listener, url, socket, err := e.listen(ctx, c.ListenOn)
	if err != nil {
		return nil, err
	}
	e.grpc = rpc.NewServer(rpc.ServerOptions{Credentials: serverCreds, Logger: c.Logger})
	e.Server.Register(e.grpc)
	e.opened.Call(e.grpc.Stop)
	e.serving.Go(func() { _ = e.grpc.Serve(listener) })

	manager, err := rpc.Dial(c.Manager, rpc.DialOptions{Credentials: clientCreds, Tokens: tokens})
	if err != nil {
		return nil, err
	}
	e.opened.Call(func() { _ = manager.Close() })
	e.name, e.manager = c.Name, manager
	e.registration, err = registration.Start(ctx, registration.Config{
		Registry: manager,
		Endpoint: c.message(url),
		Services: c.services(),
		Socket:   socket,
		Logger:   c.Logger,
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

func (c *Config) fill() error {
	if c.Name == "" || len(c.Services) == 0 || c.Handler == nil {
		return nserr.BadEndpoint.Errorf("an endpoint needs a name, at least one service and a handler")
	}
	if c.Manager == "" {
		c.Manager = DefaultManager
	}
	if c.TokenLifetime == 0 {
		c.TokenLifetime = token.DefaultLifetime
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return nil
}

// message is the registration. The node's labels are added to those of each
// service by the manager, which wants an entry to add to.
func (c *Config) message(url string) *registry.NetworkServiceEndpoint {
	nse := &registry.NetworkServiceEndpoint{Name: c.Name, Url: url, NetworkServiceLabels: make(map[string]*registry.NetworkServiceLabels)}
	for _, s := range c.Services {
		labels := make(map[string]string, len(s.Labels))
		for k, v := range s.Labels {
			labels[k] = v
		}
		nse.NetworkServiceNames = append(nse.NetworkServiceNames, s.Name)
		nse.NetworkServiceLabels[s.Name] = &registry.NetworkServiceLabels{Labels: labels}
	}
	return nse
}

func (c *Config) services() (out []*registry.NetworkService) {
	if c.KeepServices {
		return nil
	}
	for _, s := range c.Services {
		out = append(out, &registry.NetworkService{Name: s.Name, Payload: s.Payload})
	}
	return out
}

// listen opens where the endpoint is served. A Unix socket is registered by its
// descriptor, opened with O_PATH, which is all a peer needs to connect to it. One
// that nobody has asked for by its path loses it at once, so that an endpoint that
// is killed leaves no file.
func (e *Endpoint) listen(ctx context.Context, url string) (l net.Listener, registered string, socket *os.File, err error) {
	nameless := url == ""
	if nameless {
		dir, err := os.MkdirTemp("", "nse-")
		if err != nil {
			return nil, "", nil, nserr.StateDir.Errorf("no directory for the endpoint's socket: %w", err)
		}
		defer os.RemoveAll(dir)
		url = "unix://" + filepath.Join(dir, "nse.sock")
	}
	if l, err = rpc.Listen(ctx, url); err != nil {
		return nil, "", nil, err
	}
	if l.Addr().Network() != "unix" {
		return l, rpc.URL(l.Addr()), nil, nil
	}
	if u, ok := l.(*net.UnixListener); ok && nameless {
		u.SetUnlinkOnClose(false) // somebody else may have the path by then
	}
	path := l.Addr().String()
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = l.Close()
		return nil, "", nil, nserr.StateDir.Errorf("open %s: %w", path, err)
	}
	socket = os.NewFile(uintptr(fd), path)
	e.opened.Call(func() { _ = socket.Close() })
	if registered, err = rpc.InodeURL(socket); err != nil {
		_ = l.Close()
	}
	return l, registered, socket, err
}

func (e *Endpoint) release() {
	_ = e.opened.Run(context.Background())
	e.serving.Wait()
}

// Stop unregisters the endpoint, then stops serving. Its connections stay until
// their clients have found another endpoint or they expire.
func (e *Endpoint) Stop(ctx context.Context) error {
	err := e.registration.Stop(ctx)
	e.release()
	return err
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/ipam"
)

// An endpoint of the lab is a process of its own, as 'nsm serve' is one, which
// does as it is told on a socket: it holds a Request until it is told to go on,
// and asks for the Requests that are to be held. So a fault happens in the
// middle of a Request, and not before or after.

// order is what an endpoint is told, one per connection to its socket.
type order struct {
	Hold    which // hold the next Request of this kind
	Await   bool  // wait until one is held
	Release bool  // let it go on, and hold none
	Refresh bool  // ask the clients of all connections for a refresh (REFRESH_REQUESTED)
}

// which Requests are held.
type which string

const (
	first   which = "first"   // of a new wire
	refresh which = "refresh" // of one that stands
)

// state is what an endpoint answers.
type state struct {
	Wires     int           // connections that it has
	Refreshes map[int64]int // Requests for those that it had, by second of Unix time
	Error     string
}

// gated is an endpoint whose Requests can be held.
type gated struct {
	endpoint *endpoint.Endpoint

	mu   sync.Mutex
	hold which           // guarded by mu; "" = none
	held chan struct{}   // closed when one is held; guarded by mu
	open chan struct{}   // closed when it may go on; guarded by mu
	ids  map[string]bool // of connections; guarded by mu

	refreshes map[int64]int // by second of Unix time; guarded by mu
}

func newGated() *gated {
	return &gated{held: make(chan struct{}), open: make(chan struct{}), ids: make(map[string]bool), refreshes: make(map[int64]int)}
}

// middleware is the first handler of the endpoint.
func (g *gated) middleware(next endpoint.Handler) endpoint.Handler {
	return endpoint.Funcs{
		OnRequest: func(ctx context.Context, r *endpoint.Request) error {
			if err := g.pass(ctx, r.Known); err != nil {
				return err
			}
			err := next.Request(ctx, r)
			if err == nil {
				g.note(r.Connection.GetId(), true)
				if r.Known {
					g.noteRefresh()
				}
			}
			return err
		},
		OnClose: func(ctx context.Context, c *networkservice.Connection) {
			g.note(c.GetId(), false)
			next.Close(ctx, c)
		},
	}
}

// pass waits as long as the Request is held.
func (g *gated) pass(ctx context.Context, known bool) error {
	g.mu.Lock()
	if g.hold == "" || (g.hold == refresh) != known {
		g.mu.Unlock()
		return nil
	}
	select {
	case <-g.held: // one of several
	default:
		close(g.held)
	}
	open := g.open
	g.mu.Unlock()
	select {
	case <-open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gated) note(id string, there bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if there {
		g.ids[id] = true
	} else {
		delete(g.ids, id)
	}
}

func (g *gated) noteRefresh() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refreshes[time.Now().Unix()]++
}

// do obeys an order.
func (g *gated) do(o order) error {
	if o.Hold != "" {
		g.mu.Lock()
		g.hold = o.Hold
		g.mu.Unlock()
	}
	if o.Refresh {
		g.mu.Lock()
		for id := range g.ids {
			g.endpoint.Monitor().Amend(id, func(c *networkservice.Connection) bool {
				c.State = networkservice.State_REFRESH_REQUESTED
				return true
			})
		}
		g.mu.Unlock()
	}
	if o.Await {
		g.mu.Lock()
		held := g.held
		g.mu.Unlock()
		select {
		case <-held:
		case <-time.After(patience):
			return errors.New("no Request came to be held")
		}
	}
	if o.Release {
		g.mu.Lock()
		close(g.open)
		g.hold, g.held, g.open = "", make(chan struct{}), make(chan struct{})
		g.mu.Unlock()
	}
	return nil
}

// serveOrders obeys what comes on the socket until it is closed.
func (g *gated) serveOrders(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() { // ends with the process at the latest
			defer c.Close()
			var o order
			if json.NewDecoder(c).Decode(&o) != nil {
				return
			}
			s := state{}
			if err := g.do(o); err != nil {
				s.Error = err.Error()
			}
			g.mu.Lock()
			s.Wires, s.Refreshes = len(g.ids), maps.Clone(g.refreshes)
			g.mu.Unlock()
			_ = json.NewEncoder(c).Encode(s)
		}()
	}
}

// tell gives an order to the endpoint at a socket.
func tell(ctx context.Context, socket string, o order) (s state, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return s, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	if err := json.NewEncoder(c).Encode(o); err != nil {
		return s, err
	}
	if err := json.NewDecoder(c).Decode(&s); err != nil {
		return s, fmt.Errorf("order %+v: %w", o, err)
	}
	if s.Error != "" {
		return s, fmt.Errorf("order %+v: %s", o, s.Error)
	}
	return s, nil
}

// routeTo gives clients a route over the wire to an address that is not the wire's, if
// there is one.
func routeTo(address string) endpoint.Middleware {
	return func(next endpoint.Handler) endpoint.Handler {
		if address == "" {
			return next
		}
		return endpoint.Funcs{
			OnRequest: func(ctx context.Context, r *endpoint.Request) error {
				if err := next.Request(ctx, r); err != nil {
					return err
				}
				ip := r.Connection.GetContext().GetIpContext()
				wanted := &networkservice.Route{Prefix: address + "/32"}
				if !slices.ContainsFunc(ip.GetSrcRoutes(), func(r *networkservice.Route) bool { return r.GetPrefix() == wanted.GetPrefix() }) {
					ip.SrcRoutes = append(ip.SrcRoutes, wanted)
				}
				return nil
			},
			OnClose: next.Close,
		}
	}
}

// endpointRole serves a network service from the namespace that it is in, until
// SIGTERM. The environment says where the manager and the identity are.
func endpointRole(args []string) error {
	f := flag.NewFlagSet("endpoint", flag.ContinueOnError)
	name := f.String("name", "", "of the endpoint")
	service := f.String("service", "", "that it serves")
	payload := f.String("payload", "IP", "of the service")
	cidr := f.String("cidr", "", "of the addresses that it gives")
	anycast := f.String("anycast", "", "address in the namespace that clients get a route to; empty = none")
	lifetime := f.Duration("lifetime", 0, "of its tokens; 0 = the default")
	control := f.String("control", "", "socket on which it takes orders")
	if err := f.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	groups, err := ipam.ParseGroups(*cidr)
	if err != nil {
		return err
	}
	pool, err := ipam.New(groups)
	if err != nil {
		return err
	}
	_ = os.Remove(*control) // of one that was killed
	l, err := net.Listen("unix", *control)
	if err != nil {
		return err
	}
	defer l.Close()
	g := newGated()
	g.endpoint, err = endpoint.Serve(ctx, endpoint.Config{
		Name: *name, Manager: os.Getenv("NSM_CONNECT_TO"), TokenLifetime: *lifetime,
		Services: []endpoint.Service{{Name: *service, Payload: *payload}},
		Handler:  endpoint.Chain(g.middleware, routeTo(*anycast), endpoint.Interface(nil), endpoint.Addresses(pool, endpoint.Strict)),
	})
	if err != nil {
		return err
	}
	go g.serveOrders(l) // ends when the listener is closed
	fmt.Println("ready:", *name)
	<-ctx.Done()
	return g.endpoint.Stop(context.WithoutCancel(ctx))
}

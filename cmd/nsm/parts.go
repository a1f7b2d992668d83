// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/openvwire/nsm/internal/undo"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// identityConfig are the settings of everything that has an identity.
type identityConfig struct {
	EndpointSocket   string        `flag:"spiffe-endpoint-socket" env:"SPIFFE_ENDPOINT_SOCKET" default:"unix:///var/lib/networkservicemesh/identity.sock" help:"SPIFFE Workload API that gives this process its identity"`
	MaxTokenLifetime time.Duration `flag:"max-token-lifetime" env:"NSM_MAX_TOKEN_LIFETIME" default:"10m" help:"how long a token is valid, hence how long a wire lives without a refresh"`
}

func (c identityConfig) open(ctx context.Context, log *slog.Logger) (identity.Source, error) {
	return identity.Open(ctx, identity.Config{Address: c.EndpointSocket, Logger: log})
}

// part is what every part of the mesh has: an identity, and what it makes of it.
type part struct {
	log     *slog.Logger
	source  identity.Source
	tokens  token.Generator
	client  credentials.TransportCredentials
	server  credentials.TransportCredentials
	sockets *rpc.Sockets

	opened undo.Stack // closed with the part
}

func newPart(source identity.Source, lifetime time.Duration, log *slog.Logger) *part {
	p := &part{log: log, source: source, tokens: token.NewGenerator(source, lifetime), sockets: rpc.NewSockets()}
	p.client, p.server = rpc.MutualTLS(source, source)
	p.opened.Call(func() { _ = source.Close() })
	return p
}

// close ends what was opened, last first.
func (p *part) close() { _ = p.opened.Run(context.Background()) }

// run runs f until the part is closed.
func (p *part) run(f func(ctx context.Context)) { p.opened.Go(f) }

// id is the part's SPIFFE ID, for people.
func (p *part) id() string {
	svid, err := p.source.GetX509SVID()
	if err != nil {
		return "(no identity)"
	}
	return svid.ID.String()
}

// identity is what in-process peers see of the part.
func (p *part) identity() rpc.Identity {
	svid, err := p.source.GetX509SVID()
	if err != nil {
		return rpc.Identity{}
	}
	return rpc.Identity{ID: svid.ID.String(), Cert: svid.Certificates[0]}
}

// dial returns a connection that is closed with the part.
func (p *part) dial(url string) (grpc.ClientConnInterface, error) {
	cc, err := p.sockets.Dial(url, rpc.DialOptions{Credentials: p.client, Tokens: p.tokens})
	if err != nil {
		return nil, err
	}
	p.opened.Call(func() { _ = cc.Close() })
	return cc, nil
}

// pool returns the part's peers. URLs in local lead to parts of this process.
func (p *part) pool(name string, local map[string]*rpc.Local) *peer.Pool {
	pool := peer.NewPool(peer.PoolConfig{Name: name, Logger: p.log, Dial: func(url string) (grpc.ClientConnInterface, io.Closer, error) {
		if l, ok := local[url]; ok {
			return p.call(l), nil, nil
		}
		cc, err := p.sockets.Dial(url, rpc.DialOptions{Credentials: p.client, Tokens: p.tokens})
		return cc, cc, err
	}})
	p.opened.Call(pool.Close)
	return pool
}

// call returns a connection to a part of this process. Those that handle connections,
// manager and forwarder, change nothing that they share.
func (p *part) call(l *rpc.Local) grpc.ClientConnInterface {
	return l.Dial(rpc.LocalCaller{Identity: p.identity, Tokens: p.tokens, Share: true})
}

// local returns a server that parts of this process call without a socket.
func (p *part) local() *rpc.Local {
	l := rpc.NewLocal(rpc.LocalOptions{Identity: p.identity, Logger: p.log})
	p.opened.Call(l.Close)
	return l
}

// listen opens all URLs or none. An error says which flag has others.
func listen(ctx context.Context, flag string, urls ...string) (ls []net.Listener, err error) {
	for _, url := range urls {
		l, err := rpc.Listen(ctx, url)
		if err != nil {
			closeListeners(ls)
			switch e := nserr.From(err); e.Reason {
			case nserr.AddressInUse:
				return nil, e.WithFix("stop the other process, or choose another %s", flag)
			case nserr.NotPrivileged:
				return nil, e.WithFix("run as root, or choose another %s", flag)
			}
			return nil, err
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// closeListeners closes those that are not closed yet; the sockets go with them.
func closeListeners(ls []net.Listener) {
	for _, l := range ls {
		_ = l.Close()
	}
}

// listen opens all URLs or none, until the part is closed.
func (p *part) listen(ctx context.Context, urls []string) ([]net.Listener, error) {
	ls, err := listen(ctx, "--listen-on", urls...)
	p.opened.Call(func() { closeListeners(ls) })
	return ls, err
}

// serve serves register's services on the listeners until the part is closed.
func (p *part) serve(ls []net.Listener, register func(grpc.ServiceRegistrar), ready func() bool) {
	server := rpc.NewServer(rpc.ServerOptions{Credentials: p.server, Logger: p.log, Ready: ready})
	register(server)
	var serving sync.WaitGroup
	for _, l := range ls {
		serving.Go(func() {
			if err := server.Serve(l); err != nil {
				p.log.Error("no longer serving", "address", rpc.URL(l.Addr()), "error", err)
			}
		})
	}
	p.opened.Call(func() {
		server.Stop()
		serving.Wait()
	})
}

func urlsOf(ls []net.Listener) string {
	var urls []string
	for _, l := range ls {
		urls = append(urls, rpc.URL(l.Addr()))
	}
	return strings.Join(urls, ", ")
}

// publicURL is how other nodes reach what listens on the listeners: the first
// TCP one, with an address of this machine where it listens on all.
func publicURL(ls []net.Listener) (string, error) {
	for _, l := range ls {
		a, ok := l.Addr().(*net.TCPAddr)
		if !ok {
			continue
		}
		if !a.IP.IsUnspecified() {
			return rpc.URL(a), nil
		}
		ip, err := ownAddress()
		if err != nil {
			return "", err
		}
		return rpc.URL(&net.TCPAddr{IP: ip, Port: a.Port}), nil
	}
	return rpc.URL(ls[0].Addr()), nil // one node: nobody else needs to reach it
}

// ownAddress is the first address of this machine that others may reach: global,
// IPv4 before IPv6, loopback where there is nothing else.
func ownAddress() (net.IP, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, nserr.BadFlag.Errorf("the addresses of this machine cannot be read: %w", err)
	}
	var v6 net.IP
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		switch {
		case !ok || !n.IP.IsGlobalUnicast():
		case n.IP.To4() != nil:
			return n.IP, nil
		case v6 == nil:
			v6 = n.IP
		}
	}
	if v6 != nil {
		return v6, nil
	}
	return net.IPv4(127, 0, 0, 1), nil
}

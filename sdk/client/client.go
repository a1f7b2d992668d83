// SPDX-License-Identifier: Apache-2.0

// Package client connects a workload to network services.
//
//	c, err := client.Open(ctx, client.Config{})
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	wire, err := c.Connect(ctx, "kernel://database/nsm-1?app=web")
//	if err != nil {
//		return err
//	}
//	defer wire.Close(ctx)
//	fmt.Println(wire.Interface(), wire.PeerAddrs())
//
// Connect returns when packets can flow. From then on the wire keeps itself: it
// is refreshed before it expires and asked for again when the mesh says that it
// is broken, until Close. The workload's network namespace gets one interface;
// nothing else in it changes.
package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/openvwire/nsm/internal/undo"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// DefaultManager is the socket of the node's manager (protocol.md §1.3).
const DefaultManager = rpc.DefaultManager

// DefaultRequestTimeout bounds one Request, as NSM_REQUEST_TIMEOUT.
const DefaultRequestTimeout = 15 * time.Second

// probeManager is how long the manager may say nothing before it is asked whether it is
// alive. Wires do without it, and there is no other one to ask, so it is enough to notice
// now and then that it is frozen; that it ends or is restarted the socket tells at once.
// What is asked of a manager is multiplied by the clients of its node.
const probeManager = 10 * time.Second

// Config says who asks whom. The zero value is what most programs want.
type Config struct {
	// Name of the client in paths. A client that comes back under the same name
	// takes over the wires it had. Default: the host's name and something random.
	Name    string
	Manager string // URL; default DefaultManager

	// Source is who the client is. Default: identity.Open, which is closed again
	// with the client.
	Source identity.Source
	// TokenLifetime is how long what the client says is good. Default 10 min.
	TokenLifetime time.Duration

	RequestTimeout time.Duration // of one attempt; default DefaultRequestTimeout

	// Labels are added to those of every connection. NODE_NAME, POD_NAME and
	// CLUSTER_NAME of the environment are added by Open, as the reference does.
	Labels map[string]string

	// Liveness says how wires find out whether packets flow. With Peers it is
	// disabled unless something is set.
	Liveness Liveness

	Logger *slog.Logger // nil means slog.Default()

	// Peers takes the place of Source: whoever assembles a mesh in one process says
	// how the manager is reached, and with which tokens.
	Peers *peer.Pool
	// Verify checks the path of a new connection; nil means VerifyPath.
	Verify Verifier
}

// Client makes wires through one manager.
type Client struct {
	config  Config
	log     *slog.Logger
	manager *peer.Peer // nil until Open has succeeded
	named   bool       // somebody gave the client its name, so it may have had wires before
	opened  undo.Stack // closed with the client
	pacer   *pacer     // of the probers of all wires
	lookout *lookout   // for endpoints that wires wait for
	spread  *spread    // of refreshes
	netns   namespaces // that wires are in

	mu     sync.Mutex
	closed bool           // takes no more wires; guarded by mu
	next   int            // number of the next connection; guarded by mu
	wires  map[*Wire]bool // guarded by mu; not closed yet
}

// Open returns a client that is ready to connect. It waits for an identity.
func Open(ctx context.Context, c Config) (_ *Client, err error) {
	named := c.Name != ""
	c.fill()
	cl := &Client{log: c.Logger, named: named, wires: make(map[*Wire]bool), pacer: newPacer(), spread: newSpread()}
	defer func() {
		if err != nil {
			cl.release()
		}
	}()
	if c.Peers == nil {
		if c.Source == nil {
			if c.Source, err = identity.Open(ctx, identity.Config{Logger: c.Logger}); err != nil {
				return nil, err
			}
			source := c.Source
			cl.opened.Call(func() { _ = source.Close() })
		}
		tokens := token.NewGenerator(c.Source, c.TokenLifetime)
		creds, _ := rpc.MutualTLS(c.Source, c.Source)
		c.Peers = c.ownPool(func(url string) (grpc.ClientConnInterface, io.Closer, error) {
			cc, err := rpc.Dial(url, rpc.DialOptions{Credentials: creds, Tokens: tokens})
			return cc, cc, err
		})
		cl.opened.Call(c.Peers.Close)
	}
	cl.config = c
	cl.manager = c.Peers.Get(c.Manager)
	cl.lookout = newLookout(cl.manager.Conn, c.Logger)
	return cl, nil
}

func (c *Config) fill() {
	if c.Name == "" {
		host, _ := os.Hostname()
		c.Name = "nsc-" + host + "-" + randomHex(4)
	}
	if c.Manager == "" {
		c.Manager = DefaultManager
	}
	if c.TokenLifetime == 0 {
		c.TokenLifetime = token.DefaultLifetime
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = DefaultRequestTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Verify == nil {
		c.Verify = VerifyPath
	}
	if c.Peers != nil && c.Liveness.isZero() {
		c.Liveness.Disabled = true
	}
	c.Liveness.fill()
	labels := EnvironmentLabels(os.LookupEnv)
	for k, v := range c.Labels {
		labels[k] = v
	}
	c.Labels = labels
}

// ownPool is the pool of a client that has been given none.
func (c *Config) ownPool(dial func(url string) (grpc.ClientConnInterface, io.Closer, error)) *peer.Pool {
	return peer.NewPool(peer.PoolConfig{Name: c.Name, ProbeEvery: probeManager, Logger: c.Logger, Dial: dial})
}

// EnvironmentLabels are the labels that a process has by where it runs (§1.2).
func EnvironmentLabels(lookup func(string) (string, bool)) map[string]string {
	labels := make(map[string]string)
	for env, label := range map[string]string{"NODE_NAME": "nodeName", "POD_NAME": "podName", "CLUSTER_NAME": "clusterName"} {
		if v, ok := lookup(env); ok && strings.TrimSpace(v) != "" {
			labels[label] = v
		}
	}
	return labels
}

// randomHex returns 2n characters.
func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// Close closes the wires that are left, those that are just being made among
// them, then the client.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	left := slices.Collect(maps.Keys(c.wires))
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(left))
	for i, w := range left {
		wg.Go(func() { errs[i] = w.Close(ctx) })
	}
	wg.Wait()
	c.release()
	return errors.Join(errs...)
}

func (c *Client) release() {
	c.pacer.close()
	if c.manager != nil {
		c.lookout.close()
		c.manager.Release()
	}
	_ = c.opened.Run(context.Background())
}

func (c *Client) register(w *Wire) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nserr.Stopping.Errorf("the client is closed")
	}
	c.wires[w] = true
	return nil
}

func (c *Client) forget(w *Wire) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.wires, w)
}

func (c *Client) number() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	return c.next - 1
}

// SPDX-License-Identifier: Apache-2.0

// Package lab is a test bench: nodes that are network namespaces of this
// machine, joined by an underlay link, on which the daemons run as the processes
// they are in earnest.
//
//	l, err := lab.New(ctx, lab.Config{Binary: "bin/nsm", Nodes: []string{"a", "b"}})
//	if err != nil {
//		return err
//	}
//	defer l.Close()
//	if err := l.StartDaemons(ctx); err != nil {
//		return err
//	}
//	web, err := l.Node("a").Workload("web")
//	…
//	out, err := l.Node("a").Nsm(ctx, "get", "wires")
//
//	node a: namespace NAME-a          node b: namespace NAME-b
//	┌───────────────────────┐         ┌───────────────────────┐
//	│ authority  registry   │  eth0   │ authority (agent)     │
//	│ manager    forwarder  ├─────────┤ manager    forwarder  │
//	└───────────────────────┘         └───────────────────────┘
//	workloads of a: NAME-a-web, …      workloads of b: NAME-b-db, …
//
// Two nodes are joined by a veth pair, any other number by a bridge in a
// namespace of its own. Whatever a lab makes carries its name: namespaces begin
// with it, processes have it in their environment, files lie in its folder. So
// labs run side by side, and [Remove] finds all of one even when the process
// that made it is gone: a guard process calls it when that happens.
//
// Nothing in here waits by sleeping: a daemon is ready when it says so, a
// process is gone when the kernel says so.
package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/openvwire/nsm/forwarder/netns"
)

// Config says what lab to make.
type Config struct {
	Binary string   // path of the nsm program
	Nodes  []string // names; default a and b
	Name   string   // what all its things are called after; default made up
	Dir    string   // folder for state, sockets and logs, made by New; default a temporary one
	MTU    int      // of the underlay in bytes; default 1500

	Profiles  bool     // daemons serve profiles, so that their goroutines can be counted
	StateSize int64    // each state directory is a file system of so many bytes; 0 = part of the machine's
	Env       []string // added to the environment of every process, KEY=value
}

// Lab is a running lab. Its methods are safe for concurrent use.
type Lab struct {
	Name string
	Dir  string

	env        []string
	mtu        int
	profiles   bool
	stateSize  int64
	nodes      []*Node
	hub        *NetNS // with the bridge that joins the nodes; nil = there is none
	namespaces *netns.Table
	guard      *guard

	mu        sync.Mutex
	binary    string     // of nsm; guarded by mu
	processes []*Process // in the order of starting; guarded by mu
	logs      int        // number of the last log; guarded by mu
	closed    bool       // guarded by mu
}

// New makes the nodes and joins them. It starts no daemon. On failure nothing
// is left behind.
func New(ctx context.Context, c Config) (_ *Lab, err error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	l := &Lab{Name: c.Name, Dir: c.Dir, binary: c.Binary, env: c.Env, mtu: c.MTU, profiles: c.Profiles, stateSize: c.StateSize}
	if err := os.Mkdir(l.Dir, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.guard, err = startGuard(l); err != nil {
		return nil, err
	}
	if l.namespaces, err = netns.NewTable(); err != nil {
		return nil, err
	}
	for i, name := range c.Nodes {
		n, err := l.newNode(name, i+1)
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", name, err)
		}
		l.nodes = append(l.nodes, n)
	}
	if err := l.joinNodes(); err != nil {
		return nil, fmt.Errorf("underlay: %w", err)
	}
	return l, ctx.Err()
}

func (c *Config) fill() (err error) {
	if c.Binary, err = filepath.Abs(c.Binary); err != nil {
		return err
	}
	if len(c.Nodes) == 0 {
		c.Nodes = []string{"a", "b"}
	}
	if c.Name == "" {
		c.Name = NewName("nsm-")
	}
	if c.Dir == "" {
		c.Dir = filepath.Join(os.TempDir(), c.Name)
	}
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return err
	}
	// The longest socket is DIR/NODE/forwarder/wireguard.sock; unix(7) has 108 bytes.
	if len(c.Dir) > 70 {
		return fmt.Errorf("lab: %s is too long for the paths of sockets", c.Dir)
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	return nil
}

// NewName returns a name for a lab that no other one has.
func NewName(prefix string) string {
	b := make([]byte, 3)
	_, _ = rand.Read(b) // never fails
	return prefix + hex.EncodeToString(b)
}

// Nodes returns the nodes in the order of the configuration.
func (l *Lab) Nodes() []*Node { return slices.Clone(l.nodes) }

// Node returns the node of that name; there is none: it panics.
func (l *Lab) Node(name string) *Node {
	for _, n := range l.nodes {
		if n.Name == name {
			return n
		}
	}
	panic("lab: no node " + name)
}

// Daemons returns the daemons in the order in which they were started.
func (l *Lab) Daemons() (daemons []*Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.processes {
		if p.Node != "" {
			daemons = append(daemons, p)
		}
	}
	return daemons
}

// Daemon returns the daemon of that node and part that was started last; there is
// none: it panics.
func (l *Lab) Daemon(node, part string) *Process {
	for _, p := range slices.Backward(l.Daemons()) {
		if p.Node == node && p.Part == part {
			return p
		}
	}
	panic("lab: no " + part + " on node " + node)
}

// Use makes another program the lab's nsm: what starts from now on, or starts
// again, is of that build.
func (l *Lab) Use(binary string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.binary = binary
}

// program is the path of nsm.
func (l *Lab) program() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.binary
}

// Close ends every process, workloads first and daemons in the reverse order of
// their start, and removes the rest. It reports what did not end when told to.
// It is idempotent.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	processes := slices.Clone(l.processes)
	l.mu.Unlock()

	err := stopAll(processes)
	if l.namespaces != nil {
		l.namespaces.Close()
	}
	err = errors.Join(err, Remove(l.Name, l.Dir))
	return errors.Join(err, l.guard.dismiss())
}

// Release lets go of the lab: everything keeps running until [Remove].
func (l *Lab) Release() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.namespaces.Close()
	return l.guard.dismiss()
}

// stopAll stops workloads side by side, then daemons one by one.
func stopAll(processes []*Process) error {
	var wg sync.WaitGroup
	errs := make([]error, len(processes))
	for i, p := range processes {
		if p.Node == "" {
			wg.Go(func() { errs[i] = p.Stop() })
		}
	}
	wg.Wait()
	for i, p := range slices.Backward(processes) {
		if p.Node != "" {
			errs[i] = p.Stop()
		}
	}
	return errors.Join(errs...)
}

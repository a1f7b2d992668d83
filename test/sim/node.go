// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing/synctest"

	api "github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/forwarder"
	"github.com/openvwire/nsm/forwarder/kernel/memkernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/nsmgr"
	"github.com/openvwire/nsm/sdk/gate"
	"github.com/openvwire/nsm/sdk/registration"
)

// Node is a machine: a kernel that outlives every daemon, a manager, and usually
// one forwarder.
type Node struct {
	Name     string
	TunnelIP netip.Addr
	Kernel   *Kernel
	Manager  *Manager // nil while stopped
	Excluded func() []netip.Prefix
	// For forwarders to come.
	NoTunnel  bool
	Encrypted bool

	mesh       *Mesh
	forwarders []*Forwarder
	endpoints  []*Endpoint
	clients    []*Client
	mayForward sync.Map    // IDs that may register as forwarders
	abandoned  atomic.Bool // the manager finds nobody at any endpoint's socket
}

// Kernel is a memkernel that counts what it is asked.
type Kernel struct {
	*memkernel.Kernel
	Steps   atomic.Int64 // executed
	Removes atomic.Int64
	calls   atomic.Int64 // of all kinds
}

// Work returns how often the kernel was asked for anything.
func (k *Kernel) Work() int64 { return k.calls.Load() }

// Apply counts, and applies.
func (k *Kernel) Apply(ctx context.Context, w plan.Wire) ([]plan.Step, error) {
	k.calls.Add(1)
	steps, err := k.Kernel.Apply(ctx, w)
	k.Steps.Add(int64(len(steps)))
	return steps, err
}

// Remove counts, and removes.
func (k *Kernel) Remove(ctx context.Context, w plan.Wire) error {
	k.calls.Add(1)
	k.Removes.Add(1)
	return k.Kernel.Remove(ctx, w)
}

// Look counts, and looks.
func (k *Kernel) Look() (intact func(ctx context.Context, w plan.Wire) bool) {
	k.calls.Add(1)
	return k.Kernel.Look()
}

// Observe counts, and observes.
func (k *Kernel) Observe(ctx context.Context, w plan.Wire) (plan.Observed, error) {
	k.calls.Add(1)
	return k.Kernel.Observe(ctx, w)
}

// WireGuardKey counts, and looks for the key.
func (k *Kernel) WireGuardKey(ctx context.Context, netns, wireID string) (key [32]byte, port uint16, ok bool) {
	k.calls.Add(1)
	return k.Kernel.WireGuardKey(ctx, netns, wireID)
}

// OpenTunnel counts, and opens it.
func (k *Kernel) OpenTunnel(ctx context.Context, want plan.TunnelNode) (plan.TunnelNode, error) {
	k.calls.Add(1)
	return k.Kernel.OpenTunnel(ctx, want)
}

// TunnelWire counts, and looks for the number.
func (k *Kernel) TunnelWire(ctx context.Context, netns, wireID string) (number uint32, ok bool) {
	k.calls.Add(1)
	return k.Kernel.TunnelWire(ctx, netns, wireID)
}

// RenewTunnel counts, and renews.
func (k *Kernel) RenewTunnel(ctx context.Context, w plan.Wire) error {
	k.calls.Add(1)
	return k.Kernel.RenewTunnel(ctx, w)
}

// UnderlayMTU counts, and answers.
func (k *Kernel) UnderlayMTU(addr netip.Addr) (int, error) {
	k.calls.Add(1)
	return k.Kernel.UnderlayMTU(addr)
}

// PortFree counts, and answers.
func (k *Kernel) PortFree(port uint16) bool {
	k.calls.Add(1)
	return k.Kernel.PortFree(port)
}

// adopter is a node's kernel as one life of a forwarder sees it: it finds its
// leftovers wherever they stand and opens their namespaces, as the real one does.
type adopter struct {
	*Kernel
	mesh       *Mesh
	namespaces *netns.Table
}

// FindLinks returns what memkernel has, with a reference to each namespace.
func (a adopter) FindLinks(ctx context.Context) ([]plan.Found, error) {
	a.calls.Add(1)
	found, err := a.Kernel.FindLinks(ctx)
	for _, link := range found {
		for _, space := range a.mesh.spaces {
			if key, keyErr := netns.Key(space); keyErr != nil || key != link.NetNS {
				continue
			}
			again, openErr := os.Open(fmt.Sprintf("/proc/self/fd/%d", space.Fd()))
			if openErr != nil {
				return nil, openErr
			}
			if _, addErr := a.namespaces.Add(again); addErr != nil {
				return nil, addErr
			}
		}
	}
	return found, err
}

// Node returns a machine with a manager and a forwarder, both up.
func (m *Mesh) Node(name string) *Node {
	m.t.Helper()
	n := m.BareNode(name)
	n.StartForwarder("forwarder-"+name, map[string]string{"p2p": "true"})
	return n
}

// BareNode returns a machine with a manager.
func (m *Mesh) BareNode(name string) *Node {
	m.t.Helper()
	n := &Node{
		Name: name, mesh: m,
		TunnelIP: netip.AddrFrom4([4]byte{192, 0, 2, byte(len(m.nodes) + 1)}),
		Kernel:   &Kernel{Kernel: memkernel.New("forwarder-" + name)},
	}
	if m.Userspace {
		n.Kernel.SetWireGuardKind("tun")
	}
	m.nodes = append(m.nodes, n)
	m.SetHole(n, false)
	n.StartManager()
	return n
}

// ManagerURL is where everybody reaches the manager of the node.
func (n *Node) ManagerURL() string { return "tcp://manager-" + n.Name + ":5001" }

// Forwarder returns the node's first forwarder, nil if there is none.
func (n *Node) Forwarder() *Forwarder {
	if len(n.forwarders) == 0 {
		return nil
	}
	return n.forwarders[0]
}

// Manager is a running manager.
type Manager struct {
	*part
	*nsmgr.Manager
}

// StartManager starts a manager that knows nothing.
func (n *Node) StartManager() {
	n.mesh.t.Helper()
	p := n.mesh.newPart("manager-" + n.Name)
	m, err := nsmgr.New(nsmgr.Config{
		MayForward: func(id string) bool { _, ok := n.mayForward.Load(id); return ok },
		MayDrain:   func(id string) bool { return id == ID("operator") },
		MayRelay:   n.mesh.mayRelay,
		Name:       p.name, URL: n.ManagerURL(), Labels: map[string]string{"nodeName": n.Name},
		Tokens: p.tokens, Policy: p.policy, Peers: p.peers, Sockets: p.sockets,
		Registry: p.dial(RegistryURL), Gate: gate.New(n.mesh.places),
		Abandoned: func(_ context.Context, url string) bool {
			return n.abandoned.Load() || n.mesh.Network.nobodyAt(url)
		},
		Excluded: func() []netip.Prefix {
			if n.Excluded == nil {
				return nil
			}
			return n.Excluded()
		},
		Logger: p.log,
	})
	if err != nil {
		n.mesh.t.Fatal(err)
	}
	p.listen(n.ManagerURL(), m.Register)
	n.Manager = &Manager{p, m}
	synctest.Wait()
}

// StopManager stops it like a SIGKILL does, but for what the process holds.
func (n *Node) StopManager() {
	if n.Manager == nil {
		return
	}
	n.Manager.hangUp()
	n.Manager.Manager.Stop()
	n.Manager.peers.Close()
	if left := n.Manager.sockets.Len(); left != 0 {
		n.mesh.t.Errorf("%s has stopped and holds %d sockets", n.Manager.name, left)
	}
	n.Manager = nil
}

// Forwarder is a running forwarder.
type Forwarder struct {
	*part
	*forwarder.Forwarder
	node         *Node
	labels       map[string]string
	namespaces   *netns.Table
	registration *registration.Registration
}

// StartForwarder starts a forwarder that knows nothing, with labels.
func (n *Node) StartForwarder(name string, labels map[string]string) *Forwarder {
	t := n.mesh.t
	t.Helper()
	p := n.mesh.newPart(name)
	n.mayForward.Store(ID(name), true)
	n.mesh.relays.Store(ID(name), true)
	namespaces, err := netns.NewTable()
	if err != nil {
		t.Fatal(err)
	}
	f, err := forwarder.New(forwarder.Config{
		Name: name, TunnelIP: n.TunnelIP, Tokens: p.tokens, Policy: p.policy, Peers: p.peers,
		Sockets: p.sockets, Registry: p.dial(n.ManagerURL()), Kernel: adopter{n.Kernel, n.mesh, namespaces}, Namespaces: namespaces, NoTunnel: n.NoTunnel, Encrypted: n.Encrypted, Logger: p.log,
		MayUseNode: func(id string) bool { return id == ID("root") || id == ID("manager-"+n.Name) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Adopt(t.Context(), TokenLifetime); err != nil {
		t.Fatal(err)
	}
	p.listen("inproc://"+name, f.Register)
	out := &Forwarder{part: p, Forwarder: f, node: n, labels: labels, namespaces: namespaces}
	out.registration, err = registration.Start(t.Context(), registration.Config{
		Registry: p.dial(n.ManagerURL()),
		Endpoint: &api.NetworkServiceEndpoint{
			Name: name, Url: p.url, NetworkServiceNames: []string{"forwarder"},
			NetworkServiceLabels: map[string]*api.NetworkServiceLabels{"forwarder": {Labels: labels}},
		},
		Logger: p.log,
	})
	if err != nil {
		t.Fatal(err)
	}
	n.forwarders = append(n.forwarders, out)
	return out
}

// Stop stops the forwarder; its wires stay in the kernel.
func (f *Forwarder) Stop() {
	t := f.mesh.t
	f.registration.Abandon()
	f.hangUp()
	f.Forwarder.Stop()
	if keys := f.namespaces.Keys(); len(keys) != 1 {
		t.Errorf("%s has stopped and holds the namespaces %v", f.name, keys)
	}
	if left := f.sockets.Len(); left != 0 {
		t.Errorf("%s has stopped and holds %d sockets", f.name, left)
	}
	f.namespaces.Close()
	f.peers.Close()
	f.node.forwarders = slices.DeleteFunc(f.node.forwarders, func(o *Forwarder) bool { return o == f })
}

// Restart stops the forwarder and starts one that knows nothing in its place.
func (f *Forwarder) Restart() *Forwarder {
	f.Stop()
	return f.node.StartForwarder(f.name, f.labels)
}

func (n *Node) stop() {
	for _, c := range slices.Clone(n.clients) {
		c.Vanish()
	}
	for _, e := range slices.Clone(n.endpoints) {
		e.Vanish()
	}
	for _, f := range slices.Clone(n.forwarders) {
		f.Stop()
	}
	n.StopManager()
}

var _ forwarder.Kernel = (*Kernel)(nil)

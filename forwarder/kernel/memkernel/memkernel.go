// SPDX-License-Identifier: Apache-2.0

// Package memkernel is a kernel in memory: the twin of package kernel for
// tests that run a whole mesh in a synctest bubble, and the naive model that
// package plan is checked against.
//
//	k := memkernel.New("forwarder-a")
//	steps, err := k.Apply(ctx, wire)
//
// It keeps namespaces, links, addresses, routes, rules and neighbours in maps
// and executes one [plan.Step] at a time. It is strict where the real kernel
// is: what exists cannot be added, what does not exist cannot be removed, a
// route needs a link that is up. It carries no packets.
package memkernel

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Kernel is the in-memory twin of kernel.Kernel. It is safe for concurrent
// use. Namespaces exist as soon as they are mentioned.
type Kernel struct {
	owner string

	// Fail, if set before first use, is asked before each step that is not
	// part of an undo; its error is the step's.
	Fail func(plan.Step) error

	mu         sync.Mutex
	links      int // made so far
	namesFixed bool
	namespaces map[string]*namespace
	wireguard  string          // link kind of WireGuard devices to come
	tunnel     plan.TunnelNode // zero: nobody has opened it
	renewals   int             // of sessions in the tunnel

	underlayMTU int
}

type namespace struct {
	gone    bool
	links   map[string]*link
	rules   []plan.Rule
	ping    bool // ping sockets are open to everybody
	ipv6Off bool // of links to come
}

type link struct {
	index     int
	kind      string
	alias     string
	mtu       int
	mac       net.HardwareAddr
	up        bool
	ipv6Off   bool
	addrs     []addr
	routes    []route
	neighbors []plan.Neighbor
	vxlan     *plan.VXLAN
	wireguard *plan.WireGuard
	device    plan.Tag // of WireGuard: what its backend knows it by
	tunnel    *plan.Tunnel
	handshake time.Time // last with the WireGuard peer
	peer      *link     // veth only: the other end
}

type route struct {
	plan.Route
	table int
}

// New returns an empty kernel for the forwarder called owner.
func New(owner string) *Kernel {
	return &Kernel{owner: owner, namespaces: make(map[string]*namespace), wireguard: "wireguard", underlayMTU: 1500}
}

// SetWireGuardKind sets what makes WireGuard devices from now on, as a restart of
// the forwarder may: "wireguard" or "tun". Those of the other kind it cannot read.
func (k *Kernel) SetWireGuardKind(kind string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wireguard = kind
}

// DeleteNamespace lets a namespace vanish with everything in it, as when the
// last process inside exits.
func (k *Kernel) DeleteNamespace(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	ns := k.namespace(key)
	for name := range ns.links {
		k.deleteLink(plan.Link{NetNS: key, Name: name})
	}
	*ns = namespace{gone: true}
}

// AddLink puts a stranger's link into a namespace.
func (k *Kernel) AddLink(key, name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.namespace(key).links[name] = &link{kind: "dummy", mtu: 1500}
}

// RemoveLink takes it out again.
func (k *Kernel) RemoveLink(key, name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.namespace(key).links, name)
}

// FixNames has links that are up keep their names, as before Linux 6.2.
func (k *Kernel) FixNames() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.namesFixed = true
}

// SetIPv6Off sets disable_ipv6 for links to come.
func (k *Kernel) SetIPv6Off(key string, off bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.namespace(key).ipv6Off = off
}

// Apply is like the real one: it checks, observes, and executes the difference
// or nothing.
func (k *Kernel) Apply(ctx context.Context, w plan.Wire) ([]plan.Step, error) {
	return k.apply(ctx, w, func(steps []plan.Step) []plan.Step { return steps })
}

// Switch is like the real one.
func (k *Kernel) Switch(ctx context.Context, w plan.Wire) ([]plan.Step, error) {
	return k.apply(ctx, w, plan.Urgent)
}

func (k *Kernel) apply(ctx context.Context, w plan.Wire, part func([]plan.Step) []plan.Step) ([]plan.Step, error) {
	if w.Owner == "" {
		w.Owner = k.owner
	}
	if err := w.Validate(); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	seen, err := k.observe(ctx, w)
	if err != nil {
		return nil, err
	}
	if err := plan.Conflict(w, seen); err != nil {
		return nil, err
	}
	steps := part(plan.Diff(w, seen))
	if err := k.execute(steps); err != nil {
		return nil, err
	}
	return steps, nil
}

// Look is like the real one, but shows everything as it is when it is asked.
func (k *Kernel) Look() (intact func(ctx context.Context, w plan.Wire) bool) {
	return func(ctx context.Context, w plan.Wire) bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		if w.Owner == "" {
			w.Owner = k.owner
		}
		seen, err := k.observe(ctx, w)
		return err == nil && w.Validate() == nil && plan.Conflict(w, seen) == nil && len(plan.Diff(w, seen)) == 0
	}
}

// Execute executes steps as they are, or takes them back if one fails.
func (k *Kernel) Execute(steps []plan.Step) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.execute(steps)
}

func (k *Kernel) execute(steps []plan.Step) error {
	failed := false
	err := plan.Execute(steps, func(s plan.Step) error {
		if k.Fail != nil && !failed {
			if err := k.Fail(s); err != nil {
				failed = true
				return err
			}
		}
		err := k.do(s)
		failed = failed || err != nil
		return err
	})
	if err != nil {
		return nserr.KernelFailed.Errorf("%w", err)
	}
	return nil
}

// Remove deletes the wire. A namespace that is gone is not an error.
func (k *Kernel) Remove(ctx context.Context, w plan.Wire) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	w.Ends = slices.DeleteFunc(slices.Clone(w.Ends), func(e plan.End) bool { return k.namespace(e.NetNS).gone })
	seen, err := k.observe(ctx, w)
	if err != nil {
		return err
	}
	return k.execute(plan.Removal(w, seen))
}

// Observe returns what the kernel has for the wire.
func (k *Kernel) Observe(ctx context.Context, w plan.Wire) (plan.Observed, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.observe(ctx, w)
}

// Adopt returns every link tagged as this forwarder's.
func (k *Kernel) FindLinks(ctx context.Context) ([]plan.Found, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var found []plan.Found
	for key, ns := range k.namespaces {
		for name, l := range ns.links {
			if tag, ok := plan.ParseTag(l.alias); ok && tag.Owner == k.owner {
				found = append(found, plan.Found{Tag: tag, NetNS: key, Name: name, LinkKind: l.kind})
			}
		}
	}
	slices.SortFunc(found, func(a, b plan.Found) int { return cmp.Compare(a.Tag.String(), b.Tag.String()) })
	return found, ctx.Err()
}

// WireGuardKey returns private key and port of a wire's device.
func (k *Kernel) WireGuardKey(_ context.Context, ns, wireID string) (key [32]byte, port uint16, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range k.namespace(ns).links {
		if tag, tagged := plan.ParseTag(l.alias); tagged && tag.Owner == k.owner && tag.ID == wireID && l.wireguard != nil && l.kind == k.wireguard {
			return l.wireguard.PrivateKey, l.wireguard.Port, true
		}
	}
	return key, 0, false
}

// WireGuards returns the configurations of all WireGuard devices.
func (k *Kernel) WireGuards() (all []plan.WireGuard) {
	k.eachLink(func(l *link) {
		if l.wireguard != nil {
			all = append(all, *l.wireguard)
		}
	})
	return all
}

// OpenTunnel returns this node's end of the tunnel, made as wanted if there is none. The
// kernel's own WireGuard has none.
func (k *Kernel) OpenTunnel(ctx context.Context, want plan.TunnelNode) (plan.TunnelNode, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.wireguard != "tun" {
		return plan.TunnelNode{}, nserr.Unsupported.Errorf("no WireGuard in userspace, no tunnel")
	}
	if k.tunnel == (plan.TunnelNode{}) {
		k.tunnel = want
	}
	return k.tunnel, ctx.Err()
}

// TunnelWire returns the number of a wire of the tunnel.
func (k *Kernel) TunnelWire(_ context.Context, ns, wireID string) (number uint32, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range k.namespace(ns).links {
		if tag, tagged := plan.ParseTag(l.alias); tagged && tag.Owner == k.owner && tag.ID == wireID && l.tunnel != nil {
			return l.tunnel.Wire, true
		}
	}
	return 0, false
}

// RenewTunnel counts.
func (k *Kernel) RenewTunnel(ctx context.Context, _ plan.Wire) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.renewals++
	return ctx.Err()
}

// Renewals returns how often a session in the tunnel was begun anew.
func (k *Kernel) Renewals() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.renewals
}

// KillHolder ends the process that keeps devices of userspace: with it they go, and
// the tunnel.
func (k *Kernel) KillHolder() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tunnel = plan.TunnelNode{}
	for _, ns := range k.namespaces {
		for name, l := range ns.links {
			if l.kind == "tun" || l.kind == plan.LinkTunnel {
				delete(ns.links, name)
			}
		}
	}
}

// Tunnels returns all wires of the tunnel.
func (k *Kernel) Tunnels() (all []plan.Tunnel) {
	k.eachLink(func(l *link) {
		if l.tunnel != nil {
			all = append(all, *l.tunnel)
		}
	})
	return all
}

// VNIs returns those of all VXLAN devices.
func (k *Kernel) VNIs() (all []uint32) {
	k.eachLink(func(l *link) {
		if l.vxlan != nil {
			all = append(all, l.vxlan.VNI)
		}
	})
	return all
}

// SetHandshake has all WireGuard devices, and the tunnel, have had their last handshake at a time.
func (k *Kernel) SetHandshake(at time.Time) {
	k.eachLink(func(l *link) {
		if l.wireguard != nil || l.tunnel != nil {
			l.handshake = at
		}
	})
}

func (k *Kernel) eachLink(f func(*link)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, ns := range k.namespaces {
		for _, l := range ns.links {
			f(l)
		}
	}
}

// UnderlayMTU returns what SetUnderlayMTU has set, for every address.
func (k *Kernel) UnderlayMTU(netip.Addr) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.underlayMTU, nil
}

// UnderlayPrefix returns a prefix of 24 bits, or 64, with the address.
func (k *Kernel) UnderlayPrefix(addr netip.Addr) (netip.Prefix, error) {
	if addr.Is4() {
		return netip.PrefixFrom(addr, 24), nil
	}
	return netip.PrefixFrom(addr, 64), nil
}

// SetUnderlayMTU sets the MTU of the underlay. It is 1500 at first.
func (k *Kernel) SetUnderlayMTU(mtu int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.underlayMTU = mtu
}

// PortFree reports whether no WireGuard device uses the UDP port.
func (k *Kernel) PortFree(port uint16) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tunnel.Port == port {
		return false
	}
	for _, ns := range k.namespaces {
		for _, l := range ns.links {
			if l.wireguard != nil && l.wireguard.Port == port {
				return false
			}
		}
	}
	return true
}

// Links returns the number of links in all namespaces.
func (k *Kernel) Links() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, ns := range k.namespaces {
		n += len(ns.links)
	}
	return n
}

// Has reports whether a link that is up in the namespace, or in any if key is empty,
// has the address.
func (k *Kernel) Has(key string, a netip.Addr) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, ns := range k.namespaces {
		for _, l := range ns.links {
			if (key == "" || key == name) && l.up && slices.ContainsFunc(l.addrs, func(has addr) bool { return has.Addr() == a }) {
				return true
			}
		}
	}
	return false
}

// Routes reports whether a link in the namespace has a route to dst in the main table.
func (k *Kernel) Routes(key string, dst netip.Prefix) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range k.namespace(key).links {
		if slices.ContainsFunc(l.routes, func(r route) bool { return r.table == plan.Main && r.Dst == dst.Masked() }) {
			return true
		}
	}
	return false
}

// Rules returns the number of rules in all namespaces.
func (k *Kernel) Rules() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, ns := range k.namespaces {
		n += len(ns.rules)
	}
	return n
}

func (k *Kernel) namespace(key string) *namespace {
	ns, ok := k.namespaces[key]
	if !ok {
		ns = &namespace{links: make(map[string]*link)}
		k.namespaces[key] = ns
	}
	return ns
}

func (k *Kernel) observe(ctx context.Context, w plan.Wire) (plan.Observed, error) {
	if w.Owner == "" {
		w.Owner = k.owner
	}
	seen := plan.Observed{Ends: make([]plan.ObservedEnd, len(w.Ends)), WireGuardKind: k.wireguard, NamesFixed: k.namesFixed}
	visited := make(map[string]bool)
	for i, e := range w.Ends {
		ns := k.namespace(e.NetNS)
		if ns.gone {
			return plan.Observed{}, nserr.NoNetNS.Errorf("network namespace %s is gone", e.NetNS)
		}
		seen.Ends[i] = ns.observe(w, e, !visited[e.NetNS])
		for _, o := range []*plan.ObservedEnd{&seen.Ends[i], seen.Ends[i].Aside} {
			if o != nil && o.LinkKind != k.wireguard {
				o.WireGuard = nil
			}
		}
		visited[e.NetNS] = true
	}
	return seen, ctx.Err()
}

// observe returns one end as it is, with the namespace's orphaned rules if asked.
func (ns *namespace) observe(w plan.Wire, e plan.End, orphans bool) plan.ObservedEnd {
	o := plan.ObservedEnd{NewIPv6Off: ns.ipv6Off, PingClosed: !ns.ping}
	mac := e.MAC
	if mac == nil {
		mac = plan.MAC(w.ID, e.Side)
	}
	var mine, aside *link
	tag, asideTag := w.Tag(e.Side).String(), w.Tag(e.Side).SetAside().String()
	for name, l := range ns.links {
		tagged := l.alias == tag
		untagged := l.alias == "" && slices.Equal(l.mac, mac)
		if tagged || (untagged && mine == nil) {
			mine, o.Name, o.Tagged = l, name, tagged
		} else if l.alias == asideTag {
			aside, o.Aside = l, &plan.ObservedEnd{Name: name, Tagged: true}
		}
	}
	if l, exists := ns.links[e.Name]; exists && l != mine {
		o.Taken = true
	}
	if mine != nil {
		mine.observe(&o)
	}
	o.Tables = ns.tables(mine, orphans)
	if aside != nil {
		aside.observe(o.Aside)
		o.Aside.Tables = ns.tables(aside, false)
	}
	if len(e.Policies) > 0 {
		o.UsedTables = ns.usedTables()
	}
	return o
}

// observe fills in what is known about the link.
func (l *link) observe(o *plan.ObservedEnd) {
	o.Found, o.Index, o.LinkKind, o.MTU, o.MAC, o.Up, o.IPv6Off = true, l.index, l.kind, l.mtu, l.mac, l.up, l.ipv6Off
	if l.peer != nil {
		o.Peer = l.peer.index
	}
	o.Addrs = slices.Clone(l.addrs)
	o.Neighbors = slices.Clone(l.neighbors)
	o.VXLAN, o.WireGuard, o.Tunnel, o.LastHandshake = l.vxlan, l.wireguard, l.tunnel, l.handshake
	for _, r := range l.routes {
		if r.table == plan.Main {
			o.Routes = append(o.Routes, r.Route)
		}
	}
}

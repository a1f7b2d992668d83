// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Node is one machine of the lab.
type Node struct {
	Name  string
	Addr  netip.Addr // on the underlay, IPv4
	Addr6 netip.Addr // on the underlay, IPv6
	Dir   string     // run and state directories of its daemons
	NetNS *NetNS     // where its daemons run

	lab *Lab
}

// Underlay is the name of a node's link to the other nodes.
const Underlay = "eth0"

func (l *Lab) newNode(name string, number int) (*Node, error) {
	n := &Node{
		Name: name, Dir: filepath.Join(l.Dir, name), lab: l,
		Addr:  netip.AddrFrom4([4]byte{10, 99, 0, byte(number)}),
		Addr6: netip.MustParseAddr(fmt.Sprintf("fd99::%x", number)),
	}
	if err := os.Mkdir(n.Dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	n.NetNS, err = l.newNetNS(name, n.env())
	return n, err
}

// Manager is the URL of the node's manager.
func (n *Node) Manager() string { return "unix://" + filepath.Join(n.Dir, "nsm.io.sock") }

// Identity is the URL of the node's SPIFFE Workload API.
func (n *Node) Identity() string { return "unix://" + filepath.Join(n.Dir, "identity.sock") }

// HolderSocket is the path of the socket of the process that has the node's userspace
// WireGuard, where the forwarder is a process of its own.
func (n *Node) HolderSocket() string { return filepath.Join(n.state("forwarder"), "wireguard.sock") }

// env is what tells nsm's commands that they are on this node.
func (n *Node) env() []string {
	return append(n.Env(),
		"NODE_NAME="+n.Name,
		"NSM_RUN_DIR="+n.Dir,
		"NSM_IDENTITY_SOCKET="+n.Identity(),
		"NSM_EXCLUDED_PREFIXES_FILE="+n.ExcludedPrefixes(),
		"NSM_STATE_DIR="+n.state("serve"), // of endpoints; each daemon is told its own
	)
}

// Env returns the variables by which a command finds the daemons of this node,
// KEY=value: the first to ask a manager, the second for an identity.
func (n *Node) Env() []string {
	return []string{"NSM_CONNECT_TO=" + n.Manager(), "SPIFFE_ENDPOINT_SOCKET=" + n.Identity()}
}

// ExcludedPrefixes is the path of the node's file of excluded prefixes.
func (n *Node) ExcludedPrefixes() string {
	return filepath.Join(n.Dir, "config", "excluded_prefixes.yaml")
}

// Workload makes a network namespace for a workload of this node.
func (n *Node) Workload(name string) (*NetNS, error) {
	return n.lab.newNetNS(n.Name+"-"+name, n.env())
}

// Nsm runs an nsm command on the node to its end and returns what it printed.
// If it fails the error is an [*ExitError].
func (n *Node) Nsm(ctx context.Context, args ...string) (stdout string, err error) {
	return n.NetNS.Run(ctx, append([]string{n.lab.program()}, args...)...)
}

// Start starts a daemon of the node ("authority", "registry", "manager",
// "forwarder", "up") and returns when it is ready. args come after those by
// which the daemons of a lab find each other, hence override them.
func (n *Node) Start(ctx context.Context, part string, args ...string) (*Process, error) {
	argv := append([]string{part}, n.arguments(part)...)
	if n.lab.profiles {
		argv = append(argv, "--pprof-enabled", "--pprof-listen-on", n.profileAddress(part))
	}
	if n.lab.stateSize != 0 && part != "manager" { // which keeps nothing
		if err := n.mountState(part); err != nil {
			return nil, err
		}
	}
	last := part
	if part == "up" {
		last = "forwarder"
	}
	ready := func(line string) bool {
		return strings.HasPrefix(line, last) && strings.Contains(line, " listens on ")
	}
	return n.NetNS.start(ctx, startOptions{label: n.Name + "-" + part, node: n.Name, part: part, nsm: true, ready: ready}, append(argv, args...))
}

// unique is a name that is the node's and the lab's. Forwarders have one: those
// of two labs are on one machine in truth, see each other's workloads in /proc,
// and tell by their names which links are their own.
func (n *Node) unique() string {
	return n.Name + "-" + n.lab.Name[strings.LastIndex(n.lab.Name, "-")+1:]
}

// state is the state directory of a daemon.
func (n *Node) state(part string) string { return filepath.Join(n.Dir, part) }

func (n *Node) arguments(part string) []string {
	tcp := func(port int) string { return fmt.Sprintf("tcp://%s:%d", n.Addr, port) }
	authority := []string{"--authority-listen-on", tcp(5007), "--authority-advertise", n.Addr.String() + ":5007"}
	state := n.state(part)
	switch part {
	case "authority":
		return append(authority, "--node", n.Name, "--state-dir", state)
	case "registry":
		return []string{"--listen-on", tcp(5002), "--state-dir", state}
	case "manager":
		registry := fmt.Sprintf("tcp://%s:5002", n.lab.nodes[0].Addr)
		return []string{"--name", "manager-" + n.Name, "--registry-url", registry, "--listen-on", n.Manager() + "," + tcp(5001)}
	case "forwarder":
		return []string{"--name", "forwarder-" + n.unique(), "--tunnel-ip", n.Addr.String(), "--state-dir", state}
	case "up":
		return append(authority, "--node", n.unique(), "--state-dir", state, "--tunnel-ip", n.Addr.String(),
			"--manager-listen-on", tcp(5001), "--registry-listen-on", tcp(5002))
	}
	return nil
}

// StartDaemons starts the mesh with a process per daemon: the authority and the
// registry on the first node, a manager and a forwarder on every one.
func (l *Lab) StartDaemons(ctx context.Context) error {
	first := l.nodes[0]
	if _, err := first.Start(ctx, "authority"); err != nil {
		return err
	}
	err := sideBySide(l.nodes[1:], func(n *Node) error {
		_, err := n.join(ctx, first, "authority")
		return err
	})
	if err != nil {
		return err
	}
	if _, err := first.Start(ctx, "registry"); err != nil {
		return err
	}
	for _, part := range []string{"manager", "forwarder"} {
		err := sideBySide(l.nodes, func(n *Node) error {
			_, err := n.Start(ctx, part)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// sideBySide calls f for all nodes at once.
func sideBySide(nodes []*Node, f func(*Node) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(nodes))
	for i, n := range nodes {
		wg.Go(func() { errs[i] = f(n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// StartUp starts the mesh with a process per node: 'nsm up'.
func (l *Lab) StartUp(ctx context.Context) error {
	if _, err := l.nodes[0].Start(ctx, "up"); err != nil {
		return err
	}
	for _, n := range l.nodes[1:] {
		if _, err := n.join(ctx, l.nodes[0], "up"); err != nil {
			return err
		}
	}
	return nil
}

// join starts a part with a token of the authority on another node.
func (n *Node) join(ctx context.Context, authority *Node, part string) (*Process, error) {
	node := n.Name
	if part == "up" {
		node = n.unique()
	}
	token, err := authority.Nsm(ctx, "token", "create", "--node", node)
	if err != nil {
		return nil, err
	}
	return n.Start(ctx, part, "--join", strings.TrimSpace(token))
}

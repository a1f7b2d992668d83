// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/openvwire/nsm/internal/echo"
	"github.com/openvwire/nsm/internal/lab"
)

// census is what there is of everything.
type census struct {
	kernel     []string       // every object in every namespace (lab.State)
	wireLinks  int            // ends of wires
	namespaces []string       // names
	processes  []string       // of the lab, commands; without the holders, which stay
	holders    map[string]int // how many WireGuard devices the one of each node has
	leases     int            // wires that endpoints have
	shown      map[string]int // wires that operators see, by node
	registered []string       // endpoints in the registry, names
	inUse      map[string]int // goroutines, and descriptors by kind, of each daemon
}

func (s *soak) census(ctx context.Context) (c *census, err error) {
	c = &census{shown: make(map[string]int), inUse: make(map[string]int)}
	if c.kernel, err = s.lab.State(); err != nil {
		return nil, err
	}
	ends, err := s.lab.WireLinks()
	if err != nil {
		return nil, err
	}
	c.wireLinks = len(ends)
	all := lab.Find(s.lab.Name, s.lab.Dir)
	c.namespaces = all.Namespaces
	for _, p := range all.Processes {
		_, command, _ := strings.Cut(p, " ")
		if !strings.Contains(command, holderCommand) {
			c.processes = append(c.processes, command)
		}
	}
	for _, e := range s.servers {
		st, err := tell(ctx, e.control, order{})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		c.leases += st.Wires
	}
	for _, n := range s.lab.Nodes() {
		rows, err := rows(ctx, n, "wires")
		if err != nil {
			return nil, err
		}
		c.shown[n.Name] = len(rows)
	}
	if c.registered, err = rows(ctx, s.lab.Node("a"), "endpoints"); err != nil {
		return nil, err
	}
	c.holders = make(map[string]int)
	for _, n := range s.lab.Nodes() {
		h, err := n.Holder()
		if err != nil {
			continue // there is none
		}
		open, err := lab.Descriptors(h.PID)
		if err != nil {
			return nil, err
		}
		c.holders[n.Name] = open["tun"]
	}
	return c, s.countInUse(ctx, c)
}

// holderCommand is the command of the process that WireGuard devices live in. It stays
// as long as its forwarder does.
const holderCommand = "wireguard-holder"

// rows are the names or ids of what 'nsm get' lists on a node, sorted.
func rows(ctx context.Context, n *lab.Node, what string) (names []string, err error) {
	out, err := n.Nsm(ctx, "get", what)
	if err != nil {
		return nil, err
	}
	for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
		if f := strings.Fields(line); i > 0 && len(f) > 0 { // below the heading
			names = append(names, f[0])
		}
	}
	slices.Sort(names)
	return names, nil
}

func (s *soak) countInUse(ctx context.Context, c *census) error {
	for _, p := range s.lab.Daemons() {
		name := p.Part + " of " + p.Node
		n, err := p.Goroutines(ctx)
		if err != nil {
			return err
		}
		c.inUse[name+": goroutines"] = n
		open, err := lab.Descriptors(p.PID)
		if err != nil {
			return err
		}
		for kind, n := range open {
			c.inUse[name+": descriptors of kind "+kind] = n
		}
	}
	return nil
}

// slack is how many more goroutines, and descriptors of one kind, a daemon may have: a
// few connections to peers that are in use now and then, each three or four goroutines.
// Whoever has got a new SVID has another connection, but no more of them.
const slack = 12

// unlike says in what the census differs from another one of the same wires. Objects of
// the kernel are compared one by one if exact, else by number: wires may have moved to
// other endpoints, and have other addresses.
func (c *census) unlike(want *census, exact bool) (wrong []string) {
	if exact {
		wrong = append(wrong, differences(want.kernel, c.kernel)...)
	} else {
		have, want := numbers(c.kernel), numbers(want.kernel)
		for what := range union(have, want) {
			if have[what] != want[what] {
				wrong = append(wrong, fmt.Sprintf("%s: %d, were %d", what, have[what], want[what]))
			}
		}
	}
	wrong = append(wrong, differences(want.namespaces, c.namespaces)...)
	wrong = append(wrong, differences(want.registered, c.registered)...)
	wrong = append(wrong, differences(want.processes, c.processes)...)
	for what, n := range map[string][2]int{
		"ends of wires": {c.wireLinks, want.wireLinks}, "leases": {c.leases, want.leases},
		"devices of the holder of a": {c.holders["a"], want.holders["a"]}, "devices of the holder of b": {c.holders["b"], want.holders["b"]},
		"wires shown on a": {c.shown["a"], want.shown["a"]}, "wires shown on b": {c.shown["b"], want.shown["b"]},
	} {
		if n[0] != n[1] {
			wrong = append(wrong, fmt.Sprintf("%s: %d, were %d", what, n[0], n[1]))
		}
	}
	for what, n := range c.inUse {
		if n > want.inUse[what]+slack {
			wrong = append(wrong, fmt.Sprintf("%s: %d, were %d", what, n, want.inUse[what]))
		}
	}
	slices.Sort(wrong)
	return wrong
}

// differences says what has gone and what has come.
func differences(before, now []string) (found []string) {
	for _, x := range before {
		if !slices.Contains(now, x) {
			found = append(found, "gone: "+x)
		}
	}
	for _, x := range now {
		if !slices.Contains(before, x) {
			found = append(found, "has come: "+x)
		}
	}
	return found
}

// numbers counts objects of the kernel by what they are and whose: those of a node one
// by one, those of clients and of endpoints together, since wires move.
func numbers(state []string) map[string]int {
	count := make(map[string]int)
	for _, line := range state {
		where, what, _ := strings.Cut(line, ": ")
		if node, workload, ok := strings.Cut(where, "-"); ok {
			kind, _, _ := strings.Cut(what, " ")
			whose := "endpoints"
			if strings.HasPrefix(workload, "web-") {
				whose = "client " + workload
			}
			line = fmt.Sprintf("of kind %s of %s on %s", kind, whose, node)
		}
		count[line]++
	}
	return count
}

func union[V any](a, b map[string]V) map[string]V {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// wrongWires says which wires do not carry packets.
func (s *soak) wrongWires(ctx context.Context, c *census) []string {
	var mu sync.Mutex
	var wrong []string
	err := s.each(func(w *customer) error {
		if !w.current().Running() {
			return fmt.Errorf("%s has ended:\n%s", w.name, w.current().Output())
		}
		ns, err := os.Open(w.ns.Path())
		if err != nil {
			return err
		}
		defer ns.Close()
		for _, iface := range w.ifaces {
			from, to := c.ends("a-"+w.name, iface)
			if err := ping(ctx, ns, from, to); err != nil {
				mu.Lock()
				wrong = append(wrong, fmt.Sprintf("wire %s of %s: %v", iface, w.name, err))
				mu.Unlock()
			}
		}
		return nil
	})
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	slices.Sort(wrong)
	return wrong
}

// ends are the addresses of the two ends of a wire, as the kernel of its client has
// them: the interface's own, and the one that there is a route to.
func (c *census) ends(where, iface string) (from, to netip.Addr) {
	for _, line := range c.kernel {
		if !strings.HasPrefix(line, where+": ") || !strings.Contains(line+" ", " dev "+iface+" ") {
			continue
		}
		f := strings.Fields(line)
		p, err := netip.ParsePrefix(f[2])
		switch {
		case err != nil || !p.IsSingleIP() || !p.Addr().Is4():
		case f[1] == "address":
			from = p.Addr()
		case f[1] == "route":
			to = p.Addr()
		}
	}
	return from, to
}

// pingLimit is how long a packet may take there and back on a machine that is busy.
const pingLimit = time.Second

// ping sends packets until one comes back.
func ping(ctx context.Context, ns *os.File, from, to netip.Addr) error {
	if !from.IsValid() || !to.IsValid() {
		return errors.New("the interface has no addresses")
	}
	e, err := echo.Open(ns, from, to)
	if err != nil {
		return err
	}
	defer e.Close()
	for seq := range uint16(pingLimit / (20 * time.Millisecond)) {
		if err := e.Send(seq); err != nil && !errors.Is(err, echo.ErrNotSent) {
			return err
		}
		if err := wait(ctx, 20*time.Millisecond); err != nil {
			return err
		}
		if _, ok := e.Receive(); ok {
			return nil
		}
	}
	return fmt.Errorf("nothing comes back from %s", to)
}

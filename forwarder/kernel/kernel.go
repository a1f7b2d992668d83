// SPDX-License-Identifier: Apache-2.0

// Package kernel makes wires in the Linux kernel: it observes, lets package
// plan compute what is missing, and executes that. It is the only part of the
// forwarder that speaks rtnetlink.
//
//	k, err := kernel.New(kernel.Config{Name: "fwd-a", Namespaces: table})
//	steps, err := k.Apply(ctx, wire) // again and again: the second time does nothing
//	err = k.Remove(ctx, wire)
//
// Nothing that matters is remembered between calls: every link carries its
// owner and wire in the ifalias, every route and rule our protocol number. A
// restarted forwarder asks [Kernel.Adopt] what it has.
//
// Devices are made where they belong and never moved: a veth pair with each end
// in its namespace in one message, a VXLAN device by a socket in the underlay's
// namespace, which stays its underlay, into the workload's.
//
// Each call opens its sockets in the namespaces and closes them, so that ten thousand
// idle wires cost no descriptor but their namespaces'. Whether wires are as they should
// be is seen of many at once, see [Kernel.Look].
package kernel

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Config is what a Kernel needs.
type Config struct {
	Name       string           // of the forwarder; the owner in every tag
	Namespaces *netns.Table     // where the keys in wires are resolved
	Underlay   *netns.Handle    // tunnels run over it; nil: the table's own namespace
	WireGuard  WireGuardBackend // nil: wires of that kind are refused
	Logger     *slog.Logger     // nil: slog.Default()
}

// Kernel makes, changes, finds and removes wires. All methods are safe for
// concurrent use on different wires; calls for one wire take turns.
type Kernel struct {
	name       string
	namespaces *netns.Table
	underlay   *netns.Handle
	wireguard  WireGuardBackend
	tunnel     TunnelBackend // nil: there is none
	log        *slog.Logger

	namesFixed atomic.Bool // see fixNames
	lists      lists

	mu sync.Mutex // never held across a system call
	// tables are the policy tables in use by wire id, so that two calls that
	// observe at the same time do not choose the same free number. After a
	// restart it is empty and the kernel itself shows what is in use.
	tables map[table]string
}

// table is a routing table of a namespace.
type table struct {
	netns  string
	number int
}

// New returns a Kernel. Its methods fail with [nserr.NotPrivileged] where
// CAP_NET_ADMIN or CAP_SYS_ADMIN is missing.
func New(c Config) (*Kernel, error) {
	if c.Name == "" || strings.Contains(c.Name, ":") || len(c.Name) > 100 {
		return nil, nserr.BadFlag.Errorf("forwarder name %q must have 1 to 100 bytes and no colon", c.Name)
	}
	if c.Namespaces == nil {
		return nil, nserr.BadFlag.Errorf("kernel %s: no table of namespaces", c.Name)
	}
	if c.Underlay == nil {
		c.Underlay = c.Namespaces.Self()
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	shared, _ := c.WireGuard.(TunnelBackend)
	return &Kernel{
		name:       c.Name,
		namespaces: c.Namespaces,
		underlay:   c.Underlay,
		wireguard:  c.WireGuard,
		tunnel:     shared,
		log:        c.Logger,
		tables:     make(map[table]string),
	}, nil
}

// maxRounds bounds how often Apply looks again. The kernel takes more away
// with an IPv4 address than was asked for (secondary addresses of the same
// prefix, all routes with the last one), which the second round puts back.
const maxRounds = 3

// Apply makes the wire as desired and returns the steps that it took: none if
// nothing was missing. If a step fails, what this call has made is undone.
//
// Errors: the reasons of [plan.Wire.Validate], [nserr.NameTaken],
// [nserr.NoNetNS], [nserr.NotPrivileged], and [nserr.KernelFailed] with the
// command that failed; the latter wraps [plan.ErrVNITaken] where another VNI helps.
//
// Only the namespaces in w are looked at: whoever moves an end to another
// namespace removes what was in the old one.
func (k *Kernel) Apply(ctx context.Context, w plan.Wire) ([]plan.Step, error) {
	return k.apply(ctx, w, func(steps []plan.Step) []plan.Step { return steps })
}

// Switch is Apply that is done as soon as packets take the wire as desired. Links that
// they took before are left, set aside, since some may be under way there: the next
// Apply deletes them.
func (k *Kernel) Switch(ctx context.Context, w plan.Wire) ([]plan.Step, error) {
	return k.apply(ctx, w, plan.Urgent)
}

func (k *Kernel) apply(ctx context.Context, w plan.Wire, part func([]plan.Step) []plan.Step) ([]plan.Step, error) {
	if w.Owner == "" {
		w.Owner = k.name
	}
	if err := k.check(w); err != nil {
		return nil, err
	}
	c, err := k.open(ctx, w, false)
	if err != nil {
		return nil, err
	}
	defer c.close()

	var done []plan.Step
	for range maxRounds {
		steps, err := k.applyOnce(c, part, &done)
		if k.fixNames(err) {
			c.ctx = ctx
			if err = c.reload(); err == nil {
				steps, err = k.applyOnce(c, part, &done)
			}
		}
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(steps, isDelAddr) {
			break
		}
		if err := c.reload(); err != nil {
			return nil, err
		}
	}
	c.settle()
	return done, nil
}

// check reports what is wrong with a wire, or what is missing to make it.
func (k *Kernel) check(w plan.Wire) error {
	if err := w.Validate(); err != nil {
		return err
	}
	if w.Kind == plan.KindWireGuard && k.wireguard == nil {
		return nserr.Unsupported.Errorf("forwarder %s has no WireGuard", k.name)
	}
	if w.Kind == plan.KindTunnel && k.tunnel == nil {
		return k.noTunnel()
	}
	return nil
}

// fixNames reports whether err says that this kernel does not rename links that are
// up, as it does since Linux 6.2, and remembers it: links are then deleted before
// others take their places.
func (k *Kernel) fixNames(err error) bool {
	var failed *plan.StepError
	if !errors.As(err, &failed) || !errors.Is(failed.Err, unix.EBUSY) {
		return false
	}
	_, rename := failed.Step.(plan.Rename)
	return rename && k.namesFixed.CompareAndSwap(false, true)
}

// applyOnce observes and executes a part of the difference. It appends the steps to
// done, or takes all of done back.
func (k *Kernel) applyOnce(c *call, part func([]plan.Step) []plan.Step, done *[]plan.Step) (steps []plan.Step, err error) {
	seen, err := c.observe()
	if err != nil {
		return nil, err
	}
	if err := plan.Conflict(c.wire, seen); err != nil {
		return nil, err
	}
	seen.NamesFixed = k.namesFixed.Load()
	steps = part(k.planAndReserve(c.wire, seen))
	if err := plan.Execute(steps, c.doUnlessCancelled); err != nil {
		k.giveBack(steps, false)
		failed := new(plan.StepError)
		errors.As(err, &failed)
		for _, e := range append(failed.Undo, plan.Undo(*done, c.do)...) {
			k.log.Warn("undo failed", "connection", c.wire.ID, "error", e)
		}
		return nil, reasonOf(failed)
	}
	k.giveBack(steps, true)
	*done = append(*done, steps...)
	return steps, nil
}

func isDelAddr(s plan.Step) bool { _, is := s.(plan.DelAddr); return is }

// planAndReserve is plan.Diff, with the table numbers of other wires taken and
// the ones it chooses reserved, in one go.
func (k *Kernel) planAndReserve(w plan.Wire, seen plan.Observed) []plan.Step {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, e := range w.Ends {
		for t, wire := range k.tables {
			if t.netns == e.NetNS && wire != w.ID {
				seen.Ends[i].UsedTables = append(seen.Ends[i].UsedTables, t.number)
			}
		}
	}
	steps := plan.Diff(w, seen)
	for _, s := range steps {
		if s, ok := s.(plan.AddRule); ok {
			k.tables[table{s.NetNS, s.Rule.Table}] = w.ID
		}
	}
	return steps
}

// giveBack frees the table numbers that steps were done with: those of rules
// deleted, or, if the steps were taken back, of rules added. A rule that has only
// moved keeps its table.
func (k *Kernel) giveBack(steps []plan.Step, done bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	added, deleted := make(map[table]bool), make(map[table]bool)
	for _, s := range steps {
		switch s := s.(type) {
		case plan.AddRule:
			added[table{s.NetNS, s.Rule.Table}] = true
		case plan.DelRule:
			deleted[table{s.NetNS, s.Rule.Table}] = true
		}
	}
	if !done {
		added, deleted = deleted, added
	}
	for t := range deleted {
		if !added[t] {
			delete(k.tables, t)
		}
	}
}

// Observe returns what the kernel has for the wire.
func (k *Kernel) Observe(ctx context.Context, w plan.Wire) (plan.Observed, error) {
	if w.Owner == "" {
		w.Owner = k.name
	}
	c, err := k.open(ctx, w, false)
	if err != nil {
		return plan.Observed{}, err
	}
	defer c.close()
	return c.observe()
}

// Remove deletes the wire: rules, then links, and with them the rest. A link
// that is missing or a namespace that is gone is not an error. It goes on past
// errors and returns all of them; calling it again tries what is left.
//
// Deleting a link waits for a grace period of the kernel, about 20 ms; calls
// for different wires share it.
func (k *Kernel) Remove(ctx context.Context, w plan.Wire) error {
	if w.Owner == "" {
		w.Owner = k.name
	}
	all := w.Ends
	w.Ends = slices.DeleteFunc(slices.Clone(all), func(e plan.End) bool {
		_, err := k.namespaces.Get(e.NetNS)
		return err != nil
	})
	c, err := k.open(ctx, w, true)
	if err != nil {
		return err
	}
	defer c.close()
	seen, err := c.observe()
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range plan.Removal(w, seen) {
		if err := c.do(s); err != nil {
			errs = append(errs, reasonOf(&plan.StepError{Step: s, Err: err}))
		}
	}
	if (w.Kind == plan.KindWireGuard || w.Kind == plan.KindTunnel) && k.wireguard != nil && !found(seen) && len(all) > 0 {
		// The link may be gone while its holder still keeps the device.
		e := all[0]
		ns, _ := k.namespaces.Get(e.NetNS) // nil if gone
		errs = append(errs, k.wireguard.Delete(ctx, e.NetNS, ns, e.Name, w.Tag(e.Side).String()))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, e := range w.Ends {
		c.sites[e.NetNS].known.forget(w.Tag(e.Side).String(), macOf(w, e))
	}
	k.freeTables(w.ID)
	return nil
}

func found(o plan.Observed) bool {
	return slices.ContainsFunc(o.Ends, func(e plan.ObservedEnd) bool { return e.Found })
}

func (k *Kernel) freeTables(wireID string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for t, id := range k.tables {
		if id == wireID {
			delete(k.tables, t)
		}
	}
}

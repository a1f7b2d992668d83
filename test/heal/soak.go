// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/openvwire/nsm/internal/lab"
)

// A soak is many wires of all kinds on two nodes, and random faults, several at a
// time, which a seed determines. When they have ended and all has calmed down every
// wire must carry packets, and there must be what these wires need, of everything
// that can be counted, and no more. When the wires are closed nothing may be left.
//
//	node a                            node b
//	┌──────────────────────────┐      ┌────────────────────────────┐
//	│ web-0 … web-9: 5 wires   ├──────┤ ethernet-1   ethernet-2    │
//	│ each   local-1  local-2  │      │ ip-1         ip-2          │
//	└──────────────────────────┘      └────────────────────────────┘
type soak struct {
	lab     *lab.Lab
	self    string
	say     func(format string, args ...any)
	servers []*server
	clients []*customer
	wires   int
	mix     []kind // of wires, in turn
}

// soakOptions say how much of it.
type soakOptions struct {
	seed     uint64
	faults   time.Duration // how long there are new ones
	wires    int
	lifetime time.Duration // of tokens: what nobody could be told to close ends so much later

	mix       []kind // of wires, in turn
	perClient int    // wires of each client
	up        bool   // a process per node ('nsm up'), not one per daemon
}

// Parts of a soak.
const (
	serversPerKind = 2
	soakLifetime   = 30 * time.Second
)

// server is an endpoint, and customer a client with wires. Who watches over them
// starts them again when they end by themselves, as systemd would.
type (
	server struct {
		keeper
		control string
	}
	customer struct {
		keeper
		ifaces []string
	}
)

// keeper keeps one process of a workload running.
type keeper struct {
	name string
	node string
	ns   *lab.NetNS

	mu      sync.Mutex // held while the process is replaced
	process *lab.Process
	exits   int // how often it has ended by itself
}

// again starts the process again when it has ended, until it stays.
func (k *keeper) again(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.process.ExitCode() >= 0 {
		k.exits++
	}
	for {
		p, err := k.process.Restart(ctx)
		if err == nil {
			k.process = p
			return nil
		}
		var exit *lab.ExitError
		if !errors.As(err, &exit) {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		k.exits++
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// kill ends the process.
func (k *keeper) kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.process.Kill()
}

// current is the process that runs now.
func (k *keeper) current() *lab.Process {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.process
}

// newSoak makes the lab, without a client yet.
func newSoak(ctx context.Context, o options, so soakOptions) (_ *soak, err error) {
	s := &soak{self: o.self, say: o.progress, wires: so.wires, mix: so.mix}
	s.lab, err = lab.New(ctx, lab.Config{Binary: o.nsm, Profiles: true, Env: []string{"NSM_MAX_TOKEN_LIFETIME=" + so.lifetime.String()}})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.lab.Close())
		}
	}()
	start := s.lab.StartDaemons
	if so.up {
		start = s.lab.StartUp
	}
	if err := start(ctx); err != nil {
		return nil, err
	}
	for i, k := range kinds {
		for j := range serversPerKind {
			if err := s.serve(ctx, k, fmt.Sprintf("%s-%d", k.name, j+1), fmt.Sprintf("10.%d.%d.0/22", 61+i, 4*j), so.lifetime); err != nil {
				return nil, err
			}
		}
	}
	for left := so.wires; left > 0; left -= so.perClient {
		name := fmt.Sprintf("web-%d", len(s.clients))
		c := &customer{keeper: keeper{name: name, node: "a"}}
		if c.ns, err = s.lab.Node(c.node).Workload(name); err != nil {
			return nil, err
		}
		for i := range min(left, so.perClient) {
			c.ifaces = append(c.ifaces, fmt.Sprintf("nsm-%d", i))
		}
		s.clients = append(s.clients, c)
	}
	return s, nil
}

func (s *soak) serve(ctx context.Context, k kind, name, cidr string, lifetime time.Duration) (err error) {
	n := s.lab.Node(k.node)
	e := &server{keeper: keeper{name: name, node: k.node}, control: filepath.Join(n.Dir, name+".sock")}
	if e.ns, err = n.Workload(name); err != nil {
		return err
	}
	e.process, err = e.ns.Start(ctx, "ready:", s.self, "endpoint", "-name", name, "-service", k.name, "-payload", k.payload,
		"-cidr", cidr, "-control", e.control, "-lifetime", lifetime.String())
	s.servers = append(s.servers, e)
	return err
}

// connect starts the clients and waits for all wires.
func (s *soak) connect(ctx context.Context) (err error) {
	next := 0                                                // kind of the next wire
	limit := patience + time.Duration(s.wires)*time.Second/4 // of all wires, on a machine that has other things to do
	for _, c := range s.clients {
		args := []string{"connect", "--name", c.name, "--wait", limit.String()}
		for _, iface := range c.ifaces {
			args = append(args, "kernel://"+s.mix[next%len(s.mix)].name+"/"+iface)
			next++
		}
		if c.process, err = c.ns.StartNsm(ctx, "", args...); err != nil {
			return err
		}
	}
	for _, c := range s.clients {
		up := 0
		if _, err := c.process.WaitLine(ctx, func(line string) bool {
			if isUp(line) {
				up++
			}
			return up == len(c.ifaces)
		}); err != nil {
			return err
		}
	}
	return nil
}

// run has the faults happen, each at its time, and waits until all are undone.
func (s *soak) run(ctx context.Context, plan []step) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	watching, relax := context.WithCancel(ctx)
	var keeping, faulting sync.WaitGroup
	var suffering sync.Map // names of targets
	for _, k := range s.keepers() {
		keeping.Go(func() { k.routineKeep(ctx, watching.Done()) })
	}
	start := time.Now()
	errs := make([]error, len(plan))
	for i, f := range plan {
		if wait(ctx, time.Until(start.Add(f.at))) != nil {
			break
		}
		if _, busy := suffering.LoadOrStore(f.target.name, true); busy {
			s.say("%s: not now, it is not well again yet", f) // it waits for something else that fails
			continue
		}
		s.say("%s", f)
		faulting.Go(func() {
			errs[i] = s.suffer(ctx, f)
			suffering.Delete(f.target.name)
		})
	}
	faulting.Wait()
	relax()
	keeping.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

func (s *soak) keepers() (all []*keeper) {
	for _, e := range s.servers {
		all = append(all, &e.keeper)
	}
	for _, c := range s.clients {
		all = append(all, &c.keeper)
	}
	return all
}

// routineKeep starts a process again that has ended by itself, until stop is closed.
func (k *keeper) routineKeep(ctx context.Context, stop <-chan struct{}) {
	for {
		p := k.current()
		select {
		case <-p.Done():
		case <-stop:
			return
		}
		if p.ExitCode() < 0 { // a signal has ended it: whoever sent that starts it again
			p = nil
		}
		if p != nil && k.again(ctx) != nil {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-stop:
			return
		}
	}
}

// undoLimit is how long it may take to start something again.
const undoLimit = time.Minute

// suffer has one fault happen and undoes it.
func (s *soak) suffer(ctx context.Context, f step) error {
	end, err := s.inject(ctx, f)
	if err != nil {
		return fmt.Errorf("%s: %w", f, err)
	}
	if err := wait(ctx, f.lasts); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, undoLimit)
	defer cancel()
	if err := end(ctx); err != nil {
		return fmt.Errorf("%s: the end of it: %w", f, err)
	}
	return nil
}

// soakRun does all of it.
func (o options) soakRun(ctx context.Context, so soakOptions) (err error) {
	s, err := newSoak(ctx, o, so)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.lab.Close()) }()
	plan := schedule(so.seed, so.faults, s.targets())
	s.say("seed %d: %d faults in %v, %d wires", so.seed, len(plan), so.faults, so.wires)
	defer func() {
		if err != nil {
			err = fmt.Errorf("seed %d: %w%s", so.seed, err, s.keepLogs(ctx, so.seed))
		}
	}()
	calm := 2*so.lifetime + time.Minute
	before, err := s.census(ctx)
	if err != nil {
		return err
	}
	if err := s.connect(ctx); err != nil {
		return err
	}
	if err := s.settle(ctx, calm, func(c *census) []string { return s.wrongWires(ctx, c) }); err != nil {
		return fmt.Errorf("before any fault: %w", err)
	}
	with, err := s.census(ctx)
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := s.run(ctx, plan); err != nil {
		return err
	}
	s.say("all faults are undone, after %v", time.Since(begun).Round(time.Second))
	if err := s.settle(ctx, calm, func(c *census) []string { return append(s.wrongWires(ctx, c), c.unlike(with, false)...) }); err != nil {
		return fmt.Errorf("after all faults: %w", err)
	}
	if err := s.each(func(c *customer) error { return c.current().Stop() }); err != nil {
		return err
	}
	if err := s.settle(ctx, calm, func(c *census) []string { return c.unlike(before, true) }); err != nil {
		return fmt.Errorf("when all wires are closed: %w", err)
	}
	return nil
}

// each calls f for all clients, side by side.
func (s *soak) each(f func(*customer) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(s.clients))
	for i, c := range s.clients {
		wg.Go(func() { errs[i] = f(c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// settle waits until nothing is wrong any more.
func (s *soak) settle(ctx context.Context, limit time.Duration, wrong func(*census) []string) error {
	begun := time.Now()
	for {
		c, err := s.census(ctx)
		found := []string{fmt.Sprint(err)}
		if err == nil {
			found = wrong(c)
		}
		took := time.Since(begun)
		if len(found) == 0 {
			s.say("all is as it must be, after %v", took.Round(100*time.Millisecond))
			return nil
		}
		if took > limit {
			return fmt.Errorf("after %v still:\n%s", limit, strings.Join(found, "\n"))
		}
		if err := wait(ctx, 500*time.Millisecond); err != nil {
			return fmt.Errorf("%w; so far:\n%s", err, strings.Join(found, "\n"))
		}
	}
}

// keepLogs writes what all processes have printed, and where the goroutines of daemons
// are, to a file, and says which.
func (s *soak) keepLogs(ctx context.Context, seed uint64) string {
	f, err := os.CreateTemp("", fmt.Sprintf("nsm-soak-%d-*.log", seed))
	if err != nil {
		return ""
	}
	defer f.Close()
	_, _ = f.WriteString((&mesh{lab: s.lab}).logs())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	for _, p := range s.lab.Daemons() {
		stacks, err := p.Stacks(ctx)
		fmt.Fprintf(f, "== goroutines of %s on %s: %v\n%s", p.Part, p.Node, err, stacks)
	}
	return "\nwhat the processes have printed is in " + f.Name()
}

// targets are what can fail, in the order that a seed refers to.
func (s *soak) targets() (all []target) {
	process := []fault{kill, killAndStart, freeze}
	for _, at := range slices.Sorted(maps.Keys(daemons)) {
		all = append(all, target{component: at, name: string(at), faults: append(slices.Clone(process), restart)})
	}
	for _, c := range []component{localHolder, remoteHolder} {
		all = append(all, target{component: c, name: string(c), faults: []fault{kill, freeze}})
	}
	for _, c := range []component{clientsNode, endpointsNode} {
		all = append(all, target{component: c, name: string(c), faults: []fault{linkDown, dropAll, dropUDP, dropTCP}})
	}
	for i, e := range s.servers {
		all = append(all, target{component: endpoints, name: e.name, number: i, faults: process})
	}
	for i, c := range s.clients {
		all = append(all, target{component: client, name: c.name, number: i, faults: process})
	}
	return append(all, target{component: wireEnd, name: string(wireEnd), faults: []fault{deleted}})
}

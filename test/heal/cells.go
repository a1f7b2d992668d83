// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// phase is what goes on when the fault comes.
type phase string

const (
	idle          phase = "idle"
	duringRequest phase = "during a Request" // of a new wire, held at its endpoint
	duringRefresh phase = "during a refresh" // held at the endpoint
	duringHeal    phase = "during healing"   // the endpoint is dead; the Request is held at the spare
)

// cell is one of the matrix: what fails, how, and when; and what may come of it.
type cell struct {
	component component
	fault     fault
	phase     phase
	must      must
	own       bool          // wires to other nodes have devices of their own, not the nodes' tunnel
	tested    bool          // make test measures it, as it does all budgets
	lasts     time.Duration // of a fault that is undone; 0 = 3 s
	elsewhere string        // it is not measured here, because …; "" = it is
}

// how is the fault, and how long it lasts where that is unusual.
func (c cell) how() string {
	how := string(c.fault)
	if c.lasts != 0 {
		how += fmt.Sprintf(" for %v", c.lasts)
	}
	if c.own {
		how += " (VXLAN, WireGuard)"
	}
	return how
}

func (c cell) String() string { return fmt.Sprintf("%s, %s, %s", c.component, c.how(), c.phase) }

// duration is how long the fault lasts.
func (c cell) duration() time.Duration { return cmp.Or(c.lasts, lasts) }

// must is the longest interruption that a wire may have: none means that not a
// packet may be lost, and no TCP connection.
type must struct {
	local    time.Duration // of the wire on one node
	ethernet time.Duration // of that to another node with payload ETHERNET
	ip       time.Duration // of that with payload IP
}

const none time.Duration = 0

func (m must) of(kind string) time.Duration {
	switch kind {
	case "local":
		return m.local
	case "ethernet":
		return m.ethernet
	}
	return m.ip
}

func all(d time.Duration) must    { return must{d, d, d} }
func remote(d time.Duration) must { return must{none, d, d} }
func onlyIP(d time.Duration) must { return must{none, none, d} }

func boundText(d time.Duration) string {
	if d == none {
		return "0 lost"
	}
	return "≤ " + d.String()
}

// String is the bound of all three, or of each.
func (m must) String() string {
	if m.local == m.ethernet && m.ethernet == m.ip {
		return boundText(m.local)
	}
	return boundText(m.local) + " / " + boundText(m.ethernet) + " / " + boundText(m.ip)
}

// budgets are the rows of the design's budget.
var budgets = []cell{
	{component: registry, fault: kill, phase: idle, must: all(none)},
	{component: localManager, fault: kill, phase: idle, must: all(none)},
	{component: remoteManager, fault: kill, phase: idle, must: all(none)},
	{component: authority, fault: kill, phase: idle, must: all(none)},
	{component: agent, fault: kill, phase: idle, must: all(none)},
	{component: localForwarder, fault: kill, phase: idle, must: all(none)},
	{component: remoteForwarder, fault: kill, phase: idle, must: all(none)},
	{component: endpoints, fault: kill, phase: idle, must: all(time.Second)},
	{component: endpointsNode, fault: gone, phase: idle, must: remote(2 * time.Second)},
	{component: endpointsNode, fault: dropAll, phase: idle, must: remote(2 * time.Second)},
	{component: everything, fault: upgrade, phase: idle, must: all(none)},
}

// matrix is every cell: the budgets, and what is to be said about every other
// fault at every time.
func matrix() []cell {
	return slices.Concat(budgets, whileIdle(), whileRequesting(), whileRefreshing(), whileHealing())
}

// control are the components that no packet passes through.
var control = []component{registry, localManager, remoteManager, localForwarder, remoteForwarder, authority, agent}

// long is longer than any keepalive waits.
const long = 20 * time.Second

// moved is what it costs at most that a wire moves while both ends are well: a few packets
// that are under way then, on a machine that has other things to do.
const moved = 100 * time.Millisecond

// mended is how long it may take a node to make again what its holder had: less than the second
// after which clients that hear nothing go to another endpoint, and connections end with it.
const mended = 900 * time.Millisecond

// back is how soon after the end of a fault that nobody can help packets flow again.
const back = time.Second

func whileIdle() (cells []cell) {
	for _, c := range control {
		cells = append(cells,
			cell{component: c, fault: restart, phase: idle, must: all(none)},
			cell{component: c, fault: freeze, phase: idle, must: all(none)})
	}
	for _, c := range []component{registry, localManager, remoteManager, localForwarder, remoteForwarder} {
		cells = append(cells, cell{component: c, fault: freeze, phase: idle, must: all(none), lasts: long})
	}
	for _, c := range []component{registry, authority, agent, localForwarder, remoteForwarder} {
		cells = append(cells, cell{component: c, fault: diskFull, phase: idle, must: all(none)})
	}
	return append(cells,
		cell{component: localHolder, fault: kill, phase: idle, must: remote(mended), tested: true},
		cell{component: localHolder, fault: freeze, phase: idle, must: remote(lasts + back)},
		cell{component: localHolder, fault: kill, phase: idle, own: true, must: onlyIP(2 * time.Second), tested: true},
		cell{component: localForwarder, fault: kill, phase: idle, own: true, must: all(none), tested: true},
		cell{component: remoteForwarder, fault: kill, phase: idle, own: true, must: all(none)},
		cell{component: endpointsNode, fault: gone, phase: idle, own: true, must: remote(2 * time.Second)},
		cell{component: remoteHolder, fault: kill, phase: idle, must: remote(mended), tested: true},
		cell{component: remoteHolder, fault: freeze, phase: idle, must: remote(2 * time.Second)},

		cell{component: endpoints, fault: killAndStart, phase: idle, must: all(time.Second)},
		cell{component: endpoints, fault: freeze, phase: idle, must: all(none), tested: true},
		cell{component: endpoints, fault: freeze, phase: idle, must: all(none), lasts: long},
		cell{component: endpointsNode, fault: linkDown, phase: idle, must: remote(2 * time.Second)},
		cell{component: endpointsNode, fault: dropUDP, phase: idle, must: remote(2 * time.Second)},
		cell{component: endpointsNode, fault: dropTCP, phase: idle, must: all(none), tested: true},
		cell{component: endpointsNode, fault: dropTCP, phase: idle, must: all(none), lasts: long},

		// There is no way around the client's own node: wires are to be back with it.
		cell{component: clientsNode, fault: linkDown, phase: idle, must: remote(lasts + back)},
		cell{component: clientsNode, fault: dropAll, phase: idle, must: remote(lasts + back)},
		cell{component: clientsNode, fault: dropUDP, phase: idle, must: remote(lasts + back)},
		cell{component: clientsNode, fault: dropTCP, phase: idle, must: all(none)},

		cell{component: client, fault: kill, phase: idle, must: all(none), tested: true},
		cell{component: client, fault: killAndStart, phase: idle, must: all(none)},
		cell{component: client, fault: restart, phase: idle, must: all(none), tested: true},
		cell{component: client, fault: freeze, phase: idle, must: all(none)},

		cell{component: endpoints, fault: drained, phase: idle, must: all(moved), tested: true},
		cell{component: endpointsNode, fault: drained, phase: idle, must: remote(moved), tested: true},
		cell{component: domain, fault: rotateCA, phase: idle, must: all(none)},

		cell{component: clocks, fault: clockStep, phase: idle, must: all(none), lasts: long, elsewhere: elsewhereClock},
		// A WireGuard session is renewed in this time, which the peer refuses.
		cell{component: clocks, fault: clockBack, phase: idle, must: remote(2 * time.Second), lasts: 200 * time.Second, elsewhere: elsewhereClock},
		cell{component: clocks, fault: clockBack, phase: idle, own: true, must: onlyIP(2 * time.Second), lasts: 200 * time.Second, elsewhere: elsewhereClock},
	)
}

const elsewhereClock = "the machine's clock is everybody's: set in a virtual machine by `make vm-test` (TestClockStep)"

func whileRequesting() (cells []cell) {
	for _, c := range control {
		cells = append(cells, cell{component: c, fault: kill, phase: duringRequest, must: all(none), tested: c == localManager})
	}
	for _, c := range []component{localManager, remoteManager, localForwarder, remoteForwarder} {
		cells = append(cells, cell{component: c, fault: freeze, phase: duringRequest, must: all(none)})
	}
	return append(cells,
		cell{component: registry, fault: diskFull, phase: duringRequest, must: all(none), tested: true},
		cell{component: remoteHolder, fault: kill, phase: duringRequest, must: remote(mended)},
		cell{component: endpoints, fault: kill, phase: duringRequest, must: all(time.Second)},
		cell{component: endpointsNode, fault: gone, phase: duringRequest, must: remote(2 * time.Second), tested: true},
		cell{component: endpointsNode, fault: dropAll, phase: duringRequest, must: remote(2 * time.Second)},
		cell{component: domain, fault: rotateCA, phase: duringRequest, must: all(none)},
	)
}

func whileRefreshing() (cells []cell) {
	for _, c := range control {
		cells = append(cells, cell{component: c, fault: kill, phase: duringRefresh, must: all(none), tested: c == localForwarder})
	}
	for _, c := range []component{localManager, remoteManager, localForwarder, remoteForwarder} {
		cells = append(cells, cell{component: c, fault: freeze, phase: duringRefresh, must: all(none), tested: c == remoteManager})
	}
	return append(cells,
		cell{component: localHolder, fault: kill, phase: duringRefresh, must: remote(2 * time.Second)},
		cell{component: endpoints, fault: kill, phase: duringRefresh, must: all(time.Second), tested: true},
		cell{component: endpoints, fault: freeze, phase: duringRefresh, must: all(none)},
		cell{component: endpointsNode, fault: gone, phase: duringRefresh, must: remote(2 * time.Second)},
		cell{component: endpointsNode, fault: dropAll, phase: duringRefresh, must: remote(2 * time.Second)},
		cell{component: endpointsNode, fault: dropTCP, phase: duringRefresh, must: all(none)},
		cell{component: client, fault: kill, phase: duringRefresh, must: all(none)},
		cell{component: domain, fault: rotateCA, phase: duringRefresh, must: all(none)},
		cell{component: client, fault: killAndStart, phase: duringRefresh, must: all(none), tested: true},
	)
}

// whileHealing has the endpoint dead already and its spare not yet there. What is
// hit is needed for healing, so that has to wait until it is back.
func whileHealing() (cells []cell) {
	for _, c := range []component{registry, authority} {
		cells = append(cells, cell{component: c, fault: killAndStart, phase: duringHeal, must: all(healed)})
	}
	for _, c := range []component{localManager, localForwarder} {
		cells = append(cells,
			cell{component: c, fault: killAndStart, phase: duringHeal, must: all(healed), tested: c == localManager},
			cell{component: c, fault: freeze, phase: duringHeal, must: all(lasts + healed)})
	}
	for _, c := range []component{remoteManager, remoteForwarder} { // the spares are elsewhere
		cells = append(cells, cell{component: c, fault: killAndStart, phase: duringHeal, must: all(2 * time.Second)})
	}
	return append(cells,
		cell{component: localHolder, fault: kill, phase: duringHeal, must: must{2 * time.Second, healed, healed}},
		cell{component: client, fault: killAndStart, phase: duringHeal, must: all(healed), tested: true},
	)
}

// healed is the bound of healing that was interrupted itself.
const healed = 3 * time.Second

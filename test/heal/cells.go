// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
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
	missed    string // why the bound is missed as yet; a test that finds so does not fail
	elsewhere string // it is not measured here, because …, but …; "" = it is
}

func (c cell) String() string { return fmt.Sprintf("%s, %s, %s", c.component, c.fault, c.phase) }

// must is the longest interruption that a wire may have: none means that not a
// packet may be lost, and no TCP connection.
type must struct {
	local     time.Duration // of the wire on one node
	vxlan     time.Duration
	wireguard time.Duration
}

const none time.Duration = 0

func (m must) of(kind string) time.Duration {
	switch kind {
	case "local":
		return m.local
	case "vxlan":
		return m.vxlan
	}
	return m.wireguard
}

func all(d time.Duration) must    { return must{d, d, d} }
func remote(d time.Duration) must { return must{none, d, d} }
func tunnel(d time.Duration) must { return must{none, none, d} }

func boundText(d time.Duration) string {
	if d == none {
		return "0 lost"
	}
	return "≤ " + d.String()
}

// String is the bound of all three, or of each.
func (m must) String() string {
	if m.local == m.vxlan && m.vxlan == m.wireguard {
		return boundText(m.local)
	}
	return boundText(m.local) + " / " + boundText(m.vxlan) + " / " + boundText(m.wireguard)
}

const missedEndpoint = "a dead endpoint is asked again before another one is"

const missedReturn = "the path to an endpoint that is away for 0.6 s is closed, although packets flow and there is no other"

// budgets are the rows of the design's budget.
var budgets = []cell{
	{component: registry, fault: kill, phase: idle, must: all(none)},
	{component: localManager, fault: kill, phase: idle, must: all(none)},
	{component: remoteManager, fault: kill, phase: idle, must: all(none)},
	{component: authority, fault: kill, phase: idle, must: all(none)},
	{component: agent, fault: kill, phase: idle, must: all(none)},
	{component: localForwarder, fault: kill, phase: idle, must: all(none)},
	{component: remoteForwarder, fault: kill, phase: idle, must: all(none)},
	{component: endpoints, fault: kill, phase: idle, must: all(time.Second), missed: missedEndpoint},
	{component: endpointsNode, fault: gone, phase: idle, must: remote(2 * time.Second), missed: missedEndpoint},
	{component: endpointsNode, fault: dropAll, phase: idle, must: remote(2 * time.Second), missed: missedEndpoint},
	{component: everything, fault: upgrade, phase: idle, must: all(none), missed: missedReturn},
}

// matrix is every cell.
func matrix() (cells []cell) {
	return budgets
}

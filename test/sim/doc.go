// SPDX-License-Identifier: Apache-2.0

// Package sim runs a whole mesh in one process and in a testing/synctest bubble:
// a registry, nodes of a manager and a forwarder each, endpoints and clients.
//
//	sim.Run(t, func(t *testing.T, m *sim.Mesh) {
//		a, b := m.Node("a"), m.Node("b")
//		b.Serve(sim.Service{Name: "db", CIDR: "10.60.0.0/24"})
//		c := a.Client("web")
//		w := c.Connect("kernel://db/nsm-1")
//		…
//		c.Close(w)
//		m.CheckEmpty()
//	})
//
// Everything is the real thing but for two parts: calls pass in process
// (rpc.Local) through a Network that can lose them, double them, and stop
// answering, that mixes up or forges what hops tell each other, carries messages in
// one direction only and freezes parts (stream.go), and wires are made in package memkernel. Identities, tokens and
// policies are real ones, namespaces and descriptors too. Time is the bubble's: ten
// minutes of refreshes take no time. What happens in them is the same each time but
// for jitter and for what happens at one and the same instant.
package sim

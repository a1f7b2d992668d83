// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/test/bench/probe"
	"github.com/openvwire/nsm/test/report"
)

// The benchmark starts itself again for what has to run inside a workload's
// namespace. The first argument says as what.
var roles = report.Roles{
	// serve answers probes.
	"serve": func([]string) error {
		return probe.Serve(netip.AddrPortFrom(netip.IPv6Unspecified(), probePort), func() { fmt.Println("ready") })
	},
	// measure sends them as told on stdin.
	"measure": func([]string) error { return report.Answer(task.do) },
	// forward passes TCP connections on.
	"forward": forward,
	// connect asks for wires as told on stdin.
	"connect": func([]string) error { return connectRole() },
	// registry is a registry, filled and changed as told on stdin.
	"registry": func([]string) error { return registryRole() },
}

// task is one measurement.
type task struct {
	Probe    string // "stream", "ping" or "datagrams"
	To       netip.AddrPort
	N        int // streams, or bytes per packet
	Duration time.Duration
	PIDs     []int // whose CPU time counts, besides that of the measuring process
}

type measured struct {
	Throughput probe.Throughput
	RoundTrips probe.RoundTrips
}

func (t task) do() (m measured, err error) {
	pids := append([]int{os.Getpid()}, t.PIDs...)
	switch t.Probe {
	case "stream":
		m.Throughput, err = probe.Stream(t.To, t.N, t.Duration, pids)
	case "ping":
		m.RoundTrips, err = probe.Ping(t.To, t.Duration)
	case "datagrams":
		m.Throughput, err = probe.Datagrams(t.To, t.N, t.Duration, pids)
	default:
		err = fmt.Errorf("no probe is called %q", t.Probe)
	}
	return m, err
}

// startChild starts this program as role in a namespace of l, with env added to
// the environment.
func startChild(l *lab.Lab, ns *lab.NetNS, role string, env ...string) (*report.Child, error) {
	c, err := report.NewChild(append(env, lab.Mark(l.Name)), role) // so that the lab's guard knows it
	if err != nil {
		return nil, err
	}
	return c, ns.Do(c.Start)
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/test/bench/probe"
)

// usage is what processes use.
type usage struct {
	CPU         time.Duration // since they have started
	RSS         int           // KiB that are resident
	Goroutines  int           // 0 = nobody can tell
	Descriptors int
	Threads     int
}

func (u usage) plus(v usage) usage {
	return usage{u.CPU + v.CPU, u.RSS + v.RSS, u.Goroutines + v.Goroutines, u.Descriptors + v.Descriptors, u.Threads + v.Threads}
}

// Those parts that are not daemons.
const (
	holderPart    = "WireGuard holder of "
	clientsPart   = "all clients"
	endpointsPart = "all endpoints"
)

// parts are whose usage is measured, in the order of tables.
func (s *soak) parts() (all []string) {
	for _, p := range s.lab.Daemons() {
		all = append(all, daemonPart(p))
	}
	for _, n := range s.lab.Nodes() {
		all = append(all, holderPart+n.Name)
	}
	return append(all, clientsPart, endpointsPart)
}

func daemonPart(p *lab.Process) string { return p.Part + " of " + p.Node }

// usage measures everybody.
func (s *soak) usage(ctx context.Context) (map[string]usage, error) {
	all := make(map[string]usage)
	add := func(part string, pid int) error {
		u, err := usageOf(pid)
		all[part] = all[part].plus(u)
		return err
	}
	for _, p := range s.lab.Daemons() {
		if err := add(daemonPart(p), p.PID); err != nil {
			return nil, err
		}
		u := all[daemonPart(p)]
		var err error
		if u.Goroutines, err = p.Goroutines(ctx); err != nil {
			return nil, err
		}
		all[daemonPart(p)] = u
	}
	for _, n := range s.lab.Nodes() {
		if h, err := n.Holder(); err == nil {
			if err := add(holderPart+n.Name, h.PID); err != nil {
				return nil, err
			}
		}
	}
	for _, c := range s.clients {
		if p := c.current(); p != nil {
			if err := add(clientsPart, p.PID); err != nil {
				return nil, err
			}
		}
	}
	for _, e := range s.servers {
		if err := add(endpointsPart, e.current().PID); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// usageOf measures a process.
func usageOf(pid int) (u usage, err error) {
	if u.CPU, err = probe.CPU([]int{pid}); err != nil {
		return u, err
	}
	if u.RSS, err = probe.Resident(pid); err != nil {
		return u, err
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return u, err
	}
	u.Threads = len(threads)
	open, err := lab.Descriptors(pid)
	for _, n := range open {
		u.Descriptors += n
	}
	return u, err
}

// daemonCPU is how much of one core all daemons have used from one sample to another.
// Holders are none: what they do is for packets.
func (r *Held) daemonCPU(from, to int) (share float64) {
	for _, part := range r.Parts {
		if part != clientsPart && part != endpointsPart && !strings.HasPrefix(part, holderPart) {
			share += r.cpu(part, from, to)
		}
	}
	return share
}

// refreshCPU is how much of one core refreshes take in all daemons: what these use after
// the second sample more than before it. ok is false if there were refreshes before it.
func (r *Held) refreshCPU() (share float64, ok bool) {
	last := len(r.Samples) - 1
	if last < 2 || r.Refreshed == 0 || r.First < r.Samples[1].At {
		return 0, false
	}
	return r.daemonCPU(1, last) - r.daemonCPU(0, 1), true
}

func (r *Held) cpu(part string, from, to int) float64 {
	first, last := r.Samples[from], r.Samples[to]
	return (last.Usage[part].CPU - first.Usage[part].CPU).Seconds() / (last.At - first.At).Seconds()
}

// usageTable is a line for each part.
func (r *Held) usageTable() string {
	var b strings.Builder
	b.WriteString("| | CPU, of one core | resident MiB without a wire |")
	for _, s := range r.Samples {
		fmt.Fprintf(&b, " %v |", s.At.Round(time.Second))
	}
	b.WriteString(" KiB per wire | goroutines | descriptors | threads |\n|---|---|---|")
	b.WriteString(strings.Repeat("---|", len(r.Samples)+4) + "\n")
	for _, part := range r.Parts {
		first, last := r.Samples[0].Usage[part], r.Samples[len(r.Samples)-1].Usage[part]
		fmt.Fprintf(&b, "| %s | %.2f %% | %.1f |", part, 100*r.cpu(part, 0, len(r.Samples)-1), float64(r.Before[part].RSS)/1024)
		for _, s := range r.Samples {
			fmt.Fprintf(&b, " %.1f |", float64(s.Usage[part].RSS)/1024)
		}
		fmt.Fprintf(&b, " %.1f | %s | %s | %s |\n", float64(last.RSS-r.Before[part].RSS)/float64(r.Wires),
			change(first.Goroutines, last.Goroutines), change(first.Descriptors, last.Descriptors), change(first.Threads, last.Threads))
	}
	return b.String()
}

// change is a count in the beginning and in the end.
func change(first, last int) string {
	switch {
	case first == 0 && last == 0:
		return "" // not known
	case first == last:
		return fmt.Sprint(last)
	}
	return fmt.Sprintf("%d → %d", first, last)
}

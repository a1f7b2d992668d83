// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/openvwire/nsm/internal/lab"
)

// build builds a program of this module, without the race detector.
func build(ctx context.Context, to, program string, flags ...string) error {
	args := append([]string{"build", "-trimpath", "-o", to}, flags...)
	c := exec.CommandContext(ctx, "go", append(args, "github.com/openvwire/nsm/"+program)...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", program, err, out)
	}
	return nil
}

// upgradeOrder is that of an upgrade: first those that others ask.
var upgradeOrder = []string{"authority", "registry", "manager", "forwarder"}

// upgrade replaces nsm by the newer build, one process after the other, each as
// soon as the one before is ready: daemons, endpoints, the client. The holders of
// WireGuard devices are not replaced, and must not be: they go on as they are, as
// long as they have devices.
func (m *mesh) upgrade(ctx context.Context) error {
	if m.newer == "" {
		return fmt.Errorf("no newer build is known")
	}
	holdersBefore := m.holders()
	m.lab.Use(m.newer)
	for _, part := range upgradeOrder {
		for _, p := range m.lab.Daemons() {
			if p.Part != part {
				continue
			}
			if err := m.replace(ctx, p); err != nil {
				return err
			}
		}
	}
	for _, w := range m.wires {
		for _, s := range []*station{w.first, w.then} { // the workload goes on
			if s == nil {
				continue
			}
			var err error
			if s.process, err = s.process.Restart(ctx); err != nil {
				return err
			}
		}
	}
	var err error
	if m.web, err = m.web.Restart(ctx); err != nil {
		return err
	}
	if after := m.holders(); fmt.Sprint(after) != fmt.Sprint(holdersBefore) {
		return fmt.Errorf("the holders of WireGuard devices were processes %v and are %v", holdersBefore, after)
	}
	return nil
}

// replace starts a daemon again and sees that it is the newer build.
func (m *mesh) replace(ctx context.Context, p *lab.Process) error {
	p, err := p.Restart(ctx)
	if err != nil {
		return err
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
	if err == nil && filepath.Base(exe) != filepath.Base(m.newer) {
		err = fmt.Errorf("%s on %s runs %s", p.Part, p.Node, exe)
	}
	return err
}

// holders are the processes of WireGuard devices, by node.
func (m *mesh) holders() map[string]int {
	pids := make(map[string]int)
	for _, n := range m.lab.Nodes() {
		if h, err := n.Holder(); err == nil {
			pids[n.Name] = h.PID
		}
	}
	return pids
}

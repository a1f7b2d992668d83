// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/test/report"
)

const (
	// refreshing is how many wires are held while profiles are recorded.
	refreshing = 100
	// shortLife is how long tokens live meanwhile: wires are refreshed after a fifth of
	// it, so that refreshes have their part in what is seen.
	shortLife = 10 * time.Second
)

// profiles records where the daemons spend time and memory while wires across nodes are
// made, refreshed and closed, and prints the top of each profile.
func (o options) profiles(ctx context.Context) (err error) {
	if err := os.MkdirAll(o.profile, 0o755); err != nil {
		return err
	}
	b := &bench{options: o, endpoints: make(map[string]*lab.NetNS), servers: make(map[string]*lab.Process)}
	if b.lab, err = lab.New(ctx, lab.Config{Binary: o.nsm, Env: []string{"NSM_MAX_TOKEN_LIFETIME=" + shortLife.String()}}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.lab.Close()) }()
	if err := b.lab.StartDaemons(ctx); err != nil {
		return err
	}
	k := kinds[1] // VXLAN: both nodes, no process but the daemons
	if err := b.endpoint(ctx, k, true); err != nil {
		return err
	}
	c, err := startChild(b.lab, b.lab.Node("a").NetNS, "connect", b.lab.Node("a").Env()...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	if _, err := report.Ask[connected](c, connectTask{Service: k.name, Hold: refreshing}); err != nil {
		return err
	}
	for _, kind := range []string{"cpu", "allocs"} {
		if err := b.record(ctx, c, k.name, kind); err != nil {
			return err
		}
	}
	_, err = report.Ask[connected](c, connectTask{Release: true})
	return err
}

// record records one kind of profile of every daemon at once, under load.
func (b *bench) record(ctx context.Context, c *report.Child, service, kind string) error {
	var recording sync.WaitGroup
	errs := make([]error, len(b.profiled()))
	for i, d := range b.profiled() {
		recording.Go(func() {
			_, err := b.lab.Node(d.node).Nsm(ctx, "profile", kind, "--seconds", fmt.Sprint(b.seconds),
				"--connect-to", d.url, "--request-timeout", "1m", "-o", d.file(b.profile, kind))
			errs[i] = err
		})
	}
	got, err := report.Ask[connected](c, connectTask{Service: service, Churn: time.Duration(b.seconds) * time.Second, AtOnce: parallel})
	recording.Wait()
	if err = errors.Join(append(errs, err)...); err != nil {
		return err
	}
	fmt.Printf("\n%s in %d s: %d wires made and closed, %d at a time; %d refreshed every %v\n", kind, b.seconds, len(got.Request), parallel, refreshing, shortLife/5)
	for _, d := range b.profiled() {
		file := d.file(b.profile, kind)
		args := []string{"tool", "pprof", "-top", "-nodecount", "15"}
		if kind == "allocs" {
			args = append(args, "-sample_index", "alloc_space")
		}
		top, err := exec.CommandContext(ctx, "go", append(args, file)...).Output()
		if err != nil {
			return fmt.Errorf("go tool pprof %s: %w", file, err)
		}
		fmt.Printf("\n%s of %s on node %s; see all with: go tool pprof -http localhost: %s\n%s", kind, d.part, d.node, file, top)
	}
	return nil
}

// profiledDaemon is a daemon and where it answers.
type profiledDaemon struct{ node, part, url string }

func (d profiledDaemon) file(dir, kind string) string {
	return filepath.Join(dir, strings.Join([]string{d.part, d.node, kind}, "-")+".pprof")
}

func (b *bench) profiled() (all []profiledDaemon) {
	for _, n := range b.lab.Nodes() {
		all = append(all, profiledDaemon{n.Name, "manager", n.Manager()},
			profiledDaemon{n.Name, "forwarder", "unix://" + filepath.Join(n.Dir, "forwarder", "forwarder.sock")})
	}
	return append(all, profiledDaemon{"a", "registry", "tcp://" + b.lab.Node("a").Addr.String() + ":5002"})
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/internal/lab"
)

type demoConfig struct {
	Keep bool `flag:"keep" help:"leave the mesh running and say how to look at it"`
	Stop bool `flag:"stop" help:"stop what --keep has left running"`
}

func newDemo(a *app) *cobra.Command {
	var cfg demoConfig
	return a.command(&cobra.Command{
		Use:   "demo",
		Short: "Show a mesh of two nodes at work on this machine",
		Long: "Show a mesh of two nodes at work on this machine: the nodes are network\n" +
			"namespaces, everything else is in earnest. It makes wires on one node and across\n" +
			"nodes, sends traffic over them, breaks one, and removes all it has made. It takes\n" +
			"less than a minute and touches nothing that was there before.\n\n" +
			"It needs the rights to make network namespaces. Without them it uses sudo, if\n" +
			"that asks for no password, else a user namespace.",
		Example: "  nsm demo\n  nsm demo --keep\n  nsm demo --stop",
		Args:    cobra.NoArgs,
		GroupID: groupOperate,
	}, &cfg, func(ctx context.Context, _ []string) error {
		if cfg.Stop {
			return a.stopDemos()
		}
		rights, code, err := getRights()
		if err != nil {
			return err
		}
		if code >= 0 { // another process has done it
			return exitStatusOf(code)
		}
		return a.demo(ctx, cfg, rights)
	})
}

func exitStatusOf(code int) error {
	if code == 0 {
		return nil
	}
	return commandStatus(code)
}

// Every demo is a lab whose name begins so.
const demoPrefix = "nsm-demo-"

// keptFile is in the folder of a demo that was left running.
const keptFile = "kept"

// demo runs one demonstration from beginning to end.
func (a *app) demo(ctx context.Context, cfg demoConfig, rights string) (err error) {
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	d := &demo{narrator: newNarrator(a.out), rights: rights, start: time.Now()}
	d.title("nsm demo: two nodes, their workloads, and wires between them")
	d.lab, err = lab.New(ctx, lab.Config{Binary: binary, Name: lab.NewName(demoPrefix)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.lab.Close()) }() // also when something panics

	err = d.perform(ctx)
	switch {
	case ctx.Err() != nil:
		d.note("interrupted: removing everything")
		return commandStatus(exitInterrupted)
	case cfg.Keep:
		d.verdict(err)
		return errors.Join(err, d.leave(), d.outcome())
	case err == nil:
		err = d.end(ctx)
	}
	d.verdict(err)
	return errors.Join(err, d.outcome())
}

// exitInterrupted is what a shell says of a command that Ctrl-C has ended.
const exitInterrupted = 130

// stopDemos removes the demos that this user has left running.
func (a *app) stopDemos() error {
	marks, _ := filepath.Glob(filepath.Join(os.TempDir(), demoPrefix+"*", keptFile))
	var errs []error
	for _, mark := range marks {
		dir := filepath.Dir(mark)
		if !ownedByCaller(dir) {
			fmt.Fprintf(a.err, "nsm: %s belongs to somebody else\n", dir)
			continue
		}
		name := filepath.Base(dir)
		if err := lab.Remove(name, dir); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(a.out, "stopped", name)
	}
	if len(marks) == 0 {
		fmt.Fprintln(a.out, "no demo is running")
	}
	return errors.Join(errs...)
}

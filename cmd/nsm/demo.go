// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/internal/lab"
)

type demoConfig struct {
	Keep bool   `flag:"keep" help:"leave the mesh running and say how to look at it"`
	On   string `flag:"on" help:"run COMMAND, or a shell, on a node or workload (a, a-web) of what --keep has left running"`
	Stop bool   `flag:"stop" help:"stop what --keep has left running"`
}

func newDemo(a *app) *cobra.Command {
	var cfg demoConfig
	c := &cobra.Command{
		Use:   "demo [flags] [-- COMMAND [ARG...]]",
		Short: "Show a mesh of two nodes at work on this machine",
		Long: "Show a mesh of two nodes at work on this machine: the nodes are network\n" +
			"namespaces, everything else is in earnest. It makes wires on one node and across\n" +
			"nodes, sends traffic over them, breaks one, and removes all it has made. It takes\n" +
			"less than a minute and touches nothing that was there before.\n\n" +
			"It needs the rights to make network namespaces. Without them it uses sudo, if\n" +
			"that asks for no password, else a user namespace.",
		Example: "  nsm demo\n  nsm demo --keep\n  nsm demo --on a -- nsm get wires\n  nsm demo --stop",
		GroupID: groupOperate,
	}
	c.Args = func(_ *cobra.Command, args []string) error {
		given := slices.DeleteFunc([]string{"keep", "on", "stop"}, func(name string) bool { return !c.Flags().Changed(name) })
		switch {
		case len(given) > 1:
			return fmt.Errorf("--%s and --%s do not go together", given[0], given[1])
		case len(args) > 0 && !c.Flags().Changed("on"):
			return fmt.Errorf("%q is too much; a command comes after --on NODE --", args[0])
		}
		return nil
	}
	return a.command(c, &cfg, func(ctx context.Context, args []string) error {
		switch {
		case cfg.Stop:
			return a.stopDemos()
		case c.Flags().Changed("on"):
			return a.runOnDemo(ctx, cfg.On, args)
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
	if err == nil {
		d.note("'%s demo --keep' leaves it running, to look around in.", shellWord(selfPath()))
	}
	return errors.Join(err, d.outcome())
}

// exitInterrupted is what a shell says of a command that Ctrl-C has ended.
const exitInterrupted = 130

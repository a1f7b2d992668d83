// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/sdk/nserr"
)

type demoConfig struct {
	Keep bool     `flag:"keep" help:"leave the mesh running and say how to look at it"`
	On   string   `flag:"on" help:"run COMMAND, or a shell, on a node or workload (a, a-web) of what --keep has left running"`
	Stop bool     `flag:"stop" help:"stop what --keep has left running, and what --on has started there"`
	Name demoName `flag:"name" env:"NSM_DEMO_NAME" help:"name of the demo, lower-case letters and digits, at most 16; default made up, with --on and --stop the only one that --keep has left running"`
}

// demoName is the name of a demo as people say it; its lab's begins with demoPrefix,
// which they may say, too.
type demoName string

var demoNames = regexp.MustCompile("^[a-z0-9]{1,16}$")

// UnmarshalText takes no hyphen: what belongs to a lab is found by a name up to one.
func (n *demoName) UnmarshalText(text []byte) error {
	*n = demoName(strings.TrimPrefix(string(text), demoPrefix))
	if len(text) > 0 && !demoNames.MatchString(string(*n)) {
		return errors.New("want lower-case letters and digits, at most 16")
	}
	return nil
}

// newLab is the name of the lab for a demo of that name, which none may have yet: to
// fail on something of another one would remove it.
func (n demoName) newLab() (string, error) {
	if n == "" {
		return lab.NewName(demoPrefix), nil
	}
	name := demoPrefix + string(n)
	if !lab.Find(name, filepath.Join(os.TempDir(), name)).Empty() {
		return "", nserr.BadFlag.Errorf("--name=%q: there is a demo of that name", n).
			WithFix("take another name, or end that one; if it is kept, by 'nsm demo --name %s --stop'", n)
	}
	return name, nil
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
			"that asks for no password, else a user namespace.\n\n" +
			"Several demos may be kept side by side. Then --on and --stop need the --name of one.",
		Example: "  nsm demo\n" +
			"  nsm demo --keep\n" +
			"  nsm demo --on a -- nsm get wires\n" +
			"  nsm demo --stop\n" +
			"  nsm demo --keep --name second          # beside another one\n" +
			"  nsm demo --name second --on b\n" +
			"  nsm demo --name second --stop",
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
			return a.stopDemo(cfg.Name)
		case c.Flags().Changed("on"):
			return a.runOnDemo(ctx, cfg.Name, cfg.On, args)
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
	name, err := cfg.Name.newLab()
	if err != nil {
		return err
	}
	d := &demo{narrator: newNarrator(a.out), rights: rights, start: time.Now()}
	d.title("nsm demo: two nodes, their workloads, and wires between them")
	d.lab, err = lab.New(ctx, lab.Config{Binary: binary, Name: name})
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

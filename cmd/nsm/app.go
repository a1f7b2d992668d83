// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/openvwire/nsm/internal/buildinfo"
	"github.com/openvwire/nsm/internal/config"
	"github.com/openvwire/nsm/sdk/nserr"
)

// globals are the settings of every command.
type globals struct {
	Config    string   `flag:"config" env:"NSM_CONFIG" help:"YAML file with settings, named as the flags"`
	LogLevel  logLevel `flag:"log-level" env:"NSM_LOG_LEVEL" default:"INFO" help:"TRACE, DEBUG, INFO, WARN or ERROR"`
	LogFormat string   `flag:"log-format" env:"NSM_LOG_FORMAT" default:"text" choices:"text,json" help:"form of log lines"`
}

// app is what the commands of one run share.
type app struct {
	globals
	settings *config.Settings // of globals

	in       io.Reader
	out, err io.Writer
	level    slog.LevelVar // of the logger; daemons change it on a signal
	known    []string      // variables of the environment that some command takes
	ending   ending

	// connect opens the admin API of a manager. Tests put a server of their
	// own behind it.
	connect func(ctx context.Context, to managerConfig) (*adminConn, error)
}

func newApp() *app {
	return &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, connect: connectManager}
}

// root returns the command tree. A new subcommand is one line here and one file.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "nsm",
		Short: "A network service mesh: virtual wires between workloads",
		Long: "A network service mesh: a workload asks for a network service by name and gets one\n" +
			"network interface, the end of a virtual wire to an endpoint of that service, on\n" +
			"this node or on another. Everything else of the workload stays as it is.\n\n" +
			"Exit codes: 0 done, 1 failed, 2 used wrongly, 3 not found, 4 not allowed, 5 not\n" +
			"reachable.",
		Example: "  nsm demo                                       # see it at work on this machine\n" +
			"  nsm up                                         # run a node, as root\n" +
			"  nsm serve web --cidr 10.61.0.0/24 -- COMMAND   # a workload that others can reach\n" +
			"  nsm connect kernel://web -- COMMAND            # one that reaches it\n" +
			"  nsm get wires",
		Version:       buildinfo.Read().String(),
		SilenceErrors: true, // exit prints them
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE:          group,
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetVersionTemplate("nsm {{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return &usageError{c, err} })
	a.settings = config.Declare(root.PersistentFlags(), &a.globals)
	a.known = a.settings.Environment()
	root.SetHelpCommandGroupID(groupOperate)
	root.SetCompletionCommandGroupID(groupOperate)
	root.AddCommand(
		newGet(a),
		newDescribe(a),
		newApply(a),
		newDelete(a),
		newDrain(a),
		newProfile(a),
		newToken(a),
		newRotate(a),
		newVersion(a),
		newConnect(a),
		newServe(a),
		newUp(a),
		newAuthority(a),
		newRegistry(a),
		newManager(a),
		newForwarder(a),
		newWireGuardHolder(a),
		newDemo(a),
		newDemoGuard(a),
		newDemoWorkload(a),
	)
	for _, g := range groups {
		if slices.ContainsFunc(root.Commands(), func(c *cobra.Command) bool { return c.GroupID == g.ID }) {
			root.AddGroup(g)
		}
	}
	complete(root, "log-format", "text", "json")
	complete(root, "log-level", "TRACE", "DEBUG", "INFO", "WARN", "ERROR")
	return root
}

// Groups of commands in the help.
const (
	groupOperate  = "operate"
	groupWorkload = "workload"
	groupDaemon   = "daemon"
)

var groups = []*cobra.Group{
	{ID: groupOperate, Title: "Look and change:"},
	{ID: groupWorkload, Title: "Workloads:"},
	{ID: groupDaemon, Title: "Daemons:"},
}

// command finishes a subcommand: it declares cfg's fields as its settings and
// makes it load them, and log as they say, before it runs.
func (a *app) command(c *cobra.Command, cfg any, run func(ctx context.Context, args []string) error) *cobra.Command {
	own := config.Declare(c.Flags(), cfg)
	a.known = append(a.known, own.Environment()...)
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return &usageError{c, fmt.Errorf("%w: %s", err, c.UseLine())}
			}
			return nil
		}
	}
	if offer := c.ValidArgsFunction; offer != nil {
		c.ValidArgsFunction = func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if err := a.load(own); err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			return offer(c, args, prefix)
		}
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := a.load(own); err != nil {
			return err
		}
		for _, err := range config.CheckEnvironment(os.Environ(), a.known) {
			slog.Warn("a variable of the environment is not used", "error", err)
		}
		return run(c.Context(), args)
	}
	return c
}

// load fills globals and the settings of one command, and starts logging.
func (a *app) load(own *config.Settings) error {
	if err := config.Load("", os.LookupEnv, a.settings); err != nil { // for --config
		return err
	}
	if err := config.Load(a.Config, os.LookupEnv, a.settings, own); err != nil {
		return err
	}
	a.level.Set(slog.Level(a.LogLevel))
	slog.SetDefault(newLogger(a.err, a.LogFormat, &a.level))
	return nil
}

// group is the RunE of commands that only have subcommands.
func group(c *cobra.Command, args []string) error {
	switch {
	case len(args) > 0:
		err := fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath())
		c.SuggestionsMinimumDistance = 2
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			err = fmt.Errorf("%w; do you mean %s?", err, strings.Join(near, " or "))
		}
		return &usageError{c, err}
	case c.HasParent():
		var names []string
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				names = append(names, sub.Name())
			}
		}
		return &usageError{c, fmt.Errorf("say what to %s: %s", c.Name(), strings.Join(names, ", "))}
	}
	return c.Help()
}

// complete offers fixed values for a flag.
func complete(c *cobra.Command, flag string, values ...string) {
	if err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // there is no such flag
	}
}

// usageError is a command line that makes no sense.
type usageError struct {
	command *cobra.Command
	err     error
}

func (e *usageError) Error() string {
	if reason := (*nserr.Error)(nil); errors.As(e.err, &reason) {
		return reason.Error() // without pflag's words around it
	}
	return fmt.Sprintf("%v (see '%s --help')", e.err, e.command.CommandPath())
}

func (e *usageError) Unwrap() error { return e.err }

// Exit codes, for scripts.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2 // command line or input file
	exitNotFound    = 3
	exitNotAllowed  = 4
	exitUnavailable = 5 // no daemon, no identity, or no answer in time
)

// exit prints an error and returns the exit code it stands for.
func (a *app) exit(err error) int {
	if err == nil {
		return exitOK
	}
	if status := commandStatus(0); errors.As(err, &status) {
		return int(status) // the command has said what was wrong
	}
	fmt.Fprintln(a.err, "nsm:", err)
	return exitCode(err)
}

func exitCode(err error) int {
	if usage := (*usageError)(nil); errors.As(err, &usage) {
		return exitUsage
	}
	code := status.Code(err)
	if reason := (*nserr.Error)(nil); errors.As(err, &reason) {
		code = reason.Reason.GRPC
	}
	switch code {
	case codes.InvalidArgument:
		return exitUsage
	case codes.NotFound:
		return exitNotFound
	case codes.PermissionDenied:
		return exitNotAllowed
	case codes.Unauthenticated, codes.Unavailable, codes.DeadlineExceeded:
		return exitUnavailable
	}
	return exitFailed
}

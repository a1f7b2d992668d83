// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Roles are what a program that measures plays when it has started itself again:
// the first argument is the name of the role, the rest is the role's.
type Roles map[string]func(args []string) error

// Play plays the role that the program's arguments name, if they name one, and exits.
func (r Roles) Play() {
	if len(os.Args) < 2 || r[os.Args[1]] == nil {
		return
	}
	exit(os.Args[1], r[os.Args[1]](os.Args[2:]))
}

// Main is the main function of a program that measures. It plays a role, or
// prepares the process, such as with [OwnRun], and runs.
func Main(name string, roles Roles, prepare func() error, run func(ctx context.Context, args []string) error) {
	roles.Play()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := prepare()
	if err == nil {
		err = run(ctx, os.Args[1:])
	}
	exit(name, err)
}

func exit(name string, err error) {
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Output is where a run's figures go, besides standard output.
type Output struct {
	json, doc string
}

// Flags adds the flags that say it.
func (o *Output) Flags(f *flag.FlagSet) {
	f.StringVar(&o.json, "json", "", "write every value to this `file`")
	f.StringVar(&o.doc, "doc", "", "replace the tables of this Markdown `file`")
}

// Write writes every value as JSON, and the tables into the document.
func (o Output) Write(values any, tables map[string]string) (err error) {
	if o.json != "" {
		err = writeJSON(o.json, values)
	}
	if o.doc != "" {
		err = errors.Join(err, WriteDoc(o.doc, tables))
	}
	return err
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/openvwire/nsm/forwarder/netns"
)

// NetNS is a network namespace of the lab with the environment that processes
// in it get.
type NetNS struct {
	Name string // as `ip netns` knows it

	lab *Lab
	key string // in lab.namespaces
	env []string
}

// Path is the file that names the namespace.
func (ns *NetNS) Path() string { return filepath.Join(netns.RunDir, ns.Name) }

func (l *Lab) newNetNS(name string, env []string) (*NetNS, error) {
	ns := &NetNS{Name: l.Name + "-" + name, lab: l, env: append(l.inherited(), env...)}
	f, err := netns.NewNamed(ns.Name)
	if err != nil {
		return nil, err
	}
	ns.key, err = l.namespaces.Add(f)
	return ns, err
}

// inherited is the caller's environment without what would lead out of the lab.
func (l *Lab) inherited() (env []string) {
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "NSM_") && !strings.HasPrefix(v, "SPIFFE_") && !strings.HasPrefix(v, "NODE_NAME=") {
			env = append(env, v)
		}
	}
	return append(append(env, Mark(l.Name)), l.env...)
}

// Delete removes the namespace before the lab ends. It goes when no process is
// left in it.
func (ns *NetNS) Delete() error {
	ns.lab.namespaces.Release(ns.key)
	return netns.DeleteNamed(ns.Name)
}

// Do runs f on a thread in the namespace; sockets that f opens stay in it. f
// must not start goroutines and expect them to run there.
func (ns *NetNS) Do(f func() error) error { return ns.lab.namespaces.Do(ns.key, f) }

// ExitError is a command that failed.
type ExitError struct {
	Command string
	Code    int // exit code; -1 = ended by a signal
	Stderr  string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit code %d: %s", e.Command, e.Code, strings.TrimSpace(e.Stderr))
}

// Run runs a command in the namespace to its end and returns what it printed.
// If it fails the error is an [*ExitError].
func (ns *NetNS) Run(ctx context.Context, argv ...string) (stdout string, err error) {
	var out, errs bytes.Buffer
	c := ns.command(ctx, argv)
	c.Stdout, c.Stderr = &out, &errs
	if err := ns.Do(c.Start); err != nil { // a child is born in the namespace of the thread that forks it
		return "", fmt.Errorf("%s: %w", argv[0], err)
	}
	err = c.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return out.String(), &ExitError{Command: commandLine(argv), Code: exit.ExitCode(), Stderr: errs.String()}
	}
	return out.String(), err
}

func (ns *NetNS) command(ctx context.Context, argv []string) *exec.Cmd {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env = ns.env
	c.WaitDelay = stopGrace
	return c
}

// commandLine is a command as a person would type it.
func commandLine(argv []string) string {
	return strings.Join(append([]string{filepath.Base(argv[0])}, argv[1:]...), " ")
}

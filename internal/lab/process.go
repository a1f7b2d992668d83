// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

// stopGrace is how long a process may take to end after SIGTERM.
const stopGrace = 15 * time.Second

// Process is a running process of the lab. All it prints goes to its log, by a
// descriptor of its own: it goes on printing when the lab's maker is gone.
type Process struct {
	Command string // as a person would type it
	Node    string // name; empty = a workload's process
	Part    string // of a daemon: "manager", "forwarder" …
	PID     int
	Log     string // path of the file

	ns      *NetNS
	options startOptions
	argv    []string
	cmd     *exec.Cmd
	done    chan struct{} // closed when it has ended
}

type startOptions struct {
	label string                 // for the log's name
	node  string                 // whose daemon it is; stopped after all workloads
	part  string                 // of a daemon
	nsm   bool                   // it is the lab's program: argv begins with its first argument
	ready func(line string) bool // recognises the line that says that it is ready; nil = at once

	replaces *Process // whose place it takes among the lab's processes; nil = nobody's
}

// Start starts a process in the namespace and returns when it has printed a
// line that contains ready; empty = at once.
func (ns *NetNS) Start(ctx context.Context, ready string, argv ...string) (*Process, error) {
	return ns.start(ctx, ns.options(ready), argv)
}

// options are those of a workload's process.
func (ns *NetNS) options(ready string) startOptions {
	o := startOptions{label: strings.TrimPrefix(ns.Name, ns.lab.Name+"-")}
	if ready != "" {
		o.ready = func(line string) bool { return strings.Contains(line, ready) }
	}
	return o
}

// StartNsm starts nsm in the namespace and returns when it has printed a line
// that contains ready; empty = at once.
func (ns *NetNS) StartNsm(ctx context.Context, ready string, args ...string) (*Process, error) {
	o := ns.options(ready)
	o.nsm = true
	return ns.start(ctx, o, args)
}

// Connect starts 'nsm connect' in the namespace and returns when its wires are
// up: the namespace is the workload's.
func (ns *NetNS) Connect(ctx context.Context, args ...string) (*Process, error) {
	return ns.StartNsm(ctx, "is up: ", append([]string{"connect"}, args...)...)
}

// Serve starts 'nsm serve' in the namespace and returns when the endpoint is
// registered: the namespace is the workload's.
func (ns *NetNS) Serve(ctx context.Context, args ...string) (*Process, error) {
	return ns.StartNsm(ctx, "nsm: endpoint ", append([]string{"serve"}, args...)...)
}

func (ns *NetNS) start(ctx context.Context, o startOptions, argv []string) (*Process, error) {
	whole := argv
	if o.nsm {
		whole = append([]string{ns.lab.program()}, argv...)
	}
	log, err := ns.lab.createLog(o.label)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c := exec.Command(whole[0], whole[1:]...)
	c.Env = ns.env
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for the lab, which stops things in order
	p := &Process{
		Command: commandLine(whole), Log: log.Name(), Node: o.node, Part: o.part,
		ns: ns, options: o, argv: argv, cmd: c, done: make(chan struct{}),
	}
	if err := ns.lab.launch(ns, p); err != nil {
		return nil, fmt.Errorf("%s: %w", p.Command, err)
	}
	if o.ready != nil {
		if _, err := p.WaitLine(ctx, o.ready); err != nil {
			p.Kill()
			return nil, err
		}
	}
	return p, nil
}

// launch starts p unless the lab is closed.
func (l *Lab) launch(ns *NetNS, p *Process) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("the lab is closed")
	}
	if err := ns.Do(p.cmd.Start); err != nil {
		return err
	}
	p.PID = p.cmd.Process.Pid
	if i := slices.Index(l.processes, p.options.replaces); i >= 0 {
		l.processes[i] = p
	} else {
		l.processes = append(l.processes, p)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // its exit code stays in the command
	}()
	return nil
}

func (l *Lab) createLog(label string) (*os.File, error) {
	l.mu.Lock()
	l.logs++
	name := fmt.Sprintf("%02d-%s.log", l.logs, label)
	l.mu.Unlock()
	return os.OpenFile(filepath.Join(l.Dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_EXCL, 0o644)
}

// Restart starts the program again where it was, with the same arguments, and
// returns when it is ready. If it runs still it is stopped before. It is another
// process, hence another Process; in the lab it has the place of the first. nsm is
// what [Lab.Use] has made it.
func (p *Process) Restart(ctx context.Context) (*Process, error) {
	if err := p.Stop(); err != nil {
		return nil, err
	}
	o := p.options
	o.replaces = p
	return p.ns.start(ctx, o, p.argv)
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// ExitCode is that of an ended process; -1 if it runs or a signal ended it.
func (p *Process) ExitCode() int {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	default:
		return -1
	}
}

// Signal sends a signal to a process that has not ended.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Kill ends the process with SIGKILL and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop ends the process with SIGTERM, thawed if it was frozen, and waits for it.
// If it does not end it is killed, which is an error.
func (p *Process) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.Thaw()
	select {
	case <-p.done:
		return nil
	case <-time.After(stopGrace):
	}
	_ = p.Signal(syscall.SIGQUIT) // its goroutines' stacks go to the log
	select {
	case <-p.done:
	case <-time.After(time.Second):
		p.Kill()
	}
	return fmt.Errorf("%s (process %d) did not end within %v of SIGTERM:\n%s", p.Command, p.PID, stopGrace, p.Output())
}

// Output returns what the process has printed so far.
func (p *Process) Output() string {
	data, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// WaitLine waits for a line of the log, from its beginning on, that match
// accepts. It fails when the process ends without one.
func (p *Process) WaitLine(ctx context.Context, match func(line string) bool) (string, error) {
	changes, err := fsnotify.NewWatcher()
	if err != nil {
		return "", err
	}
	defer changes.Close()
	if err := changes.Add(p.Log); err != nil {
		return "", err
	}
	f, err := os.Open(p.Log)
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewReader(f)
	begun, ended := "", false // of a line
	for {
		text, err := lines.ReadString('\n')
		begun += text
		if err == nil {
			if line := strings.TrimSuffix(begun, "\n"); match(line) {
				return line, nil
			}
			begun = ""
			continue
		}
		if !errors.Is(err, io.EOF) {
			return "", err
		}
		if ended {
			return "", &ExitError{Command: p.Command, Code: p.ExitCode(), Stderr: p.Output()}
		}
		select {
		case <-changes.Events:
		case <-p.done:
			ended = true // there may be a last line
		case <-ctx.Done():
			return "", fmt.Errorf("%s: %w; so far it has printed:\n%s", p.Command, ctx.Err(), p.Output())
		}
	}
}

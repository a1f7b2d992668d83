// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/test/bench/probe"
)

// The benchmark starts itself again for what has to run inside a workload's
// namespace. The first argument says as what.
var roles = map[string]func() error{
	// serve answers probes.
	"serve": func() error {
		return probe.Serve(netip.AddrPortFrom(netip.IPv6Unspecified(), probePort), func() { fmt.Println("ready") })
	},
	// measure sends them as told on stdin.
	"measure": func() error { return answer(os.Stdin, os.Stdout, task.do) },
	// connect asks for wires as told on stdin.
	"connect": connectRole,
}

// role runs the process in a role, if args name one, and exits.
func role(args []string) {
	if len(args) < 2 || roles[args[1]] == nil {
		return
	}
	if err := roles[args[1]](); err != nil {
		fmt.Fprintln(os.Stderr, args[1]+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// task is one measurement.
type task struct {
	Probe    string // "stream", "ping" or "datagrams"
	To       netip.AddrPort
	N        int // streams, or bytes per packet
	Duration time.Duration
	PIDs     []int // whose CPU time counts, besides that of the measuring process
}

type measured struct {
	Throughput probe.Throughput
	RoundTrips probe.RoundTrips
}

func (t task) do() (m measured, err error) {
	pids := append([]int{os.Getpid()}, t.PIDs...)
	switch t.Probe {
	case "stream":
		m.Throughput, err = probe.Stream(t.To, t.N, t.Duration, pids)
	case "ping":
		m.RoundTrips, err = probe.Ping(t.To, t.Duration)
	case "datagrams":
		m.Throughput, err = probe.Datagrams(t.To, t.N, t.Duration, pids)
	default:
		err = fmt.Errorf("no probe is called %q", t.Probe)
	}
	return m, err
}

// reply is what a child says to a question.
type reply[A any] struct {
	Answer A
	Error  string
}

// answer answers the questions of in, one JSON value each, until it ends.
func answer[Q, A any](in io.Reader, out io.Writer, f func(Q) (A, error)) error {
	questions, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var q Q
		if err := questions.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		a, err := f(q)
		r := reply[A]{Answer: a}
		if err != nil {
			r.Error = err.Error()
		}
		if err := answers.Encode(r); err != nil {
			return err
		}
	}
}

// child is this program in another role, one that answers questions.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startChild starts this program as role in a namespace of l, with env added to
// the environment.
func startChild(l *lab.Lab, ns *lab.NetNS, role string, env ...string) (*child, error) {
	c := exec.Command("/proc/self/exe", role)
	c.Env = slices.Concat(os.Environ(), []string{"NSM_LAB=" + l.Name}, env) // so that the lab's guard knows it
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for the benchmark
	in, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := ns.Do(c.Start); err != nil { // born in the namespace of the thread that forks it
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	return &child{c, in, bufio.NewReader(out)}, nil
}

// stop tells the child that there are no more questions and waits until it ends.
func (c *child) stop() error {
	_ = c.in.Close()
	return c.cmd.Wait()
}

// ask asks the child a question.
func ask[A any](c *child, question any) (A, error) {
	var r reply[A]
	if err := json.NewEncoder(c.in).Encode(question); err != nil {
		return r.Answer, fmt.Errorf("%v: %w", c.cmd.Args, err)
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return r.Answer, fmt.Errorf("%v: %w", c.cmd.Args, err)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r.Answer, fmt.Errorf("%v said %q: %w", c.cmd.Args, line, err)
	}
	if r.Error != "" {
		return r.Answer, errors.New(r.Error)
	}
	return r.Answer, nil
}

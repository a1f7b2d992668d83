// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// reply is what a child says to a question.
type reply[A any] struct {
	Answer A
	Error  string
}

// Answer answers the questions of stdin on stdout, one JSON value each, until
// there are no more.
func Answer[Q, A any](f func(Q) (A, error)) error { return answer(os.Stdin, os.Stdout, f) }

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

// Child is this program in another role, one that answers questions.
type Child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// NewChild returns the program in a role, not yet started, with env added to its
// environment.
func NewChild(env []string, role ...string) (*Child, error) {
	c := exec.Command("/proc/self/exe", role...)
	c.Env = append(os.Environ(), env...)
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
	return &Child{c, in, bufio.NewReader(out)}, nil
}

// Start starts it. It is born in the network namespace of the calling thread.
func (c *Child) Start() error {
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("start %v: %w", c.cmd.Args[1:], err)
	}
	return nil
}

// PID is that of the process.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Stop tells the child that there are no more questions and waits until it ends.
func (c *Child) Stop() error {
	_ = c.in.Close()
	return c.cmd.Wait()
}

// Ask asks the child a question.
func Ask[A any](c *Child, question any) (A, error) {
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

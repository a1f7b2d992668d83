// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/sdk/nserr"
)

func TestProcess(t *testing.T) {
	c := exec.Command("sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	pid := c.Process.Pid
	p, err := openProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.fd.Close()
	if err := p.ended(); err != nil {
		t.Errorf("one that runs: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := p.wait(ctx); err != nil {
		t.Errorf("interrupted: %v", err)
	}

	again, err := openProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer again.fd.Close()
	waited := make(chan error, 1)
	go func() { waited <- again.wait(t.Context()) }()
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; !errors.Is(err, nserr.NoNetNS) || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("one that has ended: %v", err)
	}
	if err := again.ended(); err == nil { // though nobody has waited for it as its parent
		t.Error("one that has ended runs")
	}
	_ = c.Wait()
	if _, err := openWorkload(workloadConfig{PID: pid}, nil); !errors.Is(err, nserr.NoNetNS) || !strings.Contains(err.Error(), "no process") {
		t.Errorf("one that is gone: %v", err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// untilTold returns a context that ends when the process is told to end: by
// SIGINT, by SIGTERM, and by SIGHUP, which comes when its terminal or its ssh
// session has gone, unless it was started to ignore that (nohup). A second SIGINT
// or SIGTERM does not wait for us; further SIGHUPs mean nothing new, a shell and
// the kernel send one each. Whoever calls it calls stop in the end.
func (a *app) untilTold(ctx context.Context) (told context.Context, stop func()) {
	told, cancel := context.WithCancel(ctx)
	wanted := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		wanted = append(wanted, syscall.SIGHUP)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, wanted...)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range signals {
			if s == os.Interrupt && a.terminalTells.Load() {
				continue
			}
			if slices.Contains(wanted, os.Signal(syscall.SIGHUP)) {
				signal.Ignore(syscall.SIGHUP)
			}
			signal.Stop(signals)
			cancel()
			return
		}
	}()
	return told, func() {
		signal.Stop(signals)
		close(signals)
		<-done
		cancel()
	}
}

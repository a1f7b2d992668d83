// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// ending is how the process is told to end, once or twice.
//
//	          told                     told again
//	at work ───────▶ ends, cleans up ─────────────▶ dies at once
//
// While a command runs that has the terminal, the terminal's Ctrl-C tells the command
// and not the process.
type ending struct {
	signals chan os.Signal // and marks; nil if nobody listens
	cleanUp atomic.Pointer[cleanUp]
}

// cleanUp is what is done before the process ends by itself. It takes a bounded time.
type cleanUp struct {
	doing string // "closing the wires"
	left  string // what is left if it is not done
}

// mark is what happens between two signals.
type mark string

func (mark) Signal()          {}
func (m mark) String() string { return string(m) }

const (
	commandBegins mark = "the command has the terminal"
	commandEnded  mark = "the command has ended"
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
	a.ending.signals = signals
	done := make(chan struct{})
	go func() {
		defer close(done)
		theirs, ends := false, false
		for s := range signals {
			switch {
			case s == commandBegins || s == commandEnded:
				theirs = s == commandBegins
			case s == os.Interrupt && theirs:
			case !ends:
				ends = true
				if slices.Contains(wanted, os.Signal(syscall.SIGHUP)) {
					signal.Ignore(syscall.SIGHUP)
				}
				if c := a.ending.cleanUp.Load(); c != nil {
					fmt.Fprintf(a.err, "nsm: %s first; another Ctrl-C or SIGTERM ends that at once\n", c.doing)
				}
				cancel()
			case s != syscall.SIGHUP:
				a.ending.die(s.(syscall.Signal), a.err)
			}
		}
	}()
	return told, func() {
		signal.Stop(signals)
		close(signals)
		<-done
		cancel()
	}
}

// tell has a mark heard after all signals that have come before it.
func (e *ending) tell(m mark) {
	if e.signals == nil {
		return
	}
	flush := make(chan os.Signal, 1)
	signal.Notify(flush, os.Interrupt)
	signal.Stop(flush) // returns when every signal that has come is in its channels
	e.signals <- m
}

// slowCleanUp is how long nobody is told that he waits for that.
const slowCleanUp = time.Second

// cleansUp has the process clean up by f, with a word for who waits or interrupts.
func (a *app) cleansUp(doing, left string, f func() error) error {
	a.ending.cleanUp.Store(&cleanUp{doing, left})
	defer a.ending.cleanUp.Store(nil)
	slow := time.AfterFunc(slowCleanUp, func() { fmt.Fprintf(a.err, "nsm: %s\n", doing) })
	defer slow.Stop()
	return f()
}

// die ends the process at once, of the signal.
func (e *ending) die(s syscall.Signal, log io.Writer) {
	if c := e.cleanUp.Load(); c != nil {
		fmt.Fprintf(log, "nsm: ended while %s; %s\n", c.doing, c.left)
	}
	signal.Reset(s)
	_ = syscall.Kill(os.Getpid(), s)
	<-time.After(time.Second) // it has ended by then; the first process of a PID namespace does not die of it
	os.Exit(128 + int(s))
}

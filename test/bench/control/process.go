// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"slices"
	"testing"
)

// process stands for the test that packages ref and ours take their parts to live
// in: parts of this process live until it ends.
type process struct {
	testing.TB // nil: nothing else is asked for

	cleanups []func()
}

func (*process) Helper() {}

func (*process) Fatal(args ...any) {
	fmt.Fprintln(os.Stderr, args...)
	os.Exit(1)
}

func (p *process) Fatalf(format string, args ...any) { p.Fatal(fmt.Sprintf(format, args...)) }

// Errorf says what a test would fail for when it ends.
func (*process) Errorf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (p *process) Cleanup(f func()) { p.cleanups = append(p.cleanups, f) }

// end does what is to be done at the end.
func (p *process) end() {
	for _, f := range slices.Backward(p.cleanups) {
		f()
	}
}

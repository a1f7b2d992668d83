// SPDX-License-Identifier: Apache-2.0

// Package osthread runs functions on an operating system thread of their own, for
// what the kernel keeps per thread, as the network namespace.
package osthread

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs f on a thread that nothing else runs on meanwhile, and waits for it. It is
// never the process's main thread: that one does not end before the process, and
// what it is in is what /proc/PID/ns tells the rest of the machine.
//
// f reports whether it has left the thread as it was. If not, the thread ends; so it
// does when f calls runtime.Goexit (t.FailNow) or panics.
func Run(f func() (clean bool)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			defer runtime.UnlockOSThread()
			Run(f) // while the main thread waits here it is not chosen again
			return
		}
		if f() {
			runtime.UnlockOSThread()
		}
	}()
	<-done
}

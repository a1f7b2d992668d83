// SPDX-License-Identifier: Apache-2.0

package osthread

import (
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// However busy the threads are, none of the functions runs on the main one, and no
// two run on one at the same time.
func TestNeverTheMainThread(t *testing.T) {
	var mu sync.Mutex
	busy := make(map[int]bool)
	var all sync.WaitGroup
	for i := range 300 {
		all.Go(func() {
			Run(func() bool {
				id := unix.Gettid()
				mu.Lock()
				if id == os.Getpid() || busy[id] {
					t.Errorf("runs on thread %d, the main one is %d", id, os.Getpid())
				}
				busy[id] = true
				mu.Unlock()
				runtime.Gosched()
				mu.Lock()
				busy[id] = false
				mu.Unlock()
				return i%100 != 0
			})
		})
	}
	all.Wait()
}

// What f has done to its thread is nobody else's when it says so.
func TestThreadEnds(t *testing.T) {
	var before, after int
	Run(func() bool { before = unix.Gettid(); return false })
	for range 100 {
		Run(func() bool { after = unix.Gettid(); return true })
		if after == before {
			t.Fatal("a thread that was not left as it was is used again")
		}
	}
	Run(func() bool { runtime.Goexit(); return true }) // must not hang
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"runtime"
	"testing"

	"github.com/openvwire/nsm/internal/nstest"
)

// With several processors two goroutines of a bubble can find channel timers due at once,
// which crashes the race detector (Go 1.26: timer.unlockAndRun has one race context for the
// whole bubble).
func TestMain(m *testing.M) {
	if nstest.Race {
		runtime.GOMAXPROCS(1)
	}
	nstest.Main(m)
}

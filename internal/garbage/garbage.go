// SPDX-License-Identifier: Apache-2.0

// Package garbage says how much of it daemons let lie.
package garbage

import (
	"os"
	"runtime/debug"
)

// percent is GOGC of daemons. What passes through one with a refresh is several times
// what it keeps for the connection, and most is garbage at once: with Go's own 100
// collecting was a sixth of a refresh's time. With 200 it is an eighth, and at its peak the
// heap is three times what is live, instead of two.
const percent = 200

// Collect sets when the garbage collector of a daemon runs, unless its environment says
// so by GOGC.
func Collect() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

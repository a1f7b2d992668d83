#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# behind.sh starts a test's program for `go test -exec`. That of test/sim, whose time is
# made up, computes behind all others, whose time is real. It gets one processor: two
# goroutines of a bubble that find timers due at once crash the race detector (Go 1.26:
# timer.unlockAndRun, which has one race context for the whole bubble).
case $1 in
*/sim.test) GOMAXPROCS=1 exec nice -n 19 "$@" ;;
*) exec "$@" ;;
esac

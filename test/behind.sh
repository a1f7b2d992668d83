#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# behind.sh starts a test's program for `go test -exec`. That of test/sim, whose time is
# made up, computes behind all others, whose time is real.
case $1 in
*/sim.test) exec nice -n 19 "$@" ;;
*) exec "$@" ;;
esac

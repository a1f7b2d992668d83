#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# benchmarks.sh compares the benchmarks of what every Request, refresh and look-up
# passes with test/benchmarks.txt, and prints benchstat's table. What counts are
# allocations: times are of another machine, as its first lines say, unless it was
# written on this one.
#
#   test/benchmarks.sh           # compare
#   test/benchmarks.sh update    # write test/benchmarks.txt anew
#   COUNT=1 BENCHTIME=1x …       # only to see that it works
set -eu
cd "$(dirname "$0")/.."
baseline=test/benchmarks.txt
new=$(mktemp)
trap 'rm -f "$new"' EXIT

{
	echo "machine: $(uname -sr), $(nproc) cores, load average $(cut -d' ' -f1 /proc/loadavg)"
	echo "toolchain: $(go version | cut -d' ' -f3-)"
	# Each some times, for benchstat to tell a difference from noise.
	go test -run '^$' -bench . -benchmem -count "${COUNT:-6}" -benchtime "${BENCHTIME:-100ms}" \
		./sdk/path ./sdk/token ./sdk/conn ./sdk/watch ./sdk/rpc ./sdk/ipam ./nsmgr/route ./forwarder/plan ./registry ./registry/memory
} | grep -v '^ok\|^PASS' >"$new"
if grep -n 'FAIL' "$new"; then
	cat "$new"
	exit 1
fi
if [ "${1:-}" = update ]; then
	cat "$new" >"$baseline"
else
	go tool benchstat "$baseline" "$new"
fi

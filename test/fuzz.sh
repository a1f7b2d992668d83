#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# fuzz.sh [TIME] runs every fuzz target of the module for TIME (1m), one after
# the other, and goes on after a find. What it finds is saved by go test below
# the package's testdata/fuzz: commit it with the fix, and it is a test.
set -u
cd "$(dirname "$0")/.."
time=${1:-1m}
found=
targets=$(git grep -hnoE '^func Fuzz[A-Za-z0-9_]*' -- '*_test.go' ':!test/interop' ':!test/bench/control' | wc -l)
echo "$targets targets, $time each"
for file in $(git grep -lE '^func Fuzz' -- '*_test.go' ':!test/interop' ':!test/bench/control'); do
	for target in $(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*).*/\1/p' "$file"); do
		echo "== ./$(dirname "$file") $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$(dirname "$file")" || found="$found $target"
	done
done
[ -z "$found" ] || { echo "FAILED:$found"; exit 1; }

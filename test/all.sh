#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# all.sh runs every test there is, as `make test` does: it says what it does,
# what it leaves out and why, and goes on after a failure to show the others.
# It installs nothing; scripts/deps.sh does. What each step is for stands in
# docs/testing.md.
#
#   test/all.sh              # everything
#   test/all.sh lint unit    # some steps
set -u
cd "$(dirname "$0")/.."
root=$PWD
tools=$root/.cache/tools
nested='test/interop test/bench/control' # modules that need the reference
summary=
failed=

say() { printf '\n== %s\n' "$*"; }
note() { summary="$summary$1
"; }
skipped() { # WHAT WHY
	echo "SKIPPED: $1: $2"
	note "skipped  $1: $2"
}

# step NAME WHAT COMMAND... runs a command and remembers how it ended.
step() {
	name=$1 what=$2
	shift 2
	say "$name: $what"
	start=$(date +%s)
	if "$@"; then
		note "ok       $name ($(($(date +%s) - start)) s)"
	else
		echo "FAILED: $name"
		failed="$failed $name"
		note "FAILED   $name ($(($(date +%s) - start)) s)"
	fi
}

build() {
	mkdir -p "$tools" &&
		make --no-print-directory build &&
		go build -o "$tools/" ./test/gotest honnef.co/go/tools/cmd/staticcheck
}

lint() {
	status=0
	unformatted=$("$(go env GOROOT)/bin/gofmt" -l $(git ls-files -co --exclude-standard '*.go')) || status=1
	[ -z "$unformatted" ] || { echo "gofmt would change:" $unformatted; status=1; }
	for module in . $nested; do
		(cd $module && go vet ./... && "$tools/staticcheck" ./...) || status=1
	done
	return $status
}

# unit runs what watches the machine's own clock one package at a time, beside test/sim, which
# computes for as long as all of them take and gives way to them: others would take the processors
# that real daemons and packets need.
unit() {
	clocked='/nsm/(cmd/nsm|forwarder/.*|internal/.*|sdk/identity.*|test/(bench.*|heal.*|netns))$'
	all=$(go list ./... | grep -vx '.*/test/sim') || return
	status=0
	# shellcheck disable=SC2046,SC2086 # one word per package
	"$tools/gotest" $flags -timeout 15m $(echo "$all" | grep -vE "$clocked") || status=1
	# shellcheck disable=SC2046,SC2086
	"$tools/gotest" $flags -timeout 30m -p 2 -exec "$root/test/behind.sh" ./test/sim $(echo "$all" | grep -E "$clocked") || status=1
	return $status
}
interop() {
	status=0
	for module in $nested; do
		(cd "$module" && "$tools/gotest" $flags -timeout 15m ./...) || status=1
	done
	return $status
}

vm() {
	mkdir -p .cache
	{
		test/vm/run.sh ./forwarder/wireguard && test/vm/run.sh ./forwarder/kernel -test.run WireGuard &&
			VM_PROGRAMS=./cmd/nsm VM_MEMORY=1024 test/vm/run.sh ./test/heal -test.run TestClockStep -test.short
		echo "exit $?"
	} >.cache/vm.log 2>&1
	grep -v '^exit ' .cache/vm.log
	grep -qx 'exit 0' .cache/vm.log
}

# benches runs each benchmark once, and counts allocations, which the race detector
# would add to.
benches() {
	packages=$(packages_with '^func Benchmark')
	# shellcheck disable=SC2086 # one word per package
	"$tools/gotest" -run '^TestAllocations' -bench . -benchtime 1x $packages ./test/sim
}

# packages_with prints the packages whose tests contain a pattern.
packages_with() { git grep -lE "$1" -- '*_test.go' ':!test/interop' ':!test/bench/control' | xargs -n1 dirname | sort -u | sed 's|^|./|'; }

# missing prints which of the given commands are not there.
missing() {
	for command; do
		command -v "$command" >/dev/null || PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || printf '%s ' "$command"
	done
}

say "where: $(go version | cut -d' ' -f3-), $(uname -sr), $(nproc) cores, user $(id -un)"
flags=
[ -z "${CI:-}" ] || flags=-count=1
cc=$(go env CC)
if [ "$(go env GOOS)/$(go env CGO_ENABLED)" != linux/0 ] && command -v "${cc%% *}" >/dev/null; then
	export CGO_ENABLED=1
	flags="-race $flags"
else
	skipped "race detector" "it needs a C compiler; run scripts/deps.sh"
fi
if [ "$(id -u)" != 0 ]; then
	if unshare -Urnm true 2>/dev/null; then
		echo "not root: tests of the kernel's network run in user namespaces"
	else
		skipped "tests of the kernel's network" "they need root or unprivileged user namespaces"
	fi
fi

steps=${*:-build lint interop vm bench unit}
for s in $steps; do
	case $s in
	build) step build "bin/nsm and the tools of the tests" build ;;
	lint) step lint "gofmt, go vet, staticcheck" lint ;;
	unit) step unit "go test of every package: units, whole meshes in one process, the real kernel" unit ;;
	interop) step interop "our parts and the reference's, together and side by side" interop ;;
	bench) step bench "every benchmark, once: they run; make bench measures. Allocations have ceilings" benches ;;
	vm)
		lacking=$(missing qemu-system-x86_64 cpio depmod xz apt-get)
		if [ "$(uname -m)" != x86_64 ]; then
			skipped "vm (the kernel's WireGuard)" "this machine is $(uname -m), not x86_64"
		elif [ -n "$lacking" ]; then
			skipped "vm (the kernel's WireGuard)" "no ${lacking% }; run scripts/deps.sh"
		else
			step vm "the kernel's WireGuard, in a virtual machine" vm
			why=$(sed -n 's/^skipped: //p' "$root/.cache/vm.log" | head -n 1)
			[ -z "$why" ] || skipped "vm (the kernel's WireGuard)" "$why"
		fi
		;;
	*)
		echo "no step $s: build lint interop vm bench unit" >&2
		exit 2
		;;
	esac
done

say "summary"
printf '%s' "$summary"
[ -z "$failed" ] || { echo "FAILED:$failed"; exit 1; }
echo "all passed"

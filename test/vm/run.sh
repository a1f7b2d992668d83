#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# run.sh [PACKAGE [TEST FLAGS...]] runs the tests of one package as root in a
# small virtual machine whose kernel has what this one may lack: WireGuard,
# VLANs, dummy links and so on. Without arguments: the WireGuard devices.
#
#   test/vm/run.sh
#   test/vm/run.sh ./forwarder/kernel -test.run TestWireGuard -test.v
#   VM_PROGRAMS=./cmd/nsm VM_MEMORY=1024 test/vm/run.sh ./test/heal -test.run TestClockStep  # 5 min
#   VM_KERNEL=linux-image-6.12-cloud-amd64 test/vm/run.sh
#
# The machine is emulated by qemu (TCG): no /dev/kvm is needed, and no figure
# measured in it means anything. Its kernel is Debian's cloud kernel, unpacked
# below .cache/vm and not installed; its only process is ./init, which loads
# the modules and runs the test binary. It has no network and no disk.
#
# Missing tools are installed with apt-get. A machine that cannot (no apt, not
# amd64, not root) is told "skipped" and why; that is exit code 0.

set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
cache=$root/.cache/vm
kernel=${VM_KERNEL:-linux-image-cloud-amd64} # a package or a meta package
memory=${VM_MEMORY:-512}                     # MiB
timeout=${VM_TIMEOUT:-300}                   # seconds
modules=(wireguard veth tun dummy 8021q vxlan bridge)

skip() { echo "skipped: $*"; exit 0; }
fail() { echo "test/vm: $*" >&2; exit 1; }

# tools installs what is missing.
tools() {
	local missing=()
	command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
	[ -e /usr/share/seabios/bios-256k.bin ] || missing+=(seabios)
	command -v depmod >/dev/null || missing+=(kmod)
	command -v cpio >/dev/null || missing+=(cpio)
	command -v xz >/dev/null || missing+=(xz-utils)
	[ ${#missing[@]} -eq 0 ] && return
	[ "$(id -u)" = 0 ] || skip "needs ${missing[*]}, and only root can install them"
	apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null ||
		{ apt-get update -qq && apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null; } ||
		skip "cannot install ${missing[*]}"
}

# resolve prints the kernel package that $kernel is or depends on.
resolve() {
	apt-cache depends "$kernel" 2>/dev/null |
		sed -nE 's/^ *Depends: (linux-image-[0-9].*)$/\1/p' | head -n 1 | grep . ||
		{ apt-cache show "$kernel" >/dev/null 2>&1 && echo "$kernel"; }
}

# unpack downloads and unpacks the kernel package once.
unpack() {
	local package=$1 dir=$cache/$1
	[ -e "$dir/ready" ] && return
	rm -rf "$dir" && mkdir -p "$dir"
	(cd "$dir" && apt-get -o APT::Sandbox::User=root download -qq "$package" >&2) ||
		{ rm -rf "$dir"; skip "cannot download $package"; }
	dpkg-deb -x "$dir"/*.deb "$dir"
	rm "$dir"/*.deb
	depmod -b "$dir" "${package#linux-image-}"
	touch "$dir/ready"
}

# add_modules copies modules and what they depend on, and lists them in the
# order in which they must be loaded.
add_modules() {
	local from=$1 to=$2 name path deps file
	mkdir -p "$to" && : >"$to/order"
	for name in "${modules[@]}"; do
		path=$(grep -oE "^[^:]*/$name\.ko(\.xz)?:" "$from/modules.dep" | tr -d :) || continue # built in
		deps=$(sed -n "s|^$path:||p" "$from/modules.dep" | tr ' ' '\n' | tac)
		for path in $deps $path; do
			file=$(basename "$path" .xz)
			grep -qxF "$file" "$to/order" && continue
			case $path in
			*.xz) xz -dc "$from/$path" >"$to/$file" ;;
			*) cp "$from/$path" "$to/$file" ;;
			esac
			echo "$file" >>"$to/order"
		done
	done
}

[ "$(uname -m)" = x86_64 ] || skip "the machine is $(uname -m), not x86_64"
command -v apt-get >/dev/null || skip "there is no apt-get to fetch a kernel with"
package=${1:-./forwarder/wireguard}
[ $# -gt 0 ] && shift

tools
image=$(resolve) || { apt-get update -qq && image=$(resolve); } || skip "apt knows no package $kernel"
unpack "$image"
version=${image#linux-image-}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
disk=$work/root
mkdir -p "$disk"
cd "$root"
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$disk/init" ./test/vm/init
for program in ${VM_PROGRAMS-}; do # packages of programs that the tests start
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$disk/programs/" "$program"
done
CGO_ENABLED=0 go test -c -trimpath -ldflags '-s -w' -o "$disk/tests" "$package"
[ -e "$disk/tests" ] || fail "$package has no tests"
for argument in "$@"; do echo "$argument"; done >"$disk/arguments"
add_modules "$cache/$image/lib/modules/$version" "$disk/modules"
(cd "$disk" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initrd"

echo "test/vm: $package on Linux $version"
code= # of the tests; qemu's own exit code says nothing about them, init prints theirs
boot() {
	timeout "$timeout" qemu-system-x86_64 -machine q35 -accel tcg -cpu max -smp 2 -m "$memory" \
		-nodefaults -no-user-config -display none -serial stdio -no-reboot \
		-kernel "$cache/$image/boot/vmlinuz-$version" -initrd "$work/initrd" \
		-append 'console=ttyS0 quiet panic=-1 mitigations=off' </dev/null 2>&1 |
		tr -d '\r' | tee "$work/console" | grep -vE '^nsm-vm: |reboot: Restarting system|^$' || true
	code=$(sed -nE 's/^nsm-vm: exit ([0-9]+)$/\1/p' "$work/console")
}
boot
# An emulated machine has two processors that wait for each other now and then, for ever.
if [ -z "$code" ] && grep -q 'soft lockup' "$work/console"; then
	echo "test/vm: the machine's kernel has locked up under emulation, once more"
	boot
fi
[ -n "$code" ] || fail "the machine stopped before the tests ended"
exit "$code"

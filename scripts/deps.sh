#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# deps.sh installs what the tests can use and a machine may lack, on Debian and
# its relatives, as root. Nothing of it is required: without a package `make
# test` leaves something out and says so.
#
#   gcc, libc6-dev                                  the race detector
#   iproute2                                        tests that run the commands a plan is printed as
#   curl, python3                                   docs/two-nodes.md, as its readers type it
#   qemu-system-x86, seabios, kmod, cpio, xz-utils  the virtual machine of test/vm
set -eu

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "deps.sh: not root on a machine with apt-get; nothing installed" >&2
	exit 0
fi
export DEBIAN_FRONTEND=noninteractive
packages="gcc libc6-dev iproute2 curl python3 kmod cpio xz-utils"
[ "$(uname -m)" != x86_64 ] || packages="$packages qemu-system-x86 seabios"

lacking=
for p in $packages; do
	dpkg-query -W -f '${Status}\n' "$p" 2>/dev/null | grep -q 'ok installed' || lacking="$lacking $p"
done
apt-get update -qq || echo "deps.sh: apt-get update failed; going on with what is known" >&2
if [ -z "$lacking" ]; then
	echo "deps.sh: everything is there"
	exit 0
fi
echo "deps.sh: installing$lacking"
# shellcheck disable=SC2086 # one word per package
apt-get install -qq -y --no-install-recommends $lacking </dev/null >/dev/null ||
	for p in $lacking; do # one that cannot be had must not keep the others away
		apt-get install -qq -y --no-install-recommends "$p" </dev/null >/dev/null ||
			echo "deps.sh: $p cannot be installed; make test says what it leaves out" >&2
	done

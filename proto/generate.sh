#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Regenerates the Go code of every .proto file below proto/nsm. Needs protoc;
# the Go plug-ins are built from the versions in go.mod. The generated code is
# committed, so that building nsm needs none of this.
set -eu
cd "$(dirname "$0")/.."

command -v protoc >/dev/null || {
	echo "protoc is missing: apt-get install protobuf-compiler" >&2
	exit 1
}
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
go build -o "$plugins/" \
	google.golang.org/protobuf/cmd/protoc-gen-go \
	google.golang.org/grpc/cmd/protoc-gen-go-grpc
PATH=$plugins:$PATH
go run ./proto/wellknown >"$plugins/wellknown.pb"

module=github.com/openvwire/nsm
find proto/nsm -name '*.proto' | sort | while read -r file; do
	protoc -I proto --descriptor_set_in="$plugins/wellknown.pb" --go_out=. --go_opt=module=$module \
		--go-grpc_out=. --go-grpc_opt=module=$module "${file#proto/}"
done

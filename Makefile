# SPDX-License-Identifier: Apache-2.0
#
# Go, git and make are all this needs. CI calls only what stands here.

FUZZTIME ?= 1m
SOAK ?= 10m
WIRES ?= 1000
HOLD ?= 5m

.PHONY: help build demo test unit bench scale profile benchmarks heal-report soak fuzz lint interop vm-test proto clean
.DEFAULT_GOAL := help

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/nsm, one static binary
	CGO_ENABLED=0 go build -trimpath -buildvcs=auto -o bin/nsm ./cmd/nsm

demo: build ## a two-node mesh at work, in less than a minute; cleans up after itself
	bin/nsm demo

test: ## every test; says what it leaves out and why
	@test/all.sh

unit: ## go test of every package, nothing else
	@test/all.sh build unit

lint: ## gofmt, go vet, staticcheck
	@test/all.sh build lint

interop: ## our parts and the reference's, together and side by side
	@test/all.sh build interop

vm-test: ## the kernel's WireGuard, in a virtual machine
	@test/all.sh vm

bench: build ## measure, print ratios and write them to docs/performance.md; SHORT=1 only shows that it works
	go run ./test/bench $(if $(SHORT),-short,-doc docs/performance.md) $(BENCHFLAGS)
	cd test/bench/control && go run . $(if $(SHORT),-short,-doc ../../../docs/performance.md) $(CONTROLFLAGS)

profile: build ## record where daemons spend time and memory under load, into DIR (.cache/profiles); SHORT=1 only shows that it works
	go run ./test/bench -profile $(or $(DIR),.cache/profiles) $(if $(SHORT),-short) $(BENCHFLAGS)

benchmarks: ## compare Go benchmarks with test/benchmarks.txt; UPDATE=1 writes that anew
	@test/benchmarks.sh $(if $(UPDATE),update)

scale: build ## WIRES (1000) real wires held for HOLD (5m), 10,000 with a kernel in memory, a registry of 100,000; writes docs/performance.md
	go run ./test/heal -hold $(HOLD) -wires $(WIRES) -doc docs/performance.md $(SCALEFLAGS)
	go test ./test/sim -count=1 -timeout 30m -run TestThousands -thousands 10000 -doc $(CURDIR)/docs/performance.md
	go run ./test/bench -rows registry -doc docs/performance.md

heal-report: build ## make everything fail, measure how long wires are interrupted and write it to docs/heal.md
	go run ./test/heal -doc docs/heal.md $(HEALFLAGS)

soak: build ## 50 wires under random faults for SOAK (10m), then look for what is wrong or left; SEED=N for the same ones again
	go run ./test/heal -soak $(SOAK) $(if $(SEED),-seed $(SEED)) $(SOAKFLAGS)

fuzz: ## every fuzz target, FUZZTIME (1m) each
	@test/fuzz.sh $(FUZZTIME)

proto: ## regenerate proto/ (needs protoc)
	proto/generate.sh

clean: ## remove what was built or downloaded here
	rm -rf bin .cache

// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"slices"
	"strings"
	"testing"
)

// row is a rule about what packages import, their tests excepted. Patterns are
// paths below the module or whole import paths; "/..." at the end takes in what
// is below.
type row struct {
	from, except []string // the packages it speaks of
	not          []string // what they do not import
	but          []string // except this
	deep         bool     // nor does anything they import
	why          string
}

var (
	values    = []string{"sdk/flow", "sdk/ipam", "sdk/match", "sdk/mechanism", "sdk/nserr", "sdk/nsurl", "sdk/path", "sdk/token"}
	machinery = []string{"sdk/conn", "sdk/gate", "sdk/hop", "sdk/identity/...", "sdk/peer", "sdk/profile", "sdk/query", "sdk/registration", "sdk/regpath", "sdk/rpc", "sdk/watch"}
	libraries = []string{"sdk/client", "sdk/endpoint"}
	pure      = []string{"sdk/flow", "sdk/path", "sdk/match", "sdk/mechanism", "sdk/ipam", "sdk/nsurl", "forwarder/plan", "nsmgr/route"}
	parts     = []string{"nsmgr/...", "registry/...", "forwarder/..."}
)

func imports() []row {
	return []row{
		{from: []string{"proto/..."}, not: []string{"sdk/...", "internal/...", "nsmgr/...", "registry/...", "forwarder/...", "cmd/..."}, deep: true,
			why: "what is on the wire depends on nobody who speaks it"},
		{from: []string{"sdk/..."}, not: append([]string{"cmd/..."}, parts...), deep: true,
			why: "clients and endpoints are written against sdk alone"},
		{from: []string{"nsmgr/..."}, not: []string{"registry/...", "forwarder/...", "cmd/..."}, deep: true,
			why: "manager, registry and forwarder meet on the wire, so that each can be replaced"},
		{from: []string{"registry/..."}, not: []string{"nsmgr/...", "forwarder/...", "cmd/..."}, deep: true,
			why: "manager, registry and forwarder meet on the wire, so that each can be replaced"},
		{from: []string{"forwarder/..."}, not: []string{"nsmgr/...", "registry/...", "cmd/..."}, deep: true,
			why: "manager, registry and forwarder meet on the wire, so that each can be replaced"},
		{from: []string{"..."}, except: []string{"test/..."}, not: []string{"test/..."},
			why: "the product does not need its tests"},

		{from: values, not: slices.Concat(machinery, libraries, []string{"internal/..."}), deep: true,
			why: "inside sdk: values ◀ machinery ◀ libraries"},
		{from: machinery, not: libraries, deep: true,
			why: "inside sdk: values ◀ machinery ◀ libraries"},
		{from: []string{"internal/..."}, except: []string{"internal/lab/..."}, not: append([]string{"sdk/...", "proto/...", "cmd/..."}, parts...), but: []string{"sdk/nserr"},
			why: "internal is plumbing without any idea of a mesh in it"},

		{from: pure, not: []string{"context"},
			why: "pure code waits for nothing"},
		{from: pure, not: []string{"google.golang.org/grpc", "google.golang.org/grpc/status", "google.golang.org/protobuf/...", "github.com/networkservicemesh/api/..."}, deep: true,
			why: "messages stop at the edge; pure code has values of its own"},
		{from: []string{"sdk/nserr"}, not: []string{"google.golang.org/...", "github.com/..."}, but: []string{"google.golang.org/grpc/codes"},
			why: "everybody imports nserr, so it imports next to nothing"},

		{from: []string{"..."}, except: []string{"forwarder/kernel", "forwarder/netns", "forwarder/wireguard", "internal/lab/...", "internal/nstest", "test/..."},
			not: []string{"github.com/vishvananda/netlink/...", "github.com/vishvananda/netns", "github.com/mdlayher/...", "github.com/google/nftables/...", "golang.zx2c4.com/wireguard/wgctrl/..."},
			why: "one place knows the kernel"},
		{from: slices.Concat(pure, []string{"sdk/...", "nsmgr/...", "registry/..."}), not: []string{"github.com/vishvananda/...", "github.com/mdlayher/...", "golang.zx2c4.com/..."}, deep: true,
			why: "clients, endpoints, managers and registries work without any privilege over the kernel"},
		{from: []string{"..."}, except: []string{"forwarder/wireguard/holder", "forwarder/wireguard/mux", "test/..."}, not: []string{"golang.zx2c4.com/wireguard/device", "golang.zx2c4.com/wireguard/conn", "golang.zx2c4.com/wireguard/tun"},
			why: "userspace WireGuard runs in the holder, a process that outlives the forwarder"},

		{from: []string{"..."}, except: []string{"internal/lab/blackhole", "test/..."}, not: []string{"github.com/google/nftables/..."}, deep: true,
			why: "only tests drop packets"},

		{from: []string{"..."}, not: []string{"k8s.io/...", "sigs.k8s.io/..."}, but: []string{"sigs.k8s.io/yaml/..."}, deep: true,
			why: "Kubernetes is one user, not a requirement. sigs.k8s.io/yaml reads YAML, nothing else"},
		{from: []string{"..."}, not: []string{"github.com/networkservicemesh/sdk/..."}, deep: true,
			why: "the reference is a peer: tests that need it live in the module test/interop"},
		{from: []string{"..."}, except: []string{"cmd/..."}, not: []string{"github.com/spf13/cobra"},
			why: "every part is a library; only cmd/nsm has a command line"},
		{from: []string{"..."}, except: []string{"internal/nstest", "internal/lab/...", "registry/storetest", "test/..."}, not: []string{"testing", "go.uber.org/goleak", "pgregory.net/rapid"}, deep: true,
			why: "what ships does not carry the test framework"},
		{from: []string{"..."}, not: []string{"log", "io/ioutil", "unsafe", "github.com/pkg/errors", "golang.org/x/exp/..."}, except: []string{"forwarder/kernel", "proto/..."},
			why: "log/slog logs, errors and fmt wrap. forwarder/kernel writes one netlink message itself"},
	}
}

func TestImports(t *testing.T) {
	tr := loaded(t)
	for _, r := range imports() {
		for _, pattern := range slices.Concat(r.from, r.except) {
			if pattern != "..." && !slices.ContainsFunc(tr.packages, func(p *listed) bool { return matches(pattern, p.rel()) }) {
				t.Errorf("%q in a rule (%s) names no package", pattern, r.why)
			}
		}
		for _, p := range tr.packages {
			if !anyMatches(r.from, p.rel()) || anyMatches(r.except, p.rel()) {
				continue
			}
			direct := p.Imports
			if r.deep {
				direct = p.Deps
			}
			for _, d := range direct {
				if r.deep && tr.all[d].Standard && !slices.Contains(r.not, d) {
					continue
				}
				if d := rel(d); anyMatches(r.not, d) && !anyMatches(r.but, d) {
					t.Errorf("%s imports %s%s: %s", p.rel(), d, through(tr, p, d, r.deep), r.why)
				}
			}
		}
	}
}

// through names the import by which p comes to depend on d.
func through(tr *tree, p *listed, d string, deep bool) string {
	if !deep || slices.Contains(p.Imports, d) || slices.Contains(p.Imports, module+"/"+d) {
		return ""
	}
	for _, i := range p.Imports {
		if dep := tr.all[i]; dep != nil && (slices.Contains(dep.Deps, d) || slices.Contains(dep.Deps, module+"/"+d)) {
			return " by " + rel(i)
		}
	}
	return ""
}

func anyMatches(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return matches(pattern, path) })
}

// matches reports whether a pattern takes in a path.
func matches(pattern, path string) bool {
	if below, ok := strings.CutSuffix(pattern, "..."); ok {
		return strings.HasPrefix(path+"/", below)
	}
	return pattern == path
}

// TestPackagesAreKnown keeps the rules complete: every package of sdk is in one
// of the layers above.
func TestPackagesAreKnown(t *testing.T) {
	for _, p := range loaded(t).packages {
		if !strings.HasPrefix(p.rel(), "sdk/") {
			continue
		}
		n := 0
		for _, layer := range [][]string{values, machinery, libraries} {
			if anyMatches(layer, p.rel()) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s is in %d layers of sdk, want 1: values, machinery or libraries in imports_test.go", p.rel(), n)
		}
	}
}

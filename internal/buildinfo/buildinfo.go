// SPDX-License-Identifier: Apache-2.0

// Package buildinfo tells which build is running, from what the Go toolchain
// has recorded in the binary: no link-time variables, nothing to forget.
package buildinfo

import (
	"runtime"
	"runtime/debug"
)

// Info is one build.
type Info struct {
	Version  string // of the module: a tag, a pseudo-version, or "(devel)"
	Revision string // commit; empty if it was not built from a checkout
	Modified bool   // the checkout had changes
	Go       string // "go1.26.8"
	Platform string // "linux/amd64"
}

// Read returns the running build.
func Read() Info {
	info := Info{Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return info
	}
	if v := build.Main.Version; v != "" {
		info.Version = v
	}
	for _, s := range build.Settings {
		switch s.Key {
		case "vcs.revision":
			info.Revision = s.Value
		case "vcs.modified":
			info.Modified = s.Value == "true"
		}
	}
	return info
}

// String returns the build in a few words: "v0.1.0 (9ac672ca128d, modified)".
func (i Info) String() string {
	if i.Revision == "" {
		return i.Version
	}
	s := i.Version + " (" + i.Revision[:min(12, len(i.Revision))]
	if i.Modified {
		s += ", modified"
	}
	return s + ")"
}

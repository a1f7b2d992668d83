// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"
)

// Endpoints of one service on one host have names of their own if their workloads
// differ, and the same again after a restart.
func TestDefaultName(t *testing.T) {
	var spaces [2]string // any two inodes
	for i := range spaces {
		spaces[i] = filepath.Join(t.TempDir(), "netns")
		if err := os.WriteFile(spaces[i], nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	name := func(space string, command ...string) string {
		t.Helper()
		var netns *os.File
		if space != "" {
			var err error
			if netns, err = os.Open(space); err != nil {
				t.Fatal(err)
			}
			defer netns.Close()
		}
		got, err := defaultName("db", "host", netns, command)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	workloads := map[string]func() string{
		"this process":    func() string { return name("") },
		"one namespace":   func() string { return name(spaces[0]) },
		"another":         func() string { return name(spaces[1]) },
		"a command":       func() string { return name("", "postgres", "-p", "1") },
		"another command": func() string { return name("", "postgres", "-p 1") },
		"a command there": func() string { return name(spaces[0], "postgres", "-p", "1") },
	}
	has := make(map[string]string)
	for workload, name := range workloads {
		first, again := name(), name()
		if other, taken := has[first]; taken {
			t.Errorf("%s and %s are both called %s", workload, other, first)
		}
		if has[first] = workload; again != first {
			t.Errorf("%s has changed its name", workload)
		}
	}
	if name("") != "db-host" {
		t.Errorf("this process's endpoint is called %s", name(""))
	}
}

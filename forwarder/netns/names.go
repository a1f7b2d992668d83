// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Processes returns of each namespace that a process is in the least of their ids, by
// key. Only those are seen that this process may see.
func Processes() map[string]int {
	processes := make(map[string]int)
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Join("/proc", e.Name(), "ns/net"), &st) != nil {
			continue // it has ended, or is none of ours
		}
		key := fmt.Sprintf("%d:%d", st.Dev, st.Ino)
		if least, ok := processes[key]; !ok || pid < least {
			processes[key] = pid
		}
	}
	return processes
}

// Names returns the names that `ip netns` has for namespaces, by key. What
// cannot be read has no name.
func Names() map[string]string {
	names := make(map[string]string)
	entries, _ := os.ReadDir(RunDir)
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(RunDir, e.Name()), &st) == nil {
			names[fmt.Sprintf("%d:%d", st.Dev, st.Ino)] = e.Name()
		}
	}
	return names
}

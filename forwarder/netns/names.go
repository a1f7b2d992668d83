// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

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

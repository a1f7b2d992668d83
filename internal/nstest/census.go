// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Census counts the objects of a network namespace.
type Census struct {
	Links, Addrs, Routes, Rules, Neighbors int
}

// Count takes the census of the calling thread's namespace. Routes are those
// of all tables, the local one included; neighbours the permanent ones.
func Count() (Census, error) {
	var c Census
	for _, what := range []struct {
		request int
		count   *int
	}{
		{unix.RTM_GETLINK, &c.Links},
		{unix.RTM_GETADDR, &c.Addrs},
		{unix.RTM_GETROUTE, &c.Routes},
		{unix.RTM_GETRULE, &c.Rules},
		{unix.RTM_GETNEIGH, &c.Neighbors},
	} {
		data, err := syscall.NetlinkRIB(what.request, unix.AF_UNSPEC)
		if err != nil {
			return c, fmt.Errorf("dump %d: %w", what.request, err)
		}
		messages, err := syscall.ParseNetlinkMessage(data)
		if err != nil {
			return c, fmt.Errorf("dump %d: %w", what.request, err)
		}
		for _, m := range messages {
			// The answer to RTM_GETx is RTM_NEWx, two less (rtnetlink(7)).
			if int(m.Header.Type) == what.request-2 && !(what.request == unix.RTM_GETNEIGH && !isPermanent(m.Data)) {
				*what.count++
			}
		}
	}
	return c, nil
}

// isPermanent reads ndm_state of a struct ndmsg.
func isPermanent(ndmsg []byte) bool {
	return len(ndmsg) >= unix.SizeofNdMsg && ndmsg[8]&unix.NUD_PERMANENT != 0
}

// Descriptors returns what this process's open descriptors refer to, sorted,
// without those that the Go runtime opens for itself.
func Descriptors() []string {
	var open []string
	entries, _ := filepath.Glob("/proc/self/fd/*")
	for _, path := range entries {
		target, err := os.Readlink(path)
		if err != nil { // the one that Glob read the directory by
			continue
		}
		if target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue
		}
		open = append(open, target)
	}
	slices.Sort(open)
	return open
}

// inventory is all that a test binary could leave behind.
type inventory struct {
	census      Census
	descriptors []string
	names       []string // of namespaces
	threads     []string // namespaces that threads are in
}

func takeInventory() (inventory, error) {
	census, err := Count()
	if err != nil {
		return inventory{}, err
	}
	inv := inventory{census: census, descriptors: Descriptors()}
	inv.names, _ = filepath.Glob("/run/netns/*")
	threads, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, path := range threads {
		if ns, err := os.Readlink(path); err == nil {
			inv.threads = append(inv.threads, ns)
		}
	}
	slices.Sort(inv.threads)
	inv.threads = slices.Compact(inv.threads)
	return inv, nil
}

// compare returns an error that lists what after has and before had not.
func (before inventory) compare(after inventory) error {
	var errs []error
	if before.census != after.census {
		errs = append(errs, fmt.Errorf("network objects left: %+v before, %+v after", before.census, after.census))
	}
	for what, lists := range map[string][2][]string{
		"descriptors":                 {before.descriptors, after.descriptors},
		"named namespaces":            {before.names, after.names},
		"threads in other namespaces": {before.threads, after.threads},
	} {
		if left := surplus(lists[0], lists[1]); len(left) > 0 {
			errs = append(errs, fmt.Errorf("%s left: %s", what, strings.Join(left, ", ")))
		}
	}
	return errors.Join(errs...)
}

// surplus returns what is in after more often than in before.
func surplus(before, after []string) []string {
	had := make(map[string]int)
	for _, s := range before {
		had[s]++
	}
	var left []string
	for _, s := range after {
		if had[s]--; had[s] < 0 {
			left = append(left, s)
		}
	}
	return left
}

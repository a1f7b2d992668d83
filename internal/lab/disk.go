// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountState gives a daemon's state directory a file system of its own.
func (n *Node) mountState(part string) error {
	dir := n.state(part)
	if err := os.Mkdir(dir, 0o700); errors.Is(err, os.ErrExist) {
		return nil // of an earlier life
	} else if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", n.lab.stateSize)); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

// filler is the file that a full disk is full of.
const filler = "filler"

// FillDisk writes to the state directory of a daemon until no byte more finds
// room. The lab must have been made with a StateSize.
func (n *Node) FillDisk(part string) error {
	if n.lab.stateSize == 0 {
		return errors.New("lab: state directories are on the machine's own disk")
	}
	f, err := os.Create(filepath.Join(n.state(part), filler))
	if err != nil {
		return err
	}
	defer f.Close()
	for chunk := make([]byte, 4096); err == nil; {
		_, err = f.Write(chunk)
	}
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	return nil
}

// FreeDisk undoes FillDisk.
func (n *Node) FreeDisk(part string) error {
	return os.Remove(filepath.Join(n.state(part), filler))
}

// unmountBelow unmounts whatever is mounted in a folder.
func unmountBelow(dir string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, line := range slices.Backward(strings.Split(string(table), "\n")) { // ID PARENT DEVICE ROOT POINT …
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			if err := unix.Unmount(f[4], 0); err != nil {
				return fmt.Errorf("unmount %s: %w", f[4], err)
			}
		}
	}
	return nil
}

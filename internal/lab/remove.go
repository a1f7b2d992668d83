// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
)

// uapiDir is where wireguard-go has its sockets, for all of a machine.
const uapiDir = "/var/run/wireguard"

// Mark is the variable by which processes of a lab are known, and those that
// they start.
func Mark(name string) string { return "NSM_LAB=" + name }

// Left is what there is of a lab.
type Left struct {
	Processes  []string // "4711 nsm manager --name …"
	Namespaces []string // names
	Sockets    []string // of WireGuard devices
	Files      []string // the folder
}

// Empty reports whether there is nothing.
func (l Left) Empty() bool {
	return len(l.Processes)+len(l.Namespaces)+len(l.Sockets)+len(l.Files) == 0
}

// Find returns what there is of the lab of that name and folder.
func Find(name, dir string) Left {
	var left Left
	for _, pid := range processesOf(name) {
		left.Processes = append(left.Processes, fmt.Sprintf("%d %s", pid, commandLine(argvOf(pid))))
		left.Sockets = append(left.Sockets, wireguardSockets(pid)...)
	}
	left.Namespaces = namespacesOf(name)
	if _, err := os.Stat(dir); err == nil {
		left.Files = []string{dir}
	}
	return left
}

// Remove ends every process of a lab, whoever started it, and deletes its
// namespaces and its folder. What does not exist is not missed.
func Remove(name, dir string) error {
	if name == "" {
		return errors.New("lab: no name")
	}
	var sockets []string
	for _, pid := range processesOf(name) {
		sockets = append(sockets, wireguardSockets(pid)...)
	}
	err := endProcesses(name)
	for _, path := range sockets { // those of a process that had to be killed
		err = errors.Join(err, removeFile(path))
	}
	for _, ns := range namespacesOf(name) {
		err = errors.Join(err, netns.DeleteNamed(ns))
	}
	return errors.Join(err, unmountBelow(dir), os.RemoveAll(dir))
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// endProcesses ends processes by their id: SIGTERM, then SIGKILL, until none
// is left; a dying one may have started another meanwhile.
func endProcesses(name string) error {
	var left []int
	for _, round := range []struct {
		signal unix.Signal
		grace  time.Duration
	}{{unix.SIGTERM, stopGrace}, {unix.SIGKILL, time.Second}, {unix.SIGKILL, time.Second}} {
		if left = processesOf(name); len(left) == 0 {
			return nil
		}
		deadline := time.Now().Add(round.grace)
		for _, fd := range signalAll(name, left, round.signal) {
			awaitEnd(fd, time.Until(deadline))
			_ = unix.Close(fd)
		}
	}
	if left = processesOf(name); len(left) > 0 {
		return fmt.Errorf("processes of %s do not end: %v", name, left)
	}
	return nil
}

// signalAll signals processes that are still the ones meant, and returns a
// descriptor of each (pidfd_open(2)).
func signalAll(name string, pids []int, s unix.Signal) (fds []int) {
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it is gone
		}
		if !belongs(pid, name) { // the id had been reused
			_ = unix.Close(fd)
			continue
		}
		_ = unix.PidfdSendSignal(fd, s, nil, 0)
		_ = unix.PidfdSendSignal(fd, unix.SIGCONT, nil, 0) // it may be frozen
		fds = append(fds, fd)
	}
	return fds
}

// awaitEnd waits until the process of a pidfd has ended.
func awaitEnd(pidfd int, limit time.Duration) {
	deadline := time.Now().Add(limit)
	for {
		left := max(0, time.Until(deadline))
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if err != unix.EINTR {
			return
		}
	}
}

// processesOf returns the ids of a lab's processes, but never the caller's own.
func processesOf(name string) (pids []int) {
	entries, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range entries {
		pid, err := strconv.Atoi(filepath.Base(path))
		if err == nil && pid != os.Getpid() && belongs(pid, name) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func belongs(pid int, name string) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && bytes.Contains(append([]byte{0}, env...), []byte("\x00"+Mark(name)+"\x00"))
}

// namespacesOf returns the names of a lab's namespaces.
func namespacesOf(name string) (names []string) {
	paths, _ := filepath.Glob(filepath.Join(netns.RunDir, name+"-*"))
	for _, path := range paths {
		names = append(names, filepath.Base(path))
	}
	return names
}

// wireguardSockets returns the configuration sockets that a process listens on.
func wireguardSockets(pid int) (paths []string) {
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/unix", pid))
	if err != nil {
		return nil
	}
	inodes := make(map[string]bool) // of the process's sockets
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil {
			inodes[strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")] = true
		}
	}
	for line := range strings.Lines(string(table)) { // … Type St Inode Path
		f := strings.Fields(line)
		if len(f) == 8 && strings.HasPrefix(f[7], uapiDir+"/") && inodes[f[6]] {
			paths = append(paths, f[7])
			inodes[f[6]] = false
		}
	}
	return paths
}

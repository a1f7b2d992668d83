// SPDX-License-Identifier: Apache-2.0

// Package nstest runs tests that touch the kernel's network: in namespaces of
// their own, and failing if they leave anything behind.
//
//	func TestMain(m *testing.M) { nstest.Main(m) }
//
// The test binary then has a fresh network namespace, in which only lo exists
// and is up, and a fresh mount namespace with an empty /run: two test binaries
// never see each other's links, and nothing of them stays on the machine.
// Without root it enters a user namespace as well; where that is forbidden the
// tests are skipped, and it says so.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// marker is set in the environment of a binary that is inside already: to
// "bare" until the namespaces are furnished, then to "furnished", which
// processes started by tests inherit.
const marker = "NSM_NSTEST_INSIDE"

// Main runs the tests of a package and exits. Call it from TestMain.
func Main(m *testing.M) {
	if os.Getenv(marker) == "" {
		enter() // returns only if it cannot
	}
	if os.Getenv(marker) == "bare" {
		if err := furnish(); err != nil {
			fmt.Fprintln(os.Stderr, "nstest:", err)
			os.Exit(1)
		}
		os.Setenv(marker, "furnished")
	}
	before, err := takeInventory()
	if err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		os.Exit(1)
	}
	code := m.Run()
	if code == 0 {
		if err := checkLeaks(before); err != nil {
			fmt.Fprintln(os.Stderr, "nstest:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// RenamesUp reports whether this kernel renames links that are up, as it does since
// Linux 6.2. Where it does not, wires are interrupted when their links are replaced.
func RenamesUp() bool {
	var u unix.Utsname
	var major, minor int
	if err := unix.Uname(&u); err != nil {
		return false
	}
	_, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 2)
}

// enter starts the binary again in fresh namespaces.
func enter() {
	runtime.LockOSThread()
	env := append(os.Environ(), marker+"=bare")
	err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS)
	if err == nil {
		// exec keeps the namespaces of the calling thread.
		err = unix.Exec("/proc/self/exe", os.Args, env)
		fmt.Fprintln(os.Stderr, "nstest: exec:", err)
		os.Exit(1)
	}
	// A process with threads cannot enter a user namespace; a child can be
	// born in one.
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Args[0], c.Env, c.Stdin, c.Stdout, c.Stderr = os.Args[0], env, os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	err = c.Run()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		os.Exit(max(1, failed.ExitCode()))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "SKIPPED: these tests need root or unprivileged user namespaces: %v\n", err)
	}
	os.Exit(0)
}

// furnish makes the fresh namespaces usable.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("switch lo on: %w", err)
	}
	return nil
}

// checkLeaks compares what there is now with what there was.
func checkLeaks(before inventory) error {
	if err := goleak.Find(); err != nil {
		return err
	}
	after, err := takeInventory()
	if err != nil {
		return err
	}
	return before.compare(after)
}

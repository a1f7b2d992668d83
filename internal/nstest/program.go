// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// programVar has the path of the program that MainWith has built.
const programVar = "NSM_NSTEST_PROGRAM"

// MainWith is [Main] for tests that run a program of this module: it builds the
// package first, outside, where the network is that go may need, and with the
// race detector if the tests have it.
func MainWith(m *testing.M, pkg string) {
	if os.Getenv(programVar) == "" {
		os.Exit(buildAndRun(pkg))
	}
	Main(m)
}

// Program returns the path of what MainWith has built.
func Program() string { return os.Getenv(programVar) }

// buildAndRun builds pkg, runs this test binary again, and removes the build.
func buildAndRun(pkg string) (code int) {
	dir, err := os.MkdirTemp("", "nstest")
	if err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, path.Base(pkg))
	args := []string{"build", "-o", program}
	if Race {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, pkg)...).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "nstest: build of %s: %v\n%s", pkg, err, out)
		return 1
	}
	_ = os.Chmod(dir, 0o755)
	runtime.LockOSThread() // Pdeathsig is about the thread
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Args[0], c.Env = os.Args[0], append(os.Environ(), programVar+"="+program)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	err = c.Run()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		return max(1, failed.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		return 1
	}
	return 0
}

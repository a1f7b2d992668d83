// SPDX-License-Identifier: Apache-2.0

// Command init is the first and only program of the test machine that
// test/vm/run.sh starts: it mounts what the kernel offers, loads /modules in
// the order of /modules/order, runs /tests with the lines of /arguments as
// arguments, prints the exit code as "nsm-vm: exit N", and stops the machine.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	code, err := run()
	if err != nil {
		fmt.Println("init:", err)
		code = 1
	}
	// A line of its own, whatever the tests wrote last.
	fmt.Printf("\nnsm-vm: exit %d\n", code)
	unix.Sync()
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // qemu exits (-no-reboot)
	fmt.Println("init: reboot:", err)
}

func run() (code int, err error) {
	for _, m := range []struct{ dir, kind string }{
		{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}, {"/tmp", "tmpfs"}, {"/run", "tmpfs"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return 0, err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return 0, fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := loadModules("/modules"); err != nil {
		return 0, err
	}
	arguments, err := os.ReadFile("/arguments")
	if err != nil {
		return 0, err
	}
	tests := exec.Command("/tests", strings.FieldsFunc(string(arguments), func(r rune) bool { return r == '\n' })...)
	tests.Env = []string{"PATH=/", "HOME=/tmp", "TMPDIR=/tmp", "NSM_VM_PROGRAMS=/programs"}
	tests.Stdout, tests.Stderr = os.Stdout, os.Stderr
	var failed *exec.ExitError
	if err := tests.Run(); errors.As(err, &failed) {
		return max(failed.ExitCode(), 1), nil // a signal counts as failure
	} else if err != nil {
		return 0, err
	}
	return 0, nil
}

func loadModules(dir string) error {
	order, err := os.ReadFile(filepath.Join(dir, "order"))
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		if err := load(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	return nil
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

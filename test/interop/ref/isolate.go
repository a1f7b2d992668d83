// SPDX-License-Identifier: Apache-2.0

package ref

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	sdklog "github.com/networkservicemesh/sdk/pkg/tools/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// isolated marks the process that already has namespaces of its own.
const isolated = "NSM_INTEROP_ISOLATED"

// talkative, when set, lets the logs of both makes through: "ours" or "all".
const talkative = "NSM_INTEROP_LOG"

// LogOutput is where our own parts' logs go.
func LogOutput() io.Writer {
	if os.Getenv(talkative) == "" {
		return io.Discard
	}
	return os.Stderr
}

// Isolate makes sure that the program runs in private mount and network
// namespaces (and a user namespace, without root): it starts itself again in
// them and ends with the child's exit status. To be called first in TestMain.
//
// The reference needs it: its DNS elements rewrite /etc/resolv.conf and its
// manager creates and watches /var/lib/networkservicemesh. Userspace WireGuard
// has its sockets in /run/wireguard. Inside, the first is a copy, /var/lib and
// /run are empty, and loopback is the only network.
func Isolate() error {
	if os.Getenv(isolated) == "" {
		os.Exit(runIsolated())
	}
	Silence()
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	if err := privateCopy("/etc/resolv.conf"); err != nil {
		return err
	}
	for _, dir := range []string{"/var/lib", "/run"} {
		if err := unix.Mount("interop", dir, "tmpfs", 0, "size=16m"); err != nil {
			return fmt.Errorf("private %s: %w", dir, err)
		}
	}
	return nil
}

// Silence lets nothing of the reference's log through, unless it is asked for.
func Silence() {
	if os.Getenv(talkative) != "all" {
		sdklog.SetGlobalLogger(sdklog.Empty())
		logrus.SetOutput(io.Discard)
	}
}

func runIsolated() int {
	runtime.LockOSThread() // the death signal is sent when the starting thread ends
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Args[0] = os.Args[0]
	child.Env = append(os.Environ(), isolated+"=1")
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		child.SysProcAttr.Unshareflags = unix.CLONE_NEWNS | unix.CLONE_NEWNET
	} else {
		child.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET
		child.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		child.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	// The terminal's interrupt reaches the child too; this process only waits.
	signal.Ignore(os.Interrupt, syscall.SIGQUIT)
	err := child.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "cannot run in private namespaces: %v\n", err)
		return 1
	}
	return 0
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// privateCopy puts a copy over the file that only this mount namespace sees.
func privateCopy(path string) error {
	content, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	shadow, err := os.CreateTemp("", "i")
	if err != nil {
		return err
	}
	defer os.Remove(shadow.Name())
	defer shadow.Close()
	if _, err := shadow.Write(content); err != nil {
		return err
	}
	if err := unix.Mount(shadow.Name(), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("private %s: %w", path, err)
	}
	return nil
}

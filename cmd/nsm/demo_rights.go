// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/sdk/nserr"
)

// insideVar is set, to how it got there, in a demo that was started again with
// more rights.
const insideVar = "NSM_DEMO_INSIDE"

// getRights makes sure that the process may make network namespaces, and says
// how. If this one may not, one that may has done all the work when it returns:
// then code is its exit code, otherwise -1.
func getRights() (how string, code int, err error) {
	how = os.Getenv(insideVar)
	if how == userNamespace {
		if err := furnishUserNamespace(); err != nil {
			return "", -1, err
		}
	}
	ns, err := netns.New()
	switch {
	case err == nil:
		_ = ns.Close()
		switch {
		case how == "" && sudoUser() > 0:
			how = bySudo // typed by the user
		case how == "":
			how = "root"
		}
		return how, -1, nil
	case !errors.Is(err, nserr.NotPrivileged) || how != "":
		return "", -1, err
	}
	if os.Geteuid() != 0 {
		if c, err := sudo(false); err == nil {
			code, err = again(c)
			return "", code, err
		}
	}
	code, err = again(inUserNamespace())
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) {
		return "", -1, nserr.NotPrivileged.Errorf("no root, no sudo without a password, no user namespaces: %w", err)
	}
	return "", code, err
}

func selfPath() string {
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}

// How a demo may come to its rights.
const (
	bySudo        = "sudo"
	userNamespace = "a user namespace"
)

// sudoUser is the user who has started this process by sudo; -1 = nobody has.
func sudoUser() int {
	uid, err := strconv.Atoi(os.Getenv("SUDO_UID"))
	if err != nil {
		return -1
	}
	return uid
}

// sudo is this command line as root. It may ask for a password if there is
// somebody to answer.
func sudo(mayAsk bool) (*exec.Cmd, error) {
	args := []string{"-n"}
	if err := exec.Command("sudo", "-n", "true").Run(); err != nil {
		if !mayAsk {
			return nil, nserr.NotPrivileged.Errorf("sudo -n true: %w", err).
				WithFix("sudo %s", strings.Join(append([]string{selfPath()}, os.Args[1:]...), " "))
		}
		args = nil
	}
	args = append(args, insideVar+"="+bySudo)
	for _, key := range []string{"TMPDIR", nameVar} { // where later commands look for what is kept, and which it is
		if value := os.Getenv(key); value != "" {
			args = append(args, key+"="+value)
		}
	}
	return exec.Command("sudo", append(append(args, selfPath()), os.Args[1:]...)...), nil
}

// inUserNamespace is this program as root of a user namespace.
func inUserNamespace() *exec.Cmd {
	c := exec.Command(selfPath(), os.Args[1:]...)
	c.Env = append(os.Environ(), insideVar+"="+userNamespace)
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	return c
}

// again runs the demo in another process, to which signals are left.
func again(c *exec.Cmd) (code int, err error) {
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := c.Start(); err != nil {
		return -1, fmt.Errorf("start %s: %w", c.Path, err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range signals {
			if s != syscall.SIGTERM {
				continue // a terminal sends the child its own
			}
			if errors.Is(c.Process.Signal(s), unix.EPERM) { // sudo hands it on
				_ = exec.Command("sudo", "-n", "kill", "-TERM", strconv.Itoa(c.Process.Pid)).Run()
			}
		}
	}()
	_ = c.Wait()
	signal.Stop(signals)
	close(signals)
	<-done
	return c.ProcessState.ExitCode(), nil
}

// furnishUserNamespace gives the demo a /run of its own: only there may it name
// namespaces.
func furnishUserNamespace() error {
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil {
		err = unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755")
	}
	if err != nil { // AppArmor, for example, lets one in without rights
		return nserr.NotPrivileged.Errorf("no root, no sudo without a password, a user namespace that may not mount: %w", err)
	}
	return nil
}

// wireGuardPossible says why userspace WireGuard cannot work here; empty = it can.
func wireGuardPossible() (whyNot string) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return err.Error()
	}
	_ = f.Close()
	return ""
}

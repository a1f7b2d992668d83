// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/nstest"
)

// What a daemon needs for itself it does not take from another one.
func TestTaken(t *testing.T) {
	l := newMesh(t, lab.Config{Nodes: []string{"a"}})
	a := l.Node("a")
	tcp := func(port int) string { return fmt.Sprintf("tcp://%s:%d", a.Addr, port) }
	other := "unix://" + filepath.Join(t.TempDir(), "s")
	for name, tt := range map[string]struct {
		part string
		args []string
		want string
	}{
		"manager, socket":      {"manager", []string{"--name", "m", "--listen-on", a.Manager()}, "NSM-4008"},
		"manager, port":        {"manager", []string{"--name", "m", "--listen-on", other + "," + tcp(5001)}, "NSM-4008"},
		"registry, port":       {"registry", []string{"--state-dir", t.TempDir()}, "NSM-4008"},
		"registry, directory":  {"registry", []string{"--listen-on", tcp(6002)}, "NSM-4007"},
		"forwarder, directory": {"forwarder", []string{"--name", "f"}, "NSM-4007"},
		"authority, socket":    {"authority", []string{"--state-dir", t.TempDir(), "--authority-listen-on", tcp(6007)}, "NSM-4008"},
		"authority, port":      {"authority", []string{"--state-dir", t.TempDir(), "--socket", other}, "NSM-4008"},
		"up, everything":       {"up", nil, "NSM-4008"},
	} {
		t.Run(name, func(t *testing.T) {
			unchanged(t, l)
			_, err := a.Start(t.Context(), tt.part, tt.args...)
			if exitCode(err) != 1 || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want exit code 1 and %s", err, tt.want)
			}
		})
	}
	// Those who were there first go on.
	server, client := workload(t, a, "db"), workload(t, a, "web")
	serve(t, server, "db", "--cidr", "10.60.0.0/24")
	w := connect(t, client, "kernel://db/nsm-1")
	if err := transfer(client, server, w.far[0]); err != nil {
		t.Error(err)
	}
}

// Scripts can tell failures apart by exit codes, people by reasons; none of them
// leaves anything behind.
func TestExitCodes(t *testing.T) {
	l := newMesh(t, lab.Config{Nodes: []string{"a"}})
	a := l.Node("a")
	serve(t, workload(t, a, "db"), "db", "--cidr", "10.60.0.0/31")
	taken := workload(t, a, "web")
	connect(t, taken, "kernel://db/nsm-1")
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"connect", "kernel://db/nsm-1", "--netns", taken.Name}, 1, "NSM-"},
		{[]string{"connect", "kernel://nothing", "--", "true"}, 3, "NSM-3001"},
		{[]string{"connect", "kernel://db", "--", "true"}, 1, "NSM-3010"},
		{[]string{"connect", "kernel://db/a-name-much-too-long", "--", "true"}, 2, "NSM-1006"},
		{[]string{"connect", "vpp://db", "--", "true"}, 2, "NSM-1010"},
		{[]string{"connect", "db", "--", "true"}, 2, "NSM-1010"},
		{[]string{"connect", "--", "true"}, 2, "NSM-1010"},
		{[]string{"connect", "kernel://db", "--netns", "nowhere"}, 1, "NSM-1008"},
		{[]string{"connect", "kernel://db", "--netns", "/etc/passwd"}, 1, "NSM-1008"},
		{[]string{"connect", "kernel://db", "--connect-to", "unix:///nowhere", "--", "true"}, 5, "NSM-4003"},
		{[]string{"serve", "db", "--name", "x", "--cidr", "10.0.0.0/33", "--", "true"}, 2, "NSM-1016"},
		{[]string{"describe", "wire", "nothing"}, 3, "NSM-3009"},
		{[]string{"get", "services", "nothing"}, 3, "NSM-3001"},
		{[]string{"delete", "service", "nothing"}, 3, "NSM-3001"},
		{[]string{"get", "everything"}, 2, "unknown command"},
		{[]string{"apply"}, 2, "NSM-1016"},
		{[]string{"token", "create", "--socket", "unix:///nowhere"}, 5, "NSM-"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			unchanged(t, l)
			_, err := a.Nsm(t.Context(), tt.args...)
			if exitCode(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want exit code %d and %s", err, tt.code, tt.want)
			}
		})
	}
}

// A daemon started by a user who may not says so, whatever it stumbles over first.
func TestDaemonsWithoutPrivileges(t *testing.T) {
	mine := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(mine), 0o755), os.Chown(mine, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	const locked = "/nsm-test" // in a directory of root
	for _, tt := range []struct {
		fix  string
		args []string
	}{
		{"run as root, or name a directory of your own with --run-dir", []string{"up", "--run-dir", locked, "--state-dir", mine}},
		{"run as root, or name a directory of your own with --state-dir", []string{"up", "--run-dir", mine, "--state-dir", locked}},
		{"run as root, or choose another --run-dir", []string{"up", "--run-dir", "/", "--state-dir", mine}},
		{"run as root, or choose another --manager-listen-on", []string{"up", "--run-dir", mine, "--state-dir", mine, "--manager-listen-on", "tcp://127.0.0.1:80"}},
		{"run as root, or name a directory of your own with --state-dir", []string{"forwarder", "--state-dir", locked}},
		{"run as root, or listen where this user may", []string{"authority", "--state-dir", mine + "/authority", "--socket", "unix:///identity.sock", "--authority-listen-on", "tcp://127.0.0.1:0"}},
	} {
		t.Run(strings.Join(tt.args[:3], " "), func(t *testing.T) {
			c := exec.Command(nstest.Program(), tt.args...)
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Cloneflags: syscall.CLONE_NEWNET}
			c.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
			out, err := c.CombinedOutput()
			if c.ProcessState.ExitCode() != 4 || !strings.Contains(string(out), "NSM-4010") || !strings.Contains(string(out), "(fix: "+tt.fix+")") {
				t.Errorf("%v:\n%s\nwant NSM-4010, exit code 4 and %q", err, out, tt.fix)
			}
		})
	}
}

// Who finds a port taken is told by which flag there is another.
func TestPortsTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, flag := range []string{"--manager-listen-on", "--registry-listen-on", "--authority-listen-on"} {
		dir := t.TempDir()
		args := []string{"up", "--run-dir", dir, "--state-dir", dir + "/state", "--excluded-prefixes-file", ""}
		for _, f := range []string{"--manager-listen-on", "--registry-listen-on", "--authority-listen-on"} {
			url := "tcp://127.0.0.1:0"
			if f == flag {
				url = "tcp://" + taken.Addr().String()
			}
			args = append(args, f, url)
		}
		c := exec.Command(nstest.Program(), args...)
		out, err := c.CombinedOutput()
		if c.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "NSM-4008") || !strings.Contains(string(out), "choose another "+flag+")") {
			t.Errorf("%s: %v:\n%s", flag, err, out)
		}
	}
}

// Whoever is told the wrong address hears what is wrong with it, and a forwarder with a
// tunnel address that is not its node's does not start.
func TestWrongAddresses(t *testing.T) {
	l := newMesh(t, lab.Config{Nodes: []string{"a"}})
	a := l.Node("a")
	for _, url := range []string{fmt.Sprintf("tcp://%s:5002", a.Addr), a.Identity()} {
		_, err := a.Nsm(t.Context(), "get", "services", "--connect-to", url)
		if exitCode(err) != 5 || !strings.Contains(err.Error(), "NSM-4003") || !strings.Contains(err.Error(), url) {
			t.Errorf("%v, want exit code 5 and NSM-4003 about %s", err, url)
		}
	}
	_, err := a.Start(t.Context(), "forwarder", "--name", "other", "--state-dir", filepath.Join(t.TempDir(), "s"), "--tunnel-ip", "192.0.2.77")
	if exitCode(err) != 2 || !strings.Contains(err.Error(), "no link of this node has the tunnel address 192.0.2.77") {
		t.Errorf("%v, want exit code 2 and what is wrong with the address", err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openvwire/nsm/internal/lab"
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

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
)

func wire(id, right string) *adminv1.WireSummary {
	return &adminv1.WireSummary{
		Id: id, Service: "db", Payload: "IP", State: adminv1.WireState_WIRE_STATE_UP,
		Client:      &adminv1.WireSide{Name: "web-1", Node: "a", Mechanism: "KERNEL", Interface: "nsm-1", Addresses: []string{"10.0.0.1/32", "fd00::1/128"}},
		Endpoint:    &adminv1.WireSide{Name: "db-1", Node: "b", Mechanism: right, Addresses: []string{"10.0.0.0/32"}},
		Established: ago(185 * time.Second), Expires: in(9 * time.Minute), Labels: map[string]string{"b": "2", "a": "1"},
	}
}

func mesh() *canned {
	return &canned{
		services: []*adminv1.Service{
			{Name: "web", Payload: "ETHERNET", Endpoints: 2, PathIds: []string{"spiffe://nsm.local/ops", "spiffe://nsm.local/ops", "spiffe://nsm.local/b"}},
			{Name: "db", Payload: "IP", Matches: []*adminv1.Match{{
				SourceSelector: map[string]string{"app": "web", "on": "1"},
				Routes:         []*adminv1.Destination{{DestinationSelector: map[string]string{"role": "replica"}, Weight: 3}},
				Fallthrough:    true,
				Metadata:       &adminv1.Metadata{Labels: map[string]string{"p2p": "true"}},
			}}},
		},
		endpoints: []*adminv1.Endpoint{{
			Name: "db-1", Node: "b", Url: "tcp://10.1.0.2:5001", Registered: ago(50 * time.Hour), Expires: ago(time.Second),
			Services: []*adminv1.EndpointService{{Name: "db", Labels: map[string]string{"role": "replica"}}, {Name: "sql"}},
		}},
		wires: []*adminv1.WireSummary{wire("3f2a", "VXLAN"), wire("1b00", "KERNEL")},
		nodes: []*adminv1.Node{{
			Name: "a", Url: "tcp://10.1.0.1:5001", Wires: 2, Started: ago(4*time.Hour + 10*time.Minute),
			Forwarders: []*adminv1.Forwarder{{Name: "fwd-a"}}, Version: &adminv1.BuildVersion{Version: "v0.1.0"},
		}, {Name: "b", Url: "tcp://10.1.0.2:5001"}},
	}
}

func TestGetTables(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"get services", `
NAME   PAYLOAD    MATCHES   ENDPOINTS
db     IP         1         0
web    ETHERNET   0         2
`},
		{"get service db", `
NAME   PAYLOAD   MATCHES   ENDPOINTS
db     IP        1         0
`},
		{"get services -o wide", `
NAME   PAYLOAD    MATCHES   ENDPOINTS   OWNERS
db     IP         1         0           -
web    ETHERNET   0         2           spiffe://nsm.local/ops,spiffe://nsm.local/b
`},
		{"get endpoints", `
NAME   SERVICES   NODE   AGE    EXPIRES
db-1   db,sql     b      2d2h   expired
`},
		{"get wires", `
ID     SERVICE   CLIENT   ENDPOINT   MECHANISM      STATE   AGE    EXPIRES
1b00   db        web-1    db-1       KERNEL         UP      3m5s   9m
3f2a   db        web-1    db-1       KERNEL/VXLAN   UP      3m5s   9m
`},
		{"get wires -o wide", `
ID     SERVICE   CLIENT   ENDPOINT   MECHANISM      STATE   AGE    EXPIRES   PAYLOAD   CLIENT-IF   CLIENT-IP                 ENDPOINT-IF   ENDPOINT-IP   ENDPOINT-NODE   ATTEMPTS   LABELS
1b00   db        web-1    db-1       KERNEL         UP      3m5s   9m        IP        nsm-1       10.0.0.1/32,fd00::1/128   -             10.0.0.0/32   b               -          a=1,b=2
3f2a   db        web-1    db-1       KERNEL/VXLAN   UP      3m5s   9m        IP        nsm-1       10.0.0.1/32,fd00::1/128   -             10.0.0.0/32   b               -          a=1,b=2
`},
		{"get nodes", `
NAME   MANAGER               FORWARDERS   WIRES   UPTIME   VERSION
a      tcp://10.1.0.1:5001   fwd-a        2       4h10m    v0.1.0
b      tcp://10.1.0.2:5001   -            -       -        -
`},
		{"get wires -w", `
EVENT      ID     SERVICE   CLIENT   ENDPOINT   MECHANISM      STATE   AGE    EXPIRES
ADDED      3f2a   db        web-1    db-1       KERNEL/VXLAN   UP      3m5s   9m
ADDED      1b00   db        web-1    db-1       KERNEL         UP      3m5s   9m
DELETED    1b00   db        web-1    db-1       KERNEL         UP      3m5s   9m
ADDED      77     db        web-1    db-1       KERNEL         UP      3m5s   9m
`},
	} {
		t.Run(tt.args, func(t *testing.T) {
			m := mesh()
			m.later = []*adminv1.WireEvent{
				{Type: adminv1.EventType_EVENT_TYPE_DELETED, Wire: wire("1b00", "KERNEL")},
				{Type: adminv1.EventType_EVENT_TYPE_ADDED, Wire: wire("77", "KERNEL")},
			}
			out, stderr, code := runAgainst(t, m, "", strings.Fields(tt.args)...)
			if want := strings.TrimPrefix(tt.want, "\n"); out != want {
				t.Errorf("printed\n%swant\n%s", out, want)
			}
			watch := strings.HasSuffix(tt.args, "-w") // ends only because the server ends it
			if (code != exitOK) != watch || watch != strings.Contains(stderr, nserr.WatchLost.Code) {
				t.Errorf("exit code %d, %s", code, stderr)
			}
		})
	}
}

func TestGetAsData(t *testing.T) {
	out, _, _ := runAgainst(t, mesh(), "", "get", "services", "-o", "json")
	var list struct{ Items []struct{ Name string } }
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Items) != 2 || list.Items[0].Name != "db" {
		t.Errorf("%v in %s", err, out)
	}
	out, _, _ = runAgainst(t, mesh(), "", "get", "service", "web", "-o", "json")
	if want := `{
  "name": "web",
  "payload": "ETHERNET",
  "pathIds": [
    "spiffe://nsm.local/ops",
    "spiffe://nsm.local/ops",
    "spiffe://nsm.local/b"
  ],
  "endpoints": 2
}
`; out != want {
		t.Errorf("printed %s, want %s", out, want)
	}
	out, _, _ = runAgainst(t, mesh(), "", "get", "nodes", "-o", "yaml")
	if !strings.HasPrefix(out, "items:\n  - name: a\n    url: tcp://10.1.0.1:5001\n    forwarders:\n      - name: fwd-a\n") {
		t.Errorf("printed %s", out)
	}
	out, _, _ = runAgainst(t, &canned{}, "", "get", "nodes", "-o", "json")
	if out != "{\n  \"items\": []\n}\n" {
		t.Errorf("printed %s", out)
	}
	m := mesh()
	m.wires = m.wires[:1]
	out, _, _ = runAgainst(t, m, "", "get", "wires", "-w", "-o", "json")
	events := strings.Split(strings.TrimSpace(out), "\n")
	if len(events) != 2 || !strings.HasPrefix(events[0], `{"type":"EVENT_TYPE_ADDED","wire":{"id":"3f2a"`) || events[1] != `{"type":"EVENT_TYPE_SYNCED"}` {
		t.Errorf("printed %s", out)
	}
}

func TestGetNothing(t *testing.T) {
	if out, stderr, code := runAgainst(t, &canned{}, "", "get", "wires"); out != "" || stderr != "no wires\n" || code != exitOK {
		t.Errorf("printed %q and %q, exit code %d", out, stderr, code)
	}
	for _, kind := range []string{"service", "endpoint", "wire", "node"} {
		_, stderr, code := runAgainst(t, &canned{}, "", "get", kind, "missing")
		if code != exitNotFound || !strings.Contains(stderr, kind+` "missing" is not found (fix: list `+kind+"s with 'nsm get "+kind+"s'") {
			t.Errorf("get %s: exit code %d, %s", kind, code, stderr)
		}
	}
}

func TestGetByLabels(t *testing.T) {
	m := mesh()
	if _, stderr, code := runAgainst(t, m, "", "get", "endpoints", "-l", "app=db, x="); code != exitOK || labelText(m.labels) != "app=db,x=" {
		t.Errorf("asked for %v, exit code %d, %s", m.labels, code, stderr)
	}
}

// What 'get -o yaml' prints can be applied.
func TestServicesRoundTrip(t *testing.T) {
	m := mesh()
	yaml, _, _ := runAgainst(t, m, "", "get", "services", "-o", "yaml")
	out, stderr, code := runAgainst(t, m, yaml, "apply", "-f", "-")
	if want := "networkservice/db created\nnetworkservice/web created\n"; out != want || code != exitOK {
		t.Fatalf("printed %q, want %q; %s for\n%s", out, want, stderr, yaml)
	}
	for i, want := range []*adminv1.Service{m.services[1], m.services[0]} {
		want.PathIds, want.Endpoints = nil, 0
		if !proto.Equal(m.applied[i], want) {
			t.Errorf("applied %v, want %v", m.applied[i], want)
		}
	}
}

func TestDelete(t *testing.T) {
	m := mesh()
	if out, _, code := runAgainst(t, m, "", "delete", "service", "db"); out != "networkservice/db deleted\n" || code != exitOK || len(m.deleted) != 1 {
		t.Errorf("printed %q, exit code %d, deleted %v", out, code, m.deleted)
	}
	if _, stderr, code := runAgainst(t, m, "", "delete", "service", "locked"); code != exitNotAllowed || !strings.Contains(stderr, nserr.NameOwned.Code) {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

func TestDescribeWire(t *testing.T) {
	m := mesh()
	m.detail = &adminv1.WireDescription{
		Summary: wire("3f2a", "VXLAN"),
		Hops: []*adminv1.Hop{
			{Name: "web-1", Id: "3f2a", Role: adminv1.Role_ROLE_CLIENT, SpiffeId: "spiffe://nsm.local/web", Expires: in(9 * time.Minute)},
			{Name: "mgr-a", Id: "77", Role: adminv1.Role_ROLE_MANAGER, Node: "a", Version: &adminv1.BuildVersion{Version: "v0.1.0"}},
		},
		Context: &adminv1.ConnectionContext{
			SrcAddresses: []string{"10.0.0.1/32"}, SrcRoutes: []*adminv1.Route{{Prefix: "10.9.0.0/16", NextHop: "10.0.0.0"}}, Mtu: 1446,
			Policies: []*adminv1.Policy{{From: "10.0.0.1", Proto: "tcp", DstPort: "80-90", Routes: []*adminv1.Route{{Prefix: "10.8.0.0/16"}}}},
		},
		Legs: []*adminv1.WireLeg{{From: "web-1", To: "mgr-a", Class: "LOCAL", Type: "KERNEL", Parameters: map[string]string{"name": "nsm-1"}}},
		Kernel: []*adminv1.KernelObjects{
			{Forwarder: "fwd-a", Links: []*adminv1.Link{{
				Name: "nsm-1", Kind: "vxlan", State: "up", Namespace: "4:4026532281", Index: 7, Mtu: 1446, Alias: "nsm fwd-a 77",
				Counters: &adminv1.Counters{RxPackets: 10, RxBytes: 1000}, Addresses: []string{"10.0.0.1/32"},
			}}, Plan: []string{"ip -n web link set nsm-1 up"}, Drift: []string{"ip -n web address add 10.0.0.1/32 dev nsm-1"}},
			{Forwarder: "fwd-b", Wireguard: &adminv1.WireGuard{PublicKey: "pub=", PeerPublicKey: "peer=", ListenPort: 51820, Userspace: true}},
			{Forwarder: "fwd-c", Node: "c", Error: "connection refused"},
		},
		History: []*adminv1.WireEventRecord{{Time: ago(3 * time.Second), Kind: "heal", Reason: "NSM-3004", Message: "db-2 failed"}},
	}
	out, stderr, code := runAgainst(t, m, "", "describe", "wire", "3f")
	if code != exitOK {
		t.Fatal(stderr)
	}
	for _, part := range []string{
		"Wire         3f2a\nService      db (payload IP)\nState        UP for 3m5s, expires in 9m unless refreshed\n",
		"Client       web-1 on a, nsm-1, 10.0.0.1/32, fd00::1/128\n", "Labels       a=1,b=2\nMTU          1446\n",
		"  1   manager   mgr-a   a      -         -                        77     v0.1.0\n",
		"  web-1 > mgr-a   LOCAL/KERNEL   name=nsm-1\n",
		"  client   route     10.9.0.0/16 via 10.0.0.0\n", "  client   policy    from 10.0.0.1 proto tcp dport 80-90 > 10.8.0.0/16\n",
		"  link nsm-1 (vxlan, up) in namespace 4:4026532281, which has no process and no name that the forwarder sees\n", "received 10 packets, 1000 bytes",
		"made as if by\n    ip -n web link set nsm-1 up\n  NOT as it should be; the forwarder repairs it when it compares next (--reconcile), as if by\n    ip -n web address add",
		"wireguard (userspace), port 51820, key pub=\n    peer peer= at -, last handshake never", "  as it should be\n",
		"Kernel, by forwarder fwd-c on c\n  cannot tell: connection refused\n", "  3s ago   heal   NSM-3004 db-2 failed\n",
	} {
		if !strings.Contains(out, part) {
			t.Errorf("description lacks %q:\n%s", part, out)
		}
	}
	out, _, _ = runAgainst(t, m, "", "describe", "wire", "3f", "-o", "json")
	if !json.Valid([]byte(out)) || !strings.Contains(out, `"spiffeId": "spiffe://nsm.local/web"`) {
		t.Errorf("printed %s", out)
	}
	if _, stderr, code := runAgainst(t, m, "", "describe", "wire", "zz"); code != exitNotFound || !strings.Contains(stderr, nserr.UnknownWire.Code) {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// Names are their owners' choice; a terminal gets them as text.
func TestTerminalIsSafe(t *testing.T) {
	m := mesh()
	m.wires[0].Client.Name = "web\x1b[2J\nfake"
	m.detail = &adminv1.WireDescription{Summary: m.wires[0], Kernel: []*adminv1.KernelObjects{{Forwarder: "f\x1b", Error: "\x1b]0;x\a"}}}
	for _, args := range []string{"get wires", "get wires -w", "describe wire 3f"} {
		if out, _, _ := runAgainst(t, m, "", strings.Fields(args)...); strings.ContainsAny(out, "\x1b\a") || strings.Contains(out, "\nfake") || !strings.Contains(out, "web�[2J�fake") {
			t.Errorf("%s printed %q", args, out)
		}
	}
}

func TestCompletionOfNames(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"get wires", "1b00\n3f2a\n"},
		{"get service", "db\nweb\n"},
		{"describe wire", "1b00\n3f2a\n"},
		{"delete service", "db\nweb\n"},
		{"get service db", ""},
		{"get nodes -o", "wide\njson\nyaml\n"},
	} {
		args := append(append([]string{"__complete"}, strings.Fields(tt.args)...), "")
		out, _, _ := runAgainst(t, mesh(), "", args...)
		if got, _, _ := strings.Cut(out, ":"); got != tt.want {
			t.Errorf("%s: offered %q, want %q", tt.args, got, tt.want)
		}
	}
}

func TestExitCode(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{errors.New("unknown"), exitFailed},
		{context.Canceled, exitFailed},
		{nserr.Internal.Errorf("x"), exitFailed},
		{&usageError{err: errors.New("x")}, exitUsage},
		{nserr.BadService.Errorf("x"), exitUsage},
		{fmt.Errorf("around: %w", nserr.UnknownWire.Errorf("x")), exitNotFound},
		{status.Error(codes.NotFound, "x"), exitNotFound},
		{nserr.NotAllowed.Errorf("x"), exitNotAllowed},
		{nserr.NoIdentity.Errorf("x"), exitUnavailable},
		{nserr.PeerDown.Errorf("x"), exitUnavailable},
		{status.Error(codes.DeadlineExceeded, "x"), exitUnavailable},
	} {
		if got := exitCode(tt.err); got != tt.want {
			t.Errorf("exitCode(%v) = %d, want %d", tt.err, got, tt.want)
		}
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 850*time.Millisecond + 7: "850ms", 12 * time.Second: "12s", time.Minute: "1m",
		185 * time.Second: "3m5s", 4*time.Hour + 10*time.Minute + time.Second: "4h10m", 218 * time.Hour: "9d2h",
	} {
		if got := short(d); got != want {
			t.Errorf("short(%v) = %q, want %q", d, got, want)
		}
	}
}

// A wire that is down, or carries nothing, says so where it is listed, with how often
// it was tried to heal it and why that failed, and since when that is so.
func TestAttempts(t *testing.T) {
	for _, tt := range []struct {
		state    adminv1.WireState
		code     string
		short    string
		describe []string
	}{
		{adminv1.WireState_WIRE_STATE_DOWN, "NSM-3002", " DOWN(NSM-3002) ", []string{"State        DOWN(NSM-3002) for 12s,", "Attempts     12 in vain, the last for NSM-3002: no endpoint is registered (fix: start one with"}},
		{adminv1.WireState_WIRE_STATE_DOWN, "NSM-9999", " DOWN(NSM-9999) ", []string{"Attempts     12 in vain, the last for NSM-9999\n"}},
		{adminv1.WireState_WIRE_STATE_DOWN, "", " DOWN ", []string{"State        DOWN for 12s,", "Attempts     12 in vain\n"}},
		{adminv1.WireState_WIRE_STATE_UP, "NSM-3019", " UP(no-packets) ", []string{"State        UP(no-packets) for 12s,", "12 in vain, the last for NSM-3019: no packets come back"}},
	} {
		m := mesh()
		m.wires = m.wires[:1]
		w := m.wires[0]
		w.State, w.Attempts, w.LastError, w.StateSince = tt.state, 12, tt.code, ago(12*time.Second)
		if out, _, _ := runAgainst(t, m, "", "get", "wires"); !strings.Contains(out, tt.short) {
			t.Errorf("no %q in\n%s", tt.short, out)
		}
		if out, _, _ := runAgainst(t, m, "", "get", "wires", "-o", "wide"); !strings.Contains(out, "ATTEMPTS") || !strings.Contains(out, strings.TrimSpace("12 "+tt.code)) {
			t.Errorf("printed\n%s", out)
		}
		text := describeWire(&adminv1.WireDescription{Summary: w}, nil, time.Now())
		for _, part := range tt.describe {
			if !strings.Contains(text, part) {
				t.Errorf("no %q in\n%s", part, text)
			}
		}
	}
}

// A namespace is named as people know it.
func TestNamespaceText(t *testing.T) {
	for _, tt := range []struct {
		name string
		pid  uint32
		want string
	}{
		{"web", 4711, "web (4:1, process 4711)"},
		{"web", 0, "web (4:1, no process)"},
		{"", 4711, "4:1 (of process 4711)"},
		{"", 0, "4:1, which has no process and no name that the forwarder sees"},
	} {
		if got := namespaceText(&adminv1.Link{Namespace: "4:1", NamespaceName: tt.name, NamespacePid: tt.pid}); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/identity"
	"github.com/openvwire/nsm/sdk/ipam"
)

// The library has what 'nsm serve' and 'nsm connect' are made of; tests use it
// where the commands have no flag, or where many clients are wanted.

// serveWith serves a service from the namespace with one more handler, outside
// of the one that gives addresses.
func serveWith(t *testing.T, n *lab.Node, ns *lab.NetNS, service, cidr string, m endpoint.Middleware) {
	t.Helper()
	groups, err := ipam.ParseGroups(cidr)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := ipam.New(groups)
	if err != nil {
		t.Fatal(err)
	}
	file, err := netns.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	e, err := endpoint.Serve(t.Context(), endpoint.Config{
		Name: service, Services: []endpoint.Service{{Name: service}}, Manager: n.Manager(), Source: openIdentity(t, n),
		Handler: endpoint.Chain(m, endpoint.Interface(file), endpoint.Addresses(pool, endpoint.Strict)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func openIdentity(t *testing.T, n *lab.Node) identity.Source {
	t.Helper()
	source, err := identity.Open(t.Context(), identity.Config{Address: n.Identity()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	return source
}

// distribute connects so many clients in one namespace and counts which
// endpoints they get.
func distribute(t *testing.T, n *lab.Node, ns *lab.NetNS, service string, clients int) map[string]int {
	t.Helper()
	c, file, end := openClient(t, n, ns)
	defer end()
	got := make(map[string]int)
	for range clients {
		w, err := c.Request(t.Context(), client.Request{Service: service, NetNS: file})
		if err != nil {
			t.Fatal(err)
		}
		got[w.Connection().GetNetworkServiceEndpointName()]++
	}
	return got
}

// openClient opens a client on a node, for a namespace.
func openClient(t *testing.T, n *lab.Node, ns *lab.NetNS) (c *client.Client, netNS *os.File, end func()) {
	t.Helper()
	netNS, err := netns.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	c, err = client.Open(t.Context(), client.Config{Manager: n.Manager(), Source: openIdentity(t, n)})
	if err != nil {
		netNS.Close()
		t.Fatal(err)
	}
	return c, netNS, func() {
		if err := errors.Join(c.Close(), netNS.Close()); err != nil {
			t.Error(err)
		}
	}
}

// apply creates the service db, or changes it.
func apply(t *testing.T, n *lab.Node, spec string) {
	t.Helper()
	if _, err := n.Nsm(t.Context(), "apply", "-f", manifest(t, spec)); err != nil {
		t.Fatal(err)
	}
}

// manifest is a file that says what the service db is.
func manifest(t *testing.T, spec string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "service.yaml")
	text := "apiVersion: networkservicemesh.io/v1\nkind: NetworkService\nmetadata: {name: db}\n" + spec
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// Labels of the client select endpoints by their labels.
func TestLabels(t *testing.T) {
	needTUN(t)
	l := newMesh(t, lab.Config{})
	a := l.Node("a")
	apply(t, a, `
spec:
  matches:
    - source_selector: {app: writer}
      routes: [{destination_selector: {role: primary}}]
    - source_selector: {app: local}
      routes: [{destination_selector: {nodeName: "{{.nodeName}}"}}]
    - source_selector: {app: nobody}
      routes: [{destination_selector: {role: none}}]
    - routes: [{destination_selector: {role: replica}}]
`)
	for _, e := range []struct{ name, node, role string }{
		{"primary", "b", "primary"},
		{"replica", "b", "replica"},
		{"near", "a", "near"},
	} {
		serve(t, workload(t, l.Node(e.node), e.name), "db", "--name", e.name, "--label", "role="+e.role, "--cidr", "10.60.0.0/24")
	}
	client := workload(t, a, "web")
	for query, want := range map[string]string{
		"?app=writer": "primary",
		"?app=local":  "near",
		"?app=reader": "replica",
		"":            "replica",
	} {
		t.Run(want+query, func(t *testing.T) {
			unchanged(t, l)
			for range 3 {
				w := connect(t, client, "kernel://db/nsm-1"+query)
				if w.endpoint != want {
					t.Errorf("got endpoint %s, want %s", w.endpoint, want)
				}
				if err := w.client.Stop(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	t.Run("nobody", func(t *testing.T) {
		unchanged(t, l)
		_, err := a.Nsm(t.Context(), "connect", "kernel://db?app=nobody", "--", "true")
		if exitCode(err) != 3 {
			t.Errorf("%v, want exit code 3", err)
		}
	})
}

// A service that an endpoint has made belongs to whoever started that. The operator,
// root of the registry's node, has the last word: the endpoint's node may be gone.
func TestOperator(t *testing.T) {
	needTUN(t)
	l := newMesh(t, lab.Config{})
	a, b := l.Node("a"), l.Node("b") // the registry is on a
	const spec = "\nspec:\n  matches:\n  - routes: [{destination_selector: {role: %s}}]\n"
	serve(t, workload(t, b, "old"), "db", "--name", "old", "--label", "role=old", "--cidr", "10.60.1.0/24")
	serve(t, workload(t, b, "new"), "db", "--name", "new", "--label", "role=new", "--cidr", "10.60.2.0/24")
	apply(t, b, fmt.Sprintf(spec, "old")) // its own
	apply(t, a, fmt.Sprintf(spec, "new"))
	w := connect(t, workload(t, a, "web"), "kernel://db/nsm-1")
	if w.endpoint != "new" {
		t.Errorf("connected to %s, want what the operator has said", w.endpoint)
	}
	if err := w.client.Stop(); err != nil {
		t.Error(err)
	}
	for _, command := range [][]string{{"apply", "-f", manifest(t, fmt.Sprintf(spec, "old"))}, {"delete", "service", "db"}} {
		if out, err := b.Nsm(t.Context(), command...); exitCode(err) != 4 || !strings.Contains(err.Error(), "NSM-2007") {
			t.Errorf("%v by root of another node: %v, %s", command, err, out)
		}
	}
	if _, err := a.Nsm(t.Context(), "delete", "service", "db"); err != nil {
		t.Error(err)
	}
}

// Endpoints of equal weight take turns; others get clients by their weight.
func TestWeights(t *testing.T) {
	l := newMesh(t, lab.Config{})
	a := l.Node("a")
	apply(t, a, `
spec:
  payload: ETHERNET
  matches:
    - routes:
        - {destination_selector: {kind: big}, weight: 4}
        - {destination_selector: {kind: small}, weight: 1}
`)
	web := workload(t, a, "web")
	serve(t, workload(t, l.Node("b"), "big"), "db", "turns", "--name", "big", "--label", "kind=big", "--cidr", "10.60.1.0/24", "--payload", "ETHERNET")
	serve(t, workload(t, a, "small"), "db", "turns", "--name", "small", "--label", "kind=small", "--cidr", "10.60.2.0/24", "--payload", "ETHERNET")
	unchanged(t, l)
	// The first wire between the nodes starts what encrypts at either end, which can take
	// longer than an endpoint is waited for where there is another one; it would be asked
	// last then, for a while.
	c, netNS, end := openClient(t, a, web)
	defer end()
	if _, err := c.Request(t.Context(), client.Request{Service: "turns", Endpoint: "big", NetNS: netNS}); err != nil {
		t.Fatal(err)
	}
	if got := distribute(t, a, web, "turns", 10); got["big"] != 5 || got["small"] != 5 {
		t.Errorf("of 10 clients: %v, want 5 each", got)
	}
	got := distribute(t, a, web, "db", 30)
	if got["big"] < 22 || got["big"] > 26 || got["big"]+got["small"] != 30 {
		t.Errorf("of 30 clients: %v, want 24 and 6, give or take 2", got)
	}
	t.Log(fmt.Sprint(got))
}

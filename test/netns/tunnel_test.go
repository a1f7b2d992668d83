// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Every daemon of both nodes is killed and started again: wires in the tunnel keep their
// interfaces and numbers, and the TCP connections in them. When the process that has the
// tunnel is killed it is made again, and when the forwarder is killed with it, too.
func TestTunnelOutlivesAll(t *testing.T) {
	needTUN(t)
	l := newMesh(t, lab.Config{Env: sharedTunnel})
	a, b := l.Node("a"), l.Node("b")
	far, lan := workload(t, b, "far"), workload(t, b, "lan")
	serve(t, far, "far", "--cidr", "10.60.1.0/24,fd00:60:1::/64")
	serve(t, lan, "lan", "--cidr", "10.60.2.0/24,fd00:60:2::/64", "--payload", "ETHERNET")
	unchanged(t, l)
	client := workload(t, a, "web")
	ip, ether := connect(t, client, "kernel://far/nsm-1", "--name", "ip"), connect(t, client, "kernel://lan/nsm-2", "--name", "ether")
	links := linksOf(t, client)
	var streams []stream
	for _, w := range []struct {
		wire
		at *lab.NetNS
	}{{ip, far}, {ether, lan}} {
		for _, addr := range w.far {
			s, err := openStream(client, w.at, addr)
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			streams = append(streams, s)
		}
	}
	check := func(when string) {
		t.Helper()
		for _, s := range streams {
			if err := s.use(); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
		}
	}
	check("at first")
	restart := func(n *lab.Node, part string) {
		t.Helper()
		l.Daemon(n.Name, part).Kill()
		check("without the " + part + " of " + n.Name)
		if _, err := n.Start(t.Context(), part); err != nil {
			t.Fatal(err)
		}
		check("with another " + part + " of " + n.Name)
	}
	for _, n := range []*lab.Node{a, b} {
		restart(n, "manager")
		restart(n, "forwarder")
	}
	if now := linksOf(t, client); fmt.Sprint(now) != fmt.Sprint(links) {
		t.Errorf("the interfaces are %v, they were %v", now, links)
	}

	flows := func() error {
		return errors.Join(transfer(client, far, ip.far[0]), transfer(client, lan, ether.far[0]))
	}
	for _, n := range []*lab.Node{a, b} {
		holder, err := n.Holder()
		if err != nil {
			t.Fatal(err)
		}
		if err := holder.Kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, flows)
	}
	holder, err := b.Holder()
	if err != nil {
		t.Fatal(err)
	}
	l.Daemon("b", "forwarder").Kill()
	if err := holder.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Start(t.Context(), "forwarder"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, flows)
}

// A forwarder that demands encryption refuses an Ethernet wire to a node that has none,
// and says so to who wants it; with a node that has it there is one.
func TestEncryptionRequired(t *testing.T) {
	needTUN(t)
	l := newMesh(t, lab.Config{Env: sharedTunnel})
	a, b := l.Node("a"), l.Node("b")
	again := func(n *lab.Node, tunnel string) {
		t.Helper()
		if err := l.Daemon(n.Name, "forwarder").Stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Start(t.Context(), "forwarder", "--wireguard-tunnel", tunnel); err != nil {
			t.Fatal(err)
		}
	}
	serve(t, workload(t, b, "lan"), "lan", "--cidr", "10.60.2.0/24", "--payload", "ETHERNET")
	client := workload(t, a, "web")
	again(a, "required")
	again(b, "off")
	if _, err := tryConnect(t, client, "kernel://lan/nsm-1", "--name", "one"); err == nil || !strings.Contains(err.Error(), nserr.NotEncrypted.Code) {
		t.Fatalf("a wire in the clear: %v, want %s", err, nserr.NotEncrypted.Code)
	}
	again(b, "auto")
	connect(t, client, "kernel://lan/nsm-1", "--name", "two", "--wait", "30s")
}

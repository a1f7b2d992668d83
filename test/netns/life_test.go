// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/lab"
)

// A client that dies takes nothing with it; when its token nears its end all
// nodes remove the wire, and not before.
func TestClientKilled(t *testing.T) {
	t.Parallel() // it mostly waits
	needTUN(t)
	l := newMesh(t, lab.Config{})
	a, b := l.Node("a"), l.Node("b")
	serve(t, workload(t, a, "near"), "near", "--cidr", "10.60.1.0/24")
	serve(t, workload(t, b, "far"), "far", "--cidr", "10.60.2.0/24")
	serve(t, workload(t, b, "lan"), "lan", "--cidr", "10.60.3.0/24", "--payload", "ETHERNET")
	unchanged(t, l)
	const life = 18 * time.Second // a slow machine needs much of it for three Requests
	type victim struct {
		wire
		service string
		watch   *lab.Watch
		expires time.Time
	}
	var victims []victim
	for _, service := range []string{"near", "far", "lan"} {
		ns := workload(t, a, service+"-client")
		w := connect(t, ns, "kernel://"+service+"/nsm-1", "--name", service, "--max-token-lifetime", life.String())
		watch, err := ns.WatchLink("nsm-1")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(watch.Close)
		victims = append(victims, victim{wire: w, service: service, watch: watch})
	}
	for i := range victims {
		victims[i].client.Kill()
		victims[i].expires = getWire(t, a, victims[i].service+"-0").Expires
	}
	for _, v := range victims {
		ctx, cancel := context.WithDeadline(t.Context(), v.expires.Add(5*time.Second))
		defer cancel()
		gone, err := v.watch.Gone(ctx)
		if err != nil {
			t.Errorf("%s: %v", v.service, err)
			continue
		}
		// Hops let go a third of the token's life before its end (protocol.md §2.7).
		if late := gone.Sub(v.expires.Add(-life / 3)); late < -time.Second || late > 2*time.Second {
			t.Errorf("%s: removed %v after the planned time", v.service, late)
		}
	}
	eventually(t, 5*time.Second, func() error {
		links, err := l.WireLinks()
		if len(links) > 0 {
			return fmt.Errorf("ends of wires left: %v", links)
		}
		return err
	})
}

// A client that is told to leave its wires up is replaced by another one of the
// same name, and packets flow all the time.
func TestClientReplaced(t *testing.T) {
	t.Parallel() // it mostly waits
	needTUN(t)
	l := newMesh(t, lab.Config{})
	a, b := l.Node("a"), l.Node("b")
	serve(t, workload(t, a, "near"), "near", "--cidr", "10.60.1.0/24")
	far := workload(t, b, "far")
	serve(t, far, "far", "--cidr", "10.60.2.0/24")
	unchanged(t, l)
	client := workload(t, a, "web")
	args := []string{"kernel://far/nsm-1", "kernel://near/nsm-2", "--name", "web", "--leave"}
	start := func(args []string) wire {
		w := connect(t, client, args...)
		if _, err := w.client.WaitLine(t.Context(), func(line string) bool { return strings.HasPrefix(line, "nsm: near is up: ") }); err != nil {
			t.Fatal(err)
		}
		return w
	}
	first := start(args)
	links := linksOf(t, client)
	s, err := openStream(client, far, first.far[0])
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	check := func(when string) {
		t.Helper()
		if err := s.use(); err != nil {
			t.Errorf("%s: the connection is broken: %v", when, err)
		}
		if now := linksOf(t, client); !maps.Equal(now, links) {
			t.Errorf("%s: the interfaces are %v, they were %v", when, now, links)
		}
	}
	check("at first")
	if err := first.client.Stop(); err != nil {
		t.Fatal(err)
	}
	if code := first.client.ExitCode(); code != 0 || !strings.Contains(first.client.Output(), "nsm: far stays up on nsm-1 for ") {
		t.Errorf("exit code %d:\n%s", code, first.client.Output())
	}
	check("without a client")
	second := start(args[:len(args)-1])
	if !slices.Equal(second.inside, first.inside) || second.endpoint != first.endpoint {
		t.Errorf("after it: %+v, before: %+v", second, first)
	}
	check("with the second client")
}

// linksOf returns the indexes of the links of a namespace.
func linksOf(t *testing.T, ns *lab.NetNS) map[string]int {
	t.Helper()
	links := make(map[string]int)
	err := ns.Do(func() error {
		all, err := net.Interfaces()
		for _, l := range all {
			links[l.Name] = l.Index
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return links
}

// A wire outlives several lives of its client's token.
func TestRefresh(t *testing.T) {
	t.Parallel() // it mostly waits
	needTUN(t)
	l := newMesh(t, lab.Config{})
	a, b := l.Node("a"), l.Node("b")
	server, client := workload(t, b, "db"), workload(t, a, "web")
	serve(t, server, "db", "--cidr", "10.60.0.0/24")
	unchanged(t, l)
	w := connect(t, client, "kernel://db/nsm-1", "--name", "web", "--max-token-lifetime", "12s")
	first := getWire(t, a, "web-0").Expires
	before := mtuOf(t, client, "nsm-1")
	watch, err := client.WatchLink("nsm-1")
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 28*time.Second)
	defer cancel()
	if gone, err := watch.Gone(ctx); err == nil {
		t.Fatalf("the interface went away at %v", gone)
	}
	if again := getWire(t, a, "web-0").Expires; again.Sub(first) < 16*time.Second {
		t.Errorf("expires at %v, at first it was %v", again, first)
	}
	if mtuOf(t, client, "nsm-1") != before {
		t.Error("the MTU has changed")
	}
	if err := transfer(client, server, w.far[0]); err != nil {
		t.Error(err)
	}
}

// An endpoint that is killed and comes back gives its clients the addresses they had.
func TestEndpointRestart(t *testing.T) {
	l := newMesh(t, lab.Config{})
	a, b := l.Node("a"), l.Node("b")
	for _, tt := range []struct{ name, payload string }{{"wireguard", "IP"}, {"vxlan", "ETHERNET"}} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.payload == "IP" {
				needTUN(t)
			}
			unchanged(t, l)
			server := workload(t, b, "db")
			args := []string{tt.name, "--name", tt.name, "--payload", tt.payload, "--cidr", "10.60.0.0/24,fd00:60::/64"}
			first := serve(t, server, args...)
			spare := connect(t, workload(t, a, "spare"), "kernel://"+tt.name+"/nsm-1", "--name", "spare")
			client := workload(t, a, "web")
			w := connect(t, client, "kernel://"+tt.name+"/nsm-1", "--name", tt.name)
			if err := spare.client.Stop(); err != nil { // so that the first addresses are free
				t.Fatal(err)
			}
			first.Kill()
			serve(t, server, args...)
			eventually(t, 15*time.Second, func() error { return transfer(client, server, w.far[0]) })
			eventually(t, 15*time.Second, func() error {
				info := getWire(t, a, tt.name+"-0")
				if info.State != "WIRE_STATE_UP" || !slices.Equal(info.Client.Addresses, hostPrefixes(w.inside)) {
					return fmt.Errorf("wire is %+v, want addresses %v", info, w.inside)
				}
				return nil
			})
		})
	}
}

func hostPrefixes(addrs []netip.Addr) (list []string) {
	for _, a := range addrs {
		list = append(list, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return list
}

// A second machine joins with a token that works once.
func TestUpAndJoin(t *testing.T) {
	needTUN(t)
	l := newLab(t, lab.Config{Nodes: []string{"a", "b", "c"}})
	a, b, c := l.Node("a"), l.Node("b"), l.Node("c")
	start := time.Now()
	if _, err := a.Start(t.Context(), "up"); err != nil {
		t.Fatal(err)
	}
	took(t, "nsm up, until all parts are ready,", start, time.Second)
	token, err := a.Nsm(t.Context(), "token", "create")
	if err != nil {
		t.Fatal(err)
	}
	token = strings.TrimSpace(token)
	for form, want := range map[string]string{"json": "{\n  \"token\": \"nsm1", "yaml": "token: nsm1"} {
		if out, err := a.Nsm(t.Context(), "token", "create", "-o", form); err != nil || !strings.HasPrefix(out, want) {
			t.Errorf("as %s: %v, %s", form, err, out)
		}
	}
	if _, err := b.Start(t.Context(), "up", "--join", token); err != nil {
		t.Fatal(err)
	}
	_, err = c.Start(t.Context(), "up", "--join", token)
	if exitCode(err) != 5 || !strings.Contains(err.Error(), "NSM-2010") {
		t.Errorf("second use of the token: %v, want exit code 5 and NSM-2010", err)
	}
	unchanged(t, l)
	server, client := workload(t, a, "db"), workload(t, b, "web")
	serve(t, server, "db", "--cidr", "10.60.0.0/24,fd00:60::/64")
	w := connect(t, client, "kernel://db/nsm-1", "--wait", "5s")
	for _, far := range w.far {
		if err := transfer(client, server, far); err != nil {
			t.Error(err)
		}
	}
}

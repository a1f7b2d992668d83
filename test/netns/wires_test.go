// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/nstest"
	"github.com/openvwire/nsm/sdk/endpoint"
)

// ownDevices has every wire between nodes have a device of its own.
var ownDevices = []string{"NSM_WIREGUARD_TUNNEL=off"}

// sharedTunnel has them share the nodes' tunnel, also where the kernel has WireGuard.
var sharedTunnel = []string{"NSM_WIREGUARD=userspace"}

// Every kind of wire carries every address family, both ways.
func TestMatrix(t *testing.T) {
	t.Run("own", func(t *testing.T) { testMatrix(t, ownDevices, "WIREGUARD", "VXLAN") })
	t.Run("shared", func(t *testing.T) { testMatrix(t, sharedTunnel, "TUNNEL", "TUNNEL") })
}

func testMatrix(t *testing.T, env []string, forIP, forEthernet string) {
	l := newMesh(t, lab.Config{Env: env})
	a, b := l.Node("a"), l.Node("b")
	families := map[string]string{
		"ipv4": "10.60.0.0/24",
		"ipv6": "fd00:60::/64",
		"dual": "10.60.0.0/24,fd00:60::/64",
	}
	for _, kind := range []struct {
		endpoint  *lab.Node
		payload   string
		mechanism string // towards the endpoint, at the client's node
	}{
		{a, "IP", "KERNEL"},
		{a, "ETHERNET", "KERNEL"},
		{b, "IP", forIP},
		{b, "ETHERNET", forEthernet},
	} {
		for family, cidr := range families {
			t.Run(fmt.Sprintf("%s/%s/%s", kind.mechanism, kind.payload, family), func(t *testing.T) {
				if kind.mechanism == "WIREGUARD" || kind.mechanism == "TUNNEL" {
					needTUN(t)
				}
				unchanged(t, l)
				server, client := workload(t, kind.endpoint, "db"), workload(t, a, "web")
				service := strings.ToLower(kind.mechanism + "-" + kind.payload + "-" + family)
				serve(t, server, service, "--name", service, "--payload", kind.payload, "--cidr", cidr)
				w := connect(t, client, "kernel://"+service+"/nsm-1", "--name", service)
				if want := strings.Count(cidr, ",") + 1; len(w.inside) != want || len(w.far) != want {
					t.Fatalf("addresses %v and %v, want %d of each", w.inside, w.far, want)
				}
				for i, far := range w.far {
					if err := transfer(client, server, far); err != nil {
						t.Errorf("to the endpoint: %v", err)
					}
					if err := transfer(server, client, w.inside[i]); err != nil {
						t.Errorf("to the client: %v", err)
					}
				}
				info := getWire(t, a, service+"-0")
				if info.Client.Mechanism != "KERNEL" || info.Endpoint.Mechanism != kind.mechanism || info.State != "WIRE_STATE_UP" {
					t.Errorf("wire is %+v, want %s", info, kind.mechanism)
				}
			})
		}
	}
}

// The workload may be this process's namespace, that of a process, a named one, a
// path, or a new one for a command.
func TestWhoseNamespace(t *testing.T) {
	l := newMesh(t, lab.Config{Nodes: []string{"a"}})
	a := l.Node("a")
	serve(t, workload(t, a, "db"), "db", "--cidr", "10.60.0.0/24")
	client := workload(t, a, "web")
	sleeper, err := client.Start(t.Context(), "", "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	stopAtEnd(t, sleeper)
	for name, args := range map[string][]string{
		"pid":  {"--pid", fmt.Sprint(sleeper.PID)},
		"name": {"--netns", client.Name},
		"path": {"--netns", client.Path()},
	} {
		t.Run(name, func(t *testing.T) {
			unchanged(t, l)
			connect(t, a.NetNS, append(args, "kernel://db/nsm-"+name)...)
			if links, err := client.Links(); err != nil || !slices.Equal(links, []string{"lo", "nsm-" + name}) {
				t.Errorf("links %v, %v", links, err)
			}
		})
	}
	t.Run("own", func(t *testing.T) {
		unchanged(t, l)
		w := connect(t, client, "kernel://db")
		if links, err := client.Links(); err != nil || !slices.Contains(links, w.link) {
			t.Errorf("links %v, %v, want %s", links, err, w.link)
		}
	})
	t.Run("command", func(t *testing.T) {
		unchanged(t, l)
		out, err := a.Nsm(t.Context(), "connect", "kernel://db/nsm-1", "kernel://db/nsm-2", "--", "cat", "/proc/net/dev")
		if err != nil || !strings.Contains(out, "nsm-1:") || !strings.Contains(out, "nsm-2:") || strings.Contains(out, lab.Underlay+":") {
			t.Errorf("%v: the command sees\n%s", err, out)
		}
	})
	t.Run("its exit code", func(t *testing.T) {
		unchanged(t, l)
		if _, err := a.Nsm(t.Context(), "connect", "kernel://db", "--", "sh", "-c", "exit 7"); exitCode(err) != 7 {
			t.Errorf("%v, want exit code 7", err)
		}
		if _, err := a.Nsm(t.Context(), "connect", "kernel://db", "--", "sh", "-c", "kill -KILL $$"); exitCode(err) != 128+9 {
			t.Errorf("%v, want exit code 137", err)
		}
	})
}

// A file of excluded prefixes counts as it is at the time of a request.
func TestExcludedPrefixes(t *testing.T) {
	needTUN(t)
	l := newMesh(t, lab.Config{})
	a := l.Node("a")
	serve(t, workload(t, l.Node("b"), "db"), "db", "--cidr", "10.60.0.0/24")
	client := workload(t, a, "web")
	endpointInside := func(want string) {
		t.Helper()
		prefix := netip.MustParsePrefix(want)
		eventually(t, 5*time.Second, func() error {
			w, err := tryConnect(t, client, "kernel://db/nsm-1")
			if err != nil {
				return err
			}
			if err := w.client.Stop(); err != nil {
				return err
			}
			if !prefix.Contains(w.far[0]) {
				return fmt.Errorf("the endpoint's address is %s, not in %s", w.far[0], prefix)
			}
			return nil
		})
	}
	endpointInside("10.60.0.0/31")
	if err := os.WriteFile(a.ExcludedPrefixes(), []byte("prefixes: [10.60.0.0/25]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	endpointInside("10.60.0.128/31")
	if err := os.WriteFile(a.ExcludedPrefixes(), []byte("prefixes: [10.60.0.0/16]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error {
		_, err := client.Run(t.Context(), nstest.Program(), "connect", "kernel://db/nsm-1", "--", "true")
		if err == nil || !strings.Contains(err.Error(), "NSM-3011") {
			return fmt.Errorf("%v, want NSM-3011", err)
		}
		return nil
	})
	if err := os.Remove(a.ExcludedPrefixes()); err != nil {
		t.Fatal(err)
	}
	endpointInside("10.60.0.0/31")
}

// The MTU of a wire is what fits through its tunnel, and no more is promised: the
// largest packet passes undivided, in both directions, a larger one is refused.
func TestMTU(t *testing.T) {
	own, shared := newMesh(t, lab.Config{MTU: 1400, Env: ownDevices}), newMesh(t, lab.Config{MTU: 1400, Env: sharedTunnel})
	const inTunnel = (1400 - 60) / 16 * 16
	for _, tt := range []struct {
		name     string
		lab      *lab.Lab
		endpoint string
		args     []string
		most     int // 0 = anything
	}{
		{"local", own, "a", nil, 0},
		{"local-limited", own, "a", []string{"--mtu", "1300"}, 1300},
		{"wireguard", own, "b", nil, 1400 - 60},
		{"wireguard-limited", own, "b", []string{"--mtu", "1300"}, 1300},
		{"vxlan", own, "b", []string{"--payload", "ETHERNET"}, 1400 - 50},
		{"tunnel", shared, "b", nil, inTunnel - 20},
		{"tunnel-limited", shared, "b", []string{"--mtu", "1300"}, 1300},
		{"tunnel-ethernet", shared, "b", []string{"--payload", "ETHERNET"}, inTunnel - 38},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := tt.lab
			a := l.Node("a")
			if !strings.HasPrefix(tt.name, "local") && tt.name != "vxlan" {
				needTUN(t)
			}
			unchanged(t, l)
			server, client := workload(t, l.Node(tt.endpoint), "db"), workload(t, a, "web")
			serve(t, server, append([]string{tt.name, "--cidr", "10.60.0.0/24,fd00:60::/64"}, tt.args...)...)
			w := connect(t, client, "kernel://"+tt.name+"/nsm-1")
			mtu := mtuOf(t, client, "nsm-1")
			if tt.most != 0 && mtu > tt.most {
				t.Errorf("MTU %d, want at most %d", mtu, tt.most)
			}
			for i := range w.far {
				if err := sendDatagrams(client, server, w.far[i], mtu); err != nil {
					t.Errorf("to the endpoint: %v", err)
				}
				if err := sendDatagrams(server, client, w.inside[i], mtu); err != nil {
					t.Errorf("to the client: %v", err)
				}
			}
		})
	}
}

func mtuOf(t *testing.T, ns *lab.NetNS, link string) (mtu int) {
	t.Helper()
	err := ns.Do(func() error {
		i, err := net.InterfaceByName(link)
		if err == nil {
			mtu = i.MTU
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return mtu
}

// sendDatagrams sends a packet of mtu bytes that may not be divided, and then one
// that is a byte too large.
func sendDatagrams(from, to *lab.NetNS, at netip.Addr, mtu int) error {
	var receiver, sender *net.UDPConn
	err := to.Do(func() (err error) {
		receiver, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	})
	if err != nil {
		return err
	}
	defer receiver.Close()
	err = from.Do(func() (err error) {
		sender, err = net.DialUDP("udp", nil, receiver.LocalAddr().(*net.UDPAddr))
		return err
	})
	if err != nil {
		return err
	}
	defer sender.Close()
	if err := dontFragment(sender, at.Is6()); err != nil {
		return err
	}
	payload := make([]byte, mtu+1) // less headers of IP and UDP
	if at.Is6() {
		payload = payload[48:]
	} else {
		payload = payload[28:]
	}
	if _, err := sender.Write(payload[1:]); err != nil {
		return fmt.Errorf("packet of %d bytes: %w", mtu, err)
	}
	_ = receiver.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := receiver.Read(make([]byte, 65536)); err != nil || n != len(payload)-1 {
		return fmt.Errorf("packet of %d bytes: %d bytes arrived, %w", mtu, n, err)
	}
	if _, err := sender.Write(payload); !errors.Is(err, unix.EMSGSIZE) {
		return fmt.Errorf("packet of %d bytes: %v, want it refused", mtu+1, err)
	}
	return nil
}

func dontFragment(c *net.UDPConn, six bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) {
		if six {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		}
	}), err)
}

// An endpoint's policies send some of the client's packets over the wire, by
// protocol and port, and leave the others alone.
func TestPolicyRoutes(t *testing.T) {
	needTUN(t)
	l := newMesh(t, lab.Config{})
	a, b := l.Node("a"), l.Node("b")
	server, client := workload(t, b, "proxy"), workload(t, a, "web")
	// The Internet behind the proxy, as far as this test goes.
	const beyond = "192.0.2.1"
	if err := server.AddAddress("lo", netip.MustParsePrefix(beyond+"/32")); err != nil {
		t.Fatal(err)
	}
	serveWith(t, b, server, "proxy", "10.60.0.0/24", func(next endpoint.Handler) endpoint.Handler {
		return endpoint.Funcs{OnClose: next.Close, OnRequest: func(ctx context.Context, r *endpoint.Request) error {
			if err := next.Request(ctx, r); err != nil {
				return err
			}
			r.Connection.Context.IpContext.Policies = []*networkservice.PolicyRoute{{Proto: "tcp", DstPort: "8080"}}
			return nil
		}}
	})
	unchanged(t, l)
	connect(t, client, "kernel://proxy/nsm-1")
	var reached net.Listener
	if err := server.Do(func() (err error) {
		reached, err = net.Listen("tcp", beyond+":8080")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer reached.Close()
	// A policy that names no source applies to every packet, so to a socket that has
	// no address yet when its route is looked up.
	c, err := dialIn(client, beyond+":8080")
	if err != nil {
		t.Fatalf("port 8080 does not go over the wire: %v", err)
	}
	c.Close()
	if c, err := dialIn(client, beyond+":8081"); !errors.Is(err, unix.ENETUNREACH) {
		if err == nil {
			c.Close()
		}
		t.Errorf("port 8081: %v, want no route", err)
	}
}

func dialIn(ns *lab.NetNS, address string) (c net.Conn, err error) {
	err = ns.Do(func() error {
		c, err = net.DialTimeout("tcp", address, 5*time.Second)
		return err
	})
	return c, err
}

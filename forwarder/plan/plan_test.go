// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openvwire/nsm/forwarder/kernel/memkernel"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/nserr"
)

var update = flag.Bool("update", false, "write the golden files")

// names gives the namespaces of the golden files readable names.
func names(key string) string {
	return map[string]string{"4:11": "client", "4:22": "endpoint"}[key]
}

func vethWire() plan.Wire {
	return plan.Wire{ID: "u2", Owner: "fwd-a", Kind: plan.KindVeth, Payload: plan.IP, Ends: []plan.End{
		{NetNS: "4:11", Name: "nsm-1", Side: plan.Client, MTU: 1500,
			Addrs:  []netip.Prefix{prefix("10.0.0.1/32"), prefix("fd00::1/128")},
			Routes: []plan.Route{{Dst: prefix("10.0.0.2/32")}, {Dst: prefix("fd00::2/128")}, {Dst: prefix("10.1.0.0/16"), Via: addr("10.0.0.2"), OnLink: true}},
			Policies: []plan.Policy{
				{From: prefix("10.0.0.1/32"), Proto: "tcp", DstPort: plan.PortRange{From: 80, To: 90}, Routes: []plan.Route{{Dst: prefix("0.0.0.0/0"), Via: addr("10.0.0.2"), OnLink: true}}},
				{Proto: "udp", SrcPort: plan.PortRange{From: 53, To: 53}},
			}},
		{NetNS: "4:22", Name: "nsm-7", Side: plan.Endpoint, MTU: 1500,
			Addrs:  []netip.Prefix{prefix("10.0.0.2/32"), prefix("fd00::2/128")},
			Routes: []plan.Route{{Dst: prefix("10.0.0.1/32")}, {Dst: prefix("fd00::1/128")}}},
	}}
}

func vxlanWire() plan.Wire {
	return plan.Wire{ID: "u3", Owner: "fwd-a", Kind: plan.KindVXLAN, Payload: plan.Ethernet,
		VXLAN: &plan.VXLAN{VNI: 4711, Local: addr("192.0.2.1"), Remote: addr("192.0.2.2"), Port: 4789},
		Ends: []plan.End{{NetNS: "4:11", Name: "nsm-1", Side: plan.Client, MTU: 1446,
			Addrs: []netip.Prefix{prefix("10.0.0.1/24")}}}}
}

func wireGuardWire() plan.Wire {
	return plan.Wire{ID: "u4", Owner: "fwd-a", Kind: plan.KindWireGuard, Payload: plan.IP,
		WireGuard: &plan.WireGuard{PrivateKey: [32]byte{1}, PeerKey: [32]byte{2}, Port: 51820,
			Endpoint: netip.MustParseAddrPort("[2001:db8::2]:51820"), Keepalive: 10 * time.Second},
		Ends: []plan.End{{NetNS: "4:22", Name: "nsm-7", Side: plan.Endpoint, MTU: 1420,
			Addrs: []netip.Prefix{prefix("fd00::2/128")}, Routes: []plan.Route{{Dst: prefix("fd00::1/128")}}}}}
}

func tunnelWire() plan.Wire {
	w := wireGuardWire()
	w.Kind, w.WireGuard = plan.KindTunnel, nil
	w.Tunnel = &plan.Tunnel{
		Own: plan.TunnelNode{PrivateKey: [32]byte{1}, Port: 51820, ID: 0xdeadbeef}, Wire: 7,
		Peer: plan.TunnelPeer{Key: [32]byte{2}, ID: 0xcafe, Endpoint: netip.MustParseAddrPort("[2001:db8::2]:51820"), Wire: 9},
	}
	return w
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

// nothing is the state of namespaces without any link of the wire.
func nothing(w plan.Wire) plan.Observed {
	seen := plan.Observed{Ends: make([]plan.ObservedEnd, len(w.Ends))}
	for i := range seen.Ends {
		seen.Ends[i].PingClosed, seen.Ends[i].NewIPv6Off = true, i == 0
	}
	return seen
}

// seenVeth is the state of vethWire without policies, somewhat out of date.
func seenVeth() plan.Observed {
	w := vethWire()
	seen := plan.Observed{}
	for _, e := range w.Ends {
		seen.Ends = append(seen.Ends, plan.ObservedEnd{Found: true, Tagged: true, Name: e.Name, LinkKind: "veth",
			MTU: 1500, MAC: plan.MAC(w.ID, e.Side), Up: true, Addrs: e.Addrs, Routes: e.Routes})
	}
	c := &seen.Ends[0]
	c.MTU, c.Up, c.MAC = 1400, false, plan.MAC("other", plan.Client)
	c.Addrs = []netip.Prefix{prefix("10.0.0.9/32"), prefix("fd00::1/64")}
	c.Neighbors = []plan.Neighbor{
		{IP: addr("10.0.0.2"), MAC: plan.MAC("other", plan.Endpoint)}, {IP: addr("10.0.0.8"), MAC: plan.MAC("other", plan.Endpoint)}}
	c.UsedTables = []int{1, 2, 254}
	c.Tables = []plan.PolicyTable{{HasRule: true, Rule: plan.Rule{From: prefix("10.0.0.9/32"), Table: 2, Priority: 10002},
		Routes: []plan.Route{{Dst: prefix("0.0.0.0/0")}}}}
	return seen
}

func etherTunnel() plan.Wire {
	w := tunnelWire()
	w.Payload = plan.Ethernet
	return w
}

// seenTunnel is the state of etherTunnel while it leads to another node.
func seenTunnel() plan.Observed {
	w := etherTunnel()
	e := w.Ends[0]
	w.Tunnel.Peer.ID = 0xbad
	return plan.Observed{Ends: []plan.ObservedEnd{{
		Found: true, Tagged: true, Name: e.Name, LinkKind: plan.LinkTunnel, MTU: e.MTU, MAC: plan.MAC(w.ID, e.Side), Up: true,
		Addrs: e.Addrs, Routes: e.Routes, Tunnel: w.Tunnel,
	}}}
}

// The plans read as a human would type them.
func TestGolden(t *testing.T) {
	renamed := seenVeth()
	renamed.Ends[0].Name = "nsm-9"
	for name, steps := range map[string][]plan.Step{
		"veth-new":        plan.Diff(vethWire(), nothing(vethWire())),
		"veth-changed":    plan.Diff(vethWire(), seenVeth()),
		"veth-renamed":    plan.Diff(vethWire(), renamed),
		"veth-removed":    plan.Removal(vethWire(), seenVeth()),
		"vxlan-new":       plan.Diff(vxlanWire(), nothing(vxlanWire())),
		"wireguard-new":   plan.Diff(wireGuardWire(), nothing(wireGuardWire())),
		"tunnel-new":      plan.Diff(tunnelWire(), nothing(tunnelWire())),
		"tunnel-ethernet": plan.Diff(etherTunnel(), nothing(etherTunnel())),
		"tunnel-pointed":  plan.Diff(etherTunnel(), seenTunnel()),
		"nothing-to-see":  plan.Removal(vethWire(), nothing(vethWire())),
	} {
		t.Run(name, func(t *testing.T) {
			got := plan.Script(steps, names)
			path := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// Every policy has one table, numbered in the order of the policies, whatever
// families it is for (the PBR example of the reference looks for the numbers).
func TestPolicyTables(t *testing.T) {
	w := vxlanWire()
	port := func(n uint16) plan.PortRange { return plan.PortRange{From: n, To: n} }
	four := []plan.Route{{Dst: prefix("172.16.4.0/24"), Via: addr("10.0.0.2"), OnLink: true}}
	w.Ends[0].Addrs = []netip.Prefix{prefix("10.0.0.1/32"), prefix("fd00::1/128")}
	w.Ends[0].Policies = []plan.Policy{
		{From: prefix("10.0.0.1/24"), Proto: "6", DstPort: port(6666), Routes: four},
		{Proto: "6", SrcPort: port(5555)},
		{Proto: "17", DstPort: port(6666), Routes: four},
		{From: prefix("0.0.0.0/0"), Proto: "17", DstPort: port(6668)},
		{Proto: "17", DstPort: port(5555), Routes: []plan.Route{{Dst: prefix("2004::5/120")}}},
	}
	var got []string
	for _, s := range plan.Diff(w, nothing(w)) {
		if s, ok := s.(plan.AddRule); ok {
			got = append(got, fmt.Sprintf("%d v6=%v %v", s.Rule.Priority, s.Rule.IPv6, s.Rule))
		}
	}
	want := []string{
		"10001 v6=false from 10.0.0.0/24 ipproto 6 dport 6666 table 1",
		"10002 v6=false ipproto 6 sport 5555 table 2",
		"10002 v6=true ipproto 6 sport 5555 table 2",
		"10003 v6=false ipproto 17 dport 6666 table 3",
		"10004 v6=false ipproto 17 dport 6668 table 4",
		"10005 v6=true ipproto 17 dport 5555 table 5",
	}
	if !slices.Equal(got, want) {
		t.Errorf("rules\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What the context says of neighbours yields to what is known of the devices that
// were made, and means nothing where there are no hardware addresses (see TestNextHops).
func TestNeighbors(t *testing.T) {
	given := []plan.Neighbor{{IP: addr("10.0.0.2"), MAC: plan.MAC("an earlier forwarder", plan.Endpoint)}, {IP: addr("10.0.0.7"), MAC: plan.MAC("x", plan.Endpoint)}}
	veth, vxlan, wg := vethWire(), vxlanWire(), wireGuardWire()
	for _, tt := range []struct {
		wire plan.Wire
		want string
	}{
		{veth, "[10.0.0.2 " + plan.MAC(veth.ID, plan.Endpoint).String() + " fd00::2 " + plan.MAC(veth.ID, plan.Endpoint).String() + " 10.0.0.7 " + given[1].MAC.String() + "]"},
		{vxlan, "[10.0.0.2 " + given[0].MAC.String() + " 10.0.0.7 " + given[1].MAC.String() + "]"},
		{wg, "[fd00::1 ]"},
	} {
		tt.wire.Ends[0].Neighbors = given
		var got []string
		for _, s := range plan.Diff(tt.wire, nothing(tt.wire)) {
			if s, ok := s.(plan.AddNeighbor); ok && s.NetNS == tt.wire.Ends[0].NetNS {
				got = append(got, s.Neighbor.IP.String()+" "+s.Neighbor.MAC.String())
			}
		}
		if fmt.Sprint(got) != tt.want {
			t.Errorf("%s: %v, want %s", tt.wire.Kind, got, tt.want)
		}
	}
}

// A layer 3 device has a permanent neighbour for all of IPv4, and one for each next hop of
// IPv6 that is known, whatever it had before.
func TestNextHops(t *testing.T) {
	for _, tt := range []struct {
		name     string
		addrs    []netip.Prefix
		routes   []plan.Route
		policies []plan.Policy
		want     string
	}{
		{"nothing", nil, nil, nil, "[]"},
		{"an address of IPv4", []netip.Prefix{prefix("10.0.0.1/32")}, nil, nil, "[0.0.0.0]"},
		{"an address of IPv6", []netip.Prefix{prefix("fd00::1/128")}, nil, nil, "[]"},
		{"routes of IPv4", nil, []plan.Route{{Dst: prefix("10.0.0.2/32")}, {Dst: prefix("10.1.0.0/16"), Via: addr("10.0.0.2"), OnLink: true}}, nil, "[0.0.0.0]"},
		{"to a host and on from there", nil, []plan.Route{{Dst: prefix("fd00::2/128")}, {Dst: prefix("::/0"), Via: addr("fd00::2"), OnLink: true}}, nil, "[fd00::2]"},
		{"to a host by way of another", nil, []plan.Route{{Dst: prefix("fd00::3/128"), Via: addr("fd00::2"), OnLink: true}}, nil, "[fd00::2]"},
		{"to whoever is there", nil, []plan.Route{{Dst: prefix("fd00::/64")}}, nil, "[]"},
		{"policies", nil, nil, []plan.Policy{
			{From: prefix("10.0.0.0/8")}, {Routes: []plan.Route{{Dst: prefix("::/0"), Via: addr("fe80::1"), OnLink: true}}},
		}, "[0.0.0.0 fe80::1]"},
	} {
		for _, w := range []plan.Wire{wireGuardWire(), tunnelWire()} {
			k := memkernel.New(w.Owner)
			if _, err := k.Apply(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			e := &w.Ends[0]
			e.Addrs, e.Routes, e.Policies = tt.addrs, tt.routes, tt.policies
			if _, err := k.Apply(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			seen, err := k.Observe(t.Context(), w)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, n := range seen.Ends[0].Neighbors {
				got = append(got, n.IP.String()+n.MAC.String())
			}
			if fmt.Sprint(got) != tt.want {
				t.Errorf("%s, %s: %v, want %s", tt.name, w.Kind, got, tt.want)
			}
		}
	}
}

func TestKeysAreNotPrinted(t *testing.T) {
	w, shared := wireGuardWire(), tunnelWire()
	w.WireGuard.PrivateKey = [32]byte([]byte("super-secret-super-secret-super!"))
	shared.Tunnel.Own.PrivateKey = w.WireGuard.PrivateKey
	for _, w := range []plan.Wire{w, shared} {
		script := plan.Script(plan.Diff(w, nothing(w)), names)
		if strings.Contains(script, "super") || strings.Contains(script, "c3VwZXI") {
			t.Error(script)
		}
	}
}

func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		wire  plan.Wire
		spoil func(w *plan.Wire)
		want  *nserr.Reason
	}{
		"veth":      {wire: vethWire()},
		"vxlan":     {wire: vxlanWire()},
		"wireguard": {wire: wireGuardWire()},
		"tunnel":    {wire: tunnelWire()},
		"tunnel L2": {wire: etherTunnel()},
		"it waits":  {tunnelWire(), func(w *plan.Wire) { w.Tunnel.Peer = plan.TunnelPeer{} }, nil},

		"no id":              {vethWire(), func(w *plan.Wire) { w.ID = "" }, nserr.BadRequest},
		"long id":            {vethWire(), func(w *plan.Wire) { w.ID = strings.Repeat("x", 250) }, nserr.BadRequest},
		"control in id":      {vethWire(), func(w *plan.Wire) { w.ID = "a\nb" }, nserr.BadRequest},
		"colon in owner":     {vethWire(), func(w *plan.Wire) { w.Owner = "a:b" }, nserr.BadRequest},
		"kind":               {vethWire(), func(w *plan.Wire) { w.Kind = "bridge" }, nserr.Unsupported},
		"payload":            {vethWire(), func(w *plan.Wire) { w.Payload = "" }, nserr.PayloadMismatch},
		"VXLAN for IP":       {vxlanWire(), func(w *plan.Wire) { w.Payload = plan.IP }, nserr.PayloadMismatch},
		"WireGuard for L2":   {wireGuardWire(), func(w *plan.Wire) { w.Payload = plan.Ethernet }, nserr.PayloadMismatch},
		"one end":            {vethWire(), func(w *plan.Wire) { w.Ends = w.Ends[:1] }, nserr.BadRequest},
		"ends swapped":       {vethWire(), func(w *plan.Wire) { w.Ends[0], w.Ends[1] = w.Ends[1], w.Ends[0] }, nserr.BadRequest},
		"side":               {vxlanWire(), func(w *plan.Wire) { w.Ends[0].Side = "x" }, nserr.BadRequest},
		"no VXLAN":           {vxlanWire(), func(w *plan.Wire) { w.VXLAN = nil }, nserr.BadMechanism},
		"VNI":                {vxlanWire(), func(w *plan.Wire) { w.VXLAN.VNI = 1 << 24 }, nserr.BadMechanism},
		"no port":            {vxlanWire(), func(w *plan.Wire) { w.VXLAN.Port = 0 }, nserr.BadMechanism},
		"no remote":          {vxlanWire(), func(w *plan.Wire) { w.VXLAN.Remote = netip.Addr{} }, nserr.BadMechanism},
		"multicast remote":   {vxlanWire(), func(w *plan.Wire) { w.VXLAN.Remote = addr("239.0.0.1") }, nserr.BadMechanism},
		"mixed families":     {vxlanWire(), func(w *plan.Wire) { w.VXLAN.Remote = addr("2001:db8::1") }, nserr.BadMechanism},
		"to itself":          {vxlanWire(), func(w *plan.Wire) { w.VXLAN.Remote = w.VXLAN.Local }, nserr.BadMechanism},
		"no WireGuard":       {wireGuardWire(), func(w *plan.Wire) { w.WireGuard = nil }, nserr.BadMechanism},
		"no private key":     {wireGuardWire(), func(w *plan.Wire) { w.WireGuard.PrivateKey = [32]byte{} }, nserr.BadMechanism},
		"no peer key":        {wireGuardWire(), func(w *plan.Wire) { w.WireGuard.PeerKey = [32]byte{} }, nserr.BadMechanism},
		"endpoint":           {wireGuardWire(), func(w *plan.Wire) { w.WireGuard.Endpoint = netip.MustParseAddrPort("0.0.0.0:1") }, nserr.BadMechanism},
		"keepalive":          {wireGuardWire(), func(w *plan.Wire) { w.WireGuard.Keepalive = 19 * time.Hour }, nserr.BadMechanism},
		"no tunnel":          {tunnelWire(), func(w *plan.Wire) { w.Tunnel = nil }, nserr.BadMechanism},
		"no own id":          {tunnelWire(), func(w *plan.Wire) { w.Tunnel.Own.ID = 0 }, nserr.BadMechanism},
		"no own number":      {tunnelWire(), func(w *plan.Wire) { w.Tunnel.Wire = 0 }, nserr.BadMechanism},
		"no far number":      {tunnelWire(), func(w *plan.Wire) { w.Tunnel.Peer.Wire = 0 }, nserr.BadMechanism},
		"own id of the peer": {tunnelWire(), func(w *plan.Wire) { w.Tunnel.Peer.ID = w.Tunnel.Own.ID }, nserr.BadMechanism},
		"tunnel endpoint":    {tunnelWire(), func(w *plan.Wire) { w.Tunnel.Peer.Endpoint = netip.MustParseAddrPort("0.0.0.0:1") }, nserr.BadMechanism},
		"no namespace":       {vethWire(), func(w *plan.Wire) { w.Ends[0].NetNS = "" }, nserr.NoNetNS},
		"same name":          {vethWire(), func(w *plan.Wire) { w.Ends[0].NetNS, w.Ends[0].Name = "4:22", "nsm-7" }, nserr.NameTaken},
		"name":               {vethWire(), func(w *plan.Wire) { w.Ends[0].Name = "a b" }, nserr.BadName},
		"multicast MAC":      {vethWire(), func(w *plan.Wire) { w.Ends[0].MAC = net.HardwareAddr{1, 2, 3, 4, 5, 6} }, nserr.BadContext},
		"short MAC":          {vethWire(), func(w *plan.Wire) { w.Ends[0].MAC = net.HardwareAddr{2} }, nserr.BadContext},
		"MTU IPv6":           {vethWire(), func(w *plan.Wire) { w.Ends[0].MTU = 1279 }, nserr.MTUTooSmall},
		"MTU IPv4":           {vxlanWire(), func(w *plan.Wire) { w.Ends[0].MTU = 575 }, nserr.MTUTooSmall},
		"smallest MTU":       {vxlanWire(), func(w *plan.Wire) { w.Ends[0].MTU = 576 }, nil},
		"huge MTU":           {vxlanWire(), func(w *plan.Wire) { w.Ends[0].MTU = 65536 }, nserr.BadContext},
		"no address":         {vethWire(), func(w *plan.Wire) { w.Ends[0].Addrs = []netip.Prefix{{}} }, nserr.BadContext},
		"multicast address":  {vethWire(), func(w *plan.Wire) { w.Ends[0].Addrs = []netip.Prefix{prefix("224.0.0.1/32")} }, nserr.BadContext},
		"mapped address":     {vethWire(), func(w *plan.Wire) { w.Ends[0].Addrs = []netip.Prefix{prefix("::ffff:10.0.0.1/128")} }, nserr.BadContext},
		"neighbour":          {vethWire(), func(w *plan.Wire) { w.Ends[0].Neighbors = []plan.Neighbor{{IP: addr("10.0.0.5")}} }, nserr.BadContext},
		"no destination":     {vethWire(), func(w *plan.Wire) { w.Ends[0].Routes = []plan.Route{{}} }, nserr.BadContext},
		"next hop":           {vethWire(), route("10.0.0.0/8", "0.0.0.0"), nserr.BadContext},
		"next hop's family":  {vethWire(), route("10.0.0.0/8", "fd00::1"), nserr.BadContext},
		"policy protocol":    {vethWire(), policy(plan.Policy{Proto: "256"}), nserr.BadContext},
		"policy ports":       {vethWire(), policy(plan.Policy{DstPort: plan.PortRange{From: 2, To: 1}}), nserr.BadContext},
		"policy port 0":      {vethWire(), policy(plan.Policy{SrcPort: plan.PortRange{To: 1}}), nserr.BadContext},
		"policy route":       {vethWire(), policy(plan.Policy{Routes: []plan.Route{{}}}), nserr.BadContext},
		"policy families":    {vethWire(), policy(plan.Policy{From: prefix("fd00::/8"), Routes: []plan.Route{{Dst: prefix("10.0.0.0/8")}}}), nserr.BadContext},
		"policy from mapped": {vethWire(), policy(plan.Policy{From: prefix("::ffff:10.0.0.0/104")}), nserr.BadContext},
	} {
		t.Run(name, func(t *testing.T) {
			if c.spoil != nil {
				c.spoil(&c.wire)
			}
			err := c.wire.Validate()
			if (c.want == nil && err != nil) || (c.want != nil && !errors.Is(err, c.want)) {
				t.Errorf("error is %v, want %v", err, c.want)
			}
		})
	}
}

func route(dst, via string) func(*plan.Wire) {
	return func(w *plan.Wire) { w.Ends[0].Routes = []plan.Route{{Dst: prefix(dst), Via: addr(via)}} }
}

func policy(p plan.Policy) func(*plan.Wire) {
	return func(w *plan.Wire) { w.Ends[0].Policies = []plan.Policy{p} }
}

func TestConflict(t *testing.T) {
	w, seen := vethWire(), nothing(vethWire())
	if err := plan.Conflict(w, seen); err != nil {
		t.Error(err)
	}
	seen.Ends[1].Taken = true
	if err := plan.Conflict(w, seen); !errors.Is(err, nserr.NameTaken) || !strings.Contains(err.Error(), "nsm-7") {
		t.Errorf("error is %v, want NameTaken for nsm-7", err)
	}
}

func TestMAC(t *testing.T) {
	a, b := plan.MAC("u2", plan.Client), plan.MAC("u2", plan.Endpoint)
	if a.String() != plan.MAC("u2", plan.Client).String() || a.String() == b.String() || a.String() == plan.MAC("u3", plan.Client).String() {
		t.Errorf("%v and %v are not stable and distinct", a, b)
	}
	for _, mac := range []net.HardwareAddr{a, b} {
		if mac[0]&3 != 2 {
			t.Errorf("%v is not a local unicast address", mac)
		}
	}
}

func TestMTU(t *testing.T) {
	v4, v6 := addr("192.0.2.1"), addr("2001:db8::1")
	for _, c := range []struct {
		uplink int
		kind   plan.Kind
		outer  netip.Addr
		want   int
	}{
		{1500, plan.KindVXLAN, v4, 1446}, {1500, plan.KindVXLAN, v6, 1426},
		{1500, plan.KindWireGuard, v4, 1440}, {1500, plan.KindWireGuard, v6, 1420},
		{1500, plan.KindVeth, v4, 1500}, {50, plan.KindVXLAN, v4, 0},
		{1500, plan.KindVXLAN, addr("::ffff:192.0.2.1"), 1446},
	} {
		if got := plan.TunnelMTU(c.uplink, c.kind, c.outer); got != c.want {
			t.Errorf("%s over %d to %v: %d, want %d", c.kind, c.uplink, c.outer, got, c.want)
		}
	}
	for _, c := range [][3]int{{0, 0, 0}, {0, 1400, 1400}, {1400, 0, 1400}, {1500, 1400, 1400}, {1400, 1500, 1400}} {
		if got := plan.MinMTU(c[0], c[1]); got != c[2] {
			t.Errorf("MinMTU(%d, %d) is %d, want %d", c[0], c[1], got, c[2])
		}
	}
}

// A wire in the tunnel takes no more than its underlay does, also when WireGuard has padded
// the packet to sixteen bytes.
func TestSharedMTU(t *testing.T) {
	v4, v6 := addr("192.0.2.1"), addr("2001:db8::1")
	for _, c := range []struct {
		uplink  int
		payload string
		outer   netip.Addr
		want    int
	}{
		{1500, plan.IP, v4, 1420}, {1500, plan.Ethernet, v4, 1402},
		{1500, plan.IP, v6, 1388}, {1400, plan.IP, v4, 1308}, {70, plan.IP, v4, 0},
	} {
		if got := plan.SharedMTU(c.uplink, c.payload, c.outer); got != c.want {
			t.Errorf("%s over %d to %v: %d, want %d", c.payload, c.uplink, c.outer, got, c.want)
		}
	}
	for uplink := 1280; uplink < 1520; uplink++ {
		padded := (plan.SharedMTU(uplink, plan.IP, v4) + 20 + 15) / 16 * 16
		if over := uplink - 60 - padded; over < 0 || over > 15 {
			t.Errorf("over %d there are %d bytes left", uplink, over)
		}
		if got := plan.UplinkMTU(plan.TunnelMTU(uplink, plan.KindVXLAN, v6), plan.KindVXLAN, v6); got != uplink {
			t.Errorf("what fits over %d is told to fit over %d", uplink, got)
		}
	}
	if got := plan.UplinkMTU(0, plan.KindVXLAN, v4); got != 0 {
		t.Errorf("what is not known is %d", got)
	}
}

func TestWires(t *testing.T) {
	wires := plan.Wires([]plan.Found{ // namespaces are found in any order
		{Tag: plan.Tag{Owner: "f", ID: "1", Side: plan.Endpoint}, NetNS: "4:2", Name: "c", LinkKind: "veth"},
		{Tag: plan.Tag{Owner: "f", ID: "2", Side: plan.Client}, NetNS: "4:1", Name: "b", LinkKind: "tun"},
		{Tag: plan.Tag{Owner: "f", ID: "1", Side: plan.Client}, NetNS: "4:1", Name: "a", LinkKind: "veth"},
	})
	want := []plan.Wire{
		{ID: "1", Owner: "f", Kind: plan.KindVeth, Ends: []plan.End{
			{NetNS: "4:1", Name: "a", Side: plan.Client}, {NetNS: "4:2", Name: "c", Side: plan.Endpoint},
		}},
		{ID: "2", Owner: "f", Kind: plan.KindWireGuard, Ends: []plan.End{{NetNS: "4:1", Name: "b", Side: plan.Client}}},
	}
	if !reflect.DeepEqual(wires, want) {
		t.Errorf("got %+v, want %+v", wires, want)
	}
}

func FuzzParseTag(f *testing.F) {
	for _, s := range []string{"", "nsm:", "nsm:f:u1:c", "nsm:f:a:b:e", "nsm::u:c", "nsm:f::c", "nsm:f:u", "server-x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if tag, ok := plan.ParseTag(s); ok && tag.String() != s {
			t.Errorf("%q became %+v, which is %q", s, tag, tag)
		}
	})
}

// BenchmarkDiff is a wire that is to be made, and one that is as it should be.
func BenchmarkDiff(b *testing.B) {
	w := vethWire()
	k := memkernel.New(w.Owner)
	if _, err := k.Apply(b.Context(), w); err != nil {
		b.Fatal(err)
	}
	made, err := k.Observe(b.Context(), w)
	if err != nil {
		b.Fatal(err)
	}
	for name, seen := range map[string]plan.Observed{"new": nothing(w), "unchanged": made} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if steps := plan.Diff(w, seen); (len(steps) == 0) != (name == "unchanged") {
					b.Fatalf("%d steps", len(steps))
				}
			}
		})
	}
}

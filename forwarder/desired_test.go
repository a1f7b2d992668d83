// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"net"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/forwarder/kernel/memkernel"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
)

func localLeg(space, name string) *leg {
	return &leg{mech: mechanism.Kernel{Name: name}.With(mechanism.Mechanism{}), space: space, name: name}
}

func vxlanLeg() *leg {
	return &leg{
		mech: mechanism.VXLAN{}.With(mechanism.Mechanism{}), vni: 7, mtu: 1446,
		local: netip.MustParseAddrPort("192.0.2.1:4789"), remote: netip.MustParseAddrPort("192.0.2.2:4789"),
	}
}

func wireGuardLeg() *leg {
	return &leg{
		mech: mechanism.WireGuard{}.With(mechanism.Mechanism{}), mtu: 1440,
		local: netip.MustParseAddrPort("192.0.2.1:51820"), remote: netip.MustParseAddrPort("192.0.2.2:51821"),
		keys: mechanism.KeyPair{Private: mechanism.Key{1}}, peer: mechanism.Key{2},
	}
}

func connectionOf(payload string, ip *networkservice.IPContext, mtu uint32) *networkservice.Connection {
	return &networkservice.Connection{Id: "u", Payload: payload, Context: &networkservice.ConnectionContext{IpContext: ip, MTU: mtu}}
}

func prefixesOf(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// Each side gets its half of the context, and a tunnel has the end that is here.
func TestDesired(t *testing.T) {
	ip := &networkservice.IPContext{
		SrcIpAddrs: []string{"10.0.0.1/32", "fd00::1"}, DstIpAddrs: []string{"10.0.0.0/32", "fd00::/128"},
		SrcRoutes: []*networkservice.Route{{Prefix: "10.0.0.0/32"}, {Prefix: "172.16.5.1/12"}, {Prefix: "172.30.0.0/16", NextHop: "10.0.0.9"}},
		DstRoutes: []*networkservice.Route{{Prefix: "fd00::1"}},
		Policies:  []*networkservice.PolicyRoute{{Proto: "tcp", DstPort: "80-90"}},
	}
	addr := netip.MustParseAddr
	client := plan.End{
		NetNS: "4:1", Name: "nsm-1", Side: plan.Client, MTU: 1300, Addrs: prefixesOf("10.0.0.1/32", "fd00::1/128"),
		Routes: []plan.Route{
			{Dst: netip.MustParsePrefix("10.0.0.0/32")}, // a host route to the other end has link scope
			{Dst: netip.MustParsePrefix("172.16.0.0/12"), Via: addr("10.0.0.0"), OnLink: true},
			{Dst: netip.MustParsePrefix("172.30.0.0/16"), Via: addr("10.0.0.9"), OnLink: true},
		},
		Policies: []plan.Policy{{
			Proto: "tcp", DstPort: plan.PortRange{From: 80, To: 90},
			Routes: []plan.Route{
				{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: addr("10.0.0.0"), OnLink: true},
				{Dst: netip.MustParsePrefix("::/0"), Via: addr("fd00::"), OnLink: true},
			},
		}},
	}
	endpoint := plan.End{
		NetNS: "4:2", Name: "db-1", Side: plan.Endpoint, MTU: 1300, Addrs: prefixesOf("10.0.0.0/32", "fd00::/128"),
		Routes: []plan.Route{{Dst: netip.MustParsePrefix("fd00::1/128")}},
	}
	for _, tt := range []struct {
		name        string
		left, right *leg
		payload     string
		want        plan.Wire
	}{
		{"veth", localLeg("4:1", "nsm-1"), localLeg("4:2", "db-1"), "IP",
			plan.Wire{ID: "u", Owner: "f", Kind: plan.KindVeth, Payload: plan.IP, Ends: []plan.End{client, endpoint}}},
		{"VXLAN at the client", localLeg("4:1", "nsm-1"), vxlanLeg(), "ETHERNET",
			plan.Wire{ID: "u", Owner: "f", Kind: plan.KindVXLAN, Payload: plan.Ethernet, Ends: []plan.End{client},
				VXLAN: &plan.VXLAN{VNI: 7, Local: addr("192.0.2.1"), Remote: addr("192.0.2.2"), Port: 4789}}},
		{"WireGuard at the endpoint", wireGuardLeg(), localLeg("4:2", "db-1"), "",
			plan.Wire{ID: "u", Owner: "f", Kind: plan.KindWireGuard, Payload: plan.IP, Ends: []plan.End{endpoint},
				WireGuard: &plan.WireGuard{PrivateKey: mechanism.Key{1}, Port: 51820, PeerKey: mechanism.Key{2}, Endpoint: netip.MustParseAddrPort("192.0.2.2:51821"), Keepalive: keepalive}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := desired("f", "u", tt.left, tt.right, connectionOf(tt.payload, ip, 1300))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
				cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
			if err := got.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A policy without source and routes sends both families to the other end.
func TestPolicyOfTwoFamilies(t *testing.T) {
	four := plan.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.0.0.0"), OnLink: true}
	six := plan.Route{Dst: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd00::"), OnLink: true}
	for name, tt := range map[string]struct {
		src, dst []string
		from     string
		want     []plan.Route
	}{
		"both":               {src: []string{"10.0.0.1", "fd00::1"}, dst: []string{"10.0.0.0", "fd00::"}, want: []plan.Route{four, six}},
		"the client has one": {src: []string{"10.0.0.1"}, dst: []string{"10.0.0.0", "fd00::"}, want: []plan.Route{four}},
		"the other has one":  {src: []string{"10.0.0.1", "fd00::1"}, dst: []string{"fd00::"}, want: []plan.Route{six}},
		"a source":           {src: []string{"10.0.0.1", "fd00::1"}, dst: []string{"10.0.0.0", "fd00::"}, from: "fd00::/64", want: []plan.Route{six}},
		"everything":         {src: []string{"10.0.0.1", "fd00::1"}, dst: []string{"10.0.0.0", "fd00::"}, from: "0.0.0.0/0", want: []plan.Route{four}},
	} {
		ip := &networkservice.IPContext{SrcIpAddrs: tt.src, DstIpAddrs: tt.dst, Policies: []*networkservice.PolicyRoute{{From: tt.from}}}
		w, err := desired("f", "u", localLeg("4:1", "c"), localLeg("4:2", "e"), connectionOf("IP", ip, 0))
		if err != nil || !slices.Equal(w.Ends[0].Policies[0].Routes, tt.want) {
			t.Errorf("%s: %+v, %v; want the routes %v", name, w, err, tt.want)
		}
	}
}

// Both ends learn the neighbours of the context, each those that it is not itself.
func TestNeighbors(t *testing.T) {
	neighbor := func(ip string, last byte) plan.Neighbor {
		return plan.Neighbor{IP: netip.MustParseAddr(ip), MAC: net.HardwareAddr{2, 0, 0, 0, 0, last}}
	}
	ip := &networkservice.IPContext{
		SrcIpAddrs: []string{"10.0.0.1/24"}, DstIpAddrs: []string{"10.0.0.2/24"},
		IpNeighbors: []*networkservice.IpNeighbor{
			{Ip: "10.0.0.1", HardwareAddress: "02:00:00:00:00:01"},
			{Ip: "10.0.0.2", HardwareAddress: "02:00:00:00:00:02"},
			{Ip: "10.0.0.3", HardwareAddress: "02:00:00:00:00:03"},
		},
	}
	w, err := desired("f", "u", localLeg("4:1", "c"), localLeg("4:2", "e"), connectionOf("ETHERNET", ip, 0))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]plan.Neighbor{
		{neighbor("10.0.0.2", 2), neighbor("10.0.0.3", 3)},
		{neighbor("10.0.0.1", 1), neighbor("10.0.0.3", 3)},
	} {
		if diff := cmp.Diff(want, w.Ends[i].Neighbors, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("end %d: %s", i, diff)
		}
	}
}

// The MTU is the least that anybody knows of, and the answer says it.
func TestDesiredMTU(t *testing.T) {
	for _, tt := range []struct {
		name  string
		right *leg
		asked uint32
		want  uint32
	}{
		{"nobody asks", localLeg("4:2", "e"), 0, defaultMTU},
		{"somebody asks", localLeg("4:2", "e"), 9000, 9000},
		{"the tunnel", wireGuardLeg(), 0, 1440},
		{"the tunnel takes less", wireGuardLeg(), 9000, 1440},
		{"somebody wants less", wireGuardLeg(), 1300, 1300},
	} {
		c := connectionOf("IP", nil, tt.asked)
		w, err := desired("f", "u", localLeg("4:1", "c"), tt.right, c)
		if err != nil || c.GetContext().GetMTU() != tt.want || w.Ends[0].MTU != int(tt.want) {
			t.Errorf("%s: context %d, link %v, want %d (%v)", tt.name, c.GetContext().GetMTU(), w.Ends, tt.want, err)
		}
	}
}

// Whatever an endpoint answers: what passes the checks where it comes in can be
// configured, a second time without a step, and removed without a trace.
func FuzzDesired(f *testing.F) {
	for _, c := range []*networkservice.Connection{
		{},
		connectionOf("ETHERNET", &networkservice.IPContext{SrcIpAddrs: []string{"10.0.0.1", "10.0.0.1/32"}, DstIpAddrs: []string{"fd00::1"}}, 9000),
		connectionOf("IP", &networkservice.IPContext{
			SrcIpAddrs: []string{"10.0.0.1/24"}, DstIpAddrs: []string{"10.0.0.2"},
			SrcRoutes:   []*networkservice.Route{{Prefix: "0.0.0.0/0"}, {Prefix: "::/0", NextHop: "fd00::9"}, {Prefix: "0.0.0.0/0", NextHop: "10.0.0.7"}},
			Policies:    []*networkservice.PolicyRoute{{From: "10.0.0.1", Proto: "17", SrcPort: "1-9"}, {From: "fd00::/64"}},
			IpNeighbors: []*networkservice.IpNeighbor{{Ip: "10.0.0.2", HardwareAddress: "02:00:00:00:00:01"}},
		}, 1280),
	} {
		raw, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		for shape := range uint8(4) {
			f.Add(raw, shape)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, shape uint8) {
		c := new(networkservice.Connection)
		if proto.Unmarshal(raw, c) != nil || hop.Validate(c) != nil {
			return
		}
		left, right := localLeg("4:1", "c"), localLeg("4:2", "e")
		switch shape % 4 {
		case 1:
			right = vxlanLeg()
		case 2:
			right = wireGuardLeg()
		case 3:
			left = wireGuardLeg()
		}
		w, err := desired("f", "u", left, right, c)
		if err == nil {
			err = w.Validate()
		}
		if err != nil {
			switch nserr.From(err).Reason {
			case nserr.MTUTooSmall, nserr.PayloadMismatch: // known only with the addresses, and with the legs
			default:
				t.Errorf("%v\npassed hop.Validate, and then: %v", c, err)
			}
			return
		}
		k := memkernel.New("f")
		if _, err := k.Apply(t.Context(), w); err != nil {
			t.Fatalf("%+v cannot be applied: %v", w, err)
		}
		if steps, err := k.Apply(t.Context(), w); err != nil || len(steps) != 0 {
			t.Errorf("%+v is applied again in steps %v, %v", w, steps, err)
		}
		if err := k.Remove(t.Context(), w); err != nil || k.Links() != 0 || k.Rules() != 0 {
			t.Errorf("%d links and %d rules are left of %+v: %v", k.Links(), k.Rules(), w, err)
		}
	})
}

// What a wire leaves is known in whatever order its ends were found and even if one was
// not; and whether it may stay until packets take another way.
func TestLeaving(t *testing.T) {
	client, endpoint := plan.End{NetNS: "4:1", Side: plan.Client}, plan.End{NetNS: "4:2", Side: plan.Endpoint}
	moved := plan.End{NetNS: "4:3", Side: plan.Endpoint}
	swapped := []plan.End{{NetNS: "4:2", Side: plan.Client}, {NetNS: "4:1", Side: plan.Endpoint}}
	wire := func(kind plan.Kind, ends ...plan.End) plan.Wire { return plan.Wire{Kind: kind, Ends: ends} }
	vxlan := func(vni uint32, end plan.End) plan.Wire {
		return plan.Wire{Kind: plan.KindVXLAN, VXLAN: &plan.VXLAN{VNI: vni}, Ends: []plan.End{end}}
	}
	tunnel := func(number uint32, end plan.End) plan.Wire {
		return plan.Wire{Kind: plan.KindTunnel, Tunnel: &plan.Tunnel{Wire: number}, Ends: []plan.End{end}}
	}
	want := wire(plan.KindVeth, client, endpoint)
	for name, tt := range map[string]struct {
		has, want plan.Wire
		leaves    []plan.End
		besides   bool
	}{
		"the same":                  {want, want, nil, true},
		"in another order":          {wire(plan.KindVeth, endpoint, client), want, nil, true},
		"one end not found":         {wire(plan.KindVeth, endpoint), want, nil, true},
		"an end has moved":          {wire(plan.KindVeth, client, moved), want, []plan.End{moved}, true},
		"the sides have":            {wire(plan.KindVeth, swapped...), want, swapped, true},
		"another kind of wire":      {wire(plan.KindVXLAN, client), want, nil, true},
		"another kind, elsewhere":   {wire(plan.KindWireGuard, moved), want, []plan.End{moved}, true},
		"VXLAN elsewhere":           {vxlan(1, moved), vxlan(2, endpoint), []plan.End{moved}, true},
		"with its VNI":              {vxlan(1, moved), vxlan(1, endpoint), []plan.End{moved}, false},
		"with a VNI not known":      {wire(plan.KindVXLAN, moved), vxlan(1, endpoint), []plan.End{moved}, false},
		"WireGuard elsewhere":       {wire(plan.KindWireGuard, moved), wire(plan.KindWireGuard, endpoint), []plan.End{moved}, false},
		"in the tunnel elsewhere":   {tunnel(1, moved), tunnel(2, endpoint), []plan.End{moved}, true},
		"with its number":           {tunnel(1, moved), tunnel(1, endpoint), []plan.End{moved}, false},
		"with a number not known":   {wire(plan.KindTunnel, moved), tunnel(1, endpoint), []plan.End{moved}, false},
		"from it, and elsewhere":    {wire(plan.KindTunnel, moved), wire(plan.KindWireGuard, endpoint), []plan.End{moved}, false},
		"to VXLAN, and elsewhere":   {wire(plan.KindTunnel, moved), vxlan(1, endpoint), []plan.End{moved}, true},
		"WireGuard where it stands": {wire(plan.KindWireGuard, moved), wire(plan.KindWireGuard, moved), nil, true},
	} {
		rest := leaving(tt.has, tt.want)
		if !reflect.DeepEqual(rest.Ends, tt.leaves) && len(rest.Ends)+len(tt.leaves) > 0 {
			t.Errorf("%s: it leaves %+v", name, rest.Ends)
		}
		if got := besides(rest, tt.want); got != tt.besides {
			t.Errorf("%s: besides is %v", name, got)
		}
	}
}

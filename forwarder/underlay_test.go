// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"net/netip"
	"testing"

	"github.com/openvwire/nsm/forwarder/plan"
)

func TestHitBy(t *testing.T) {
	u := underlay{
		prefix: netip.MustParsePrefix("10.88.0.1/24"),
		needed: []netip.Addr{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("fd88::2")},
	}
	via := func(dst string) plan.End { return plan.End{Routes: []plan.Route{{Dst: netip.MustParsePrefix(dst)}}} }
	at := func(addr string) plan.End { return plan.End{Addrs: prefixesOf(addr)} }
	policy := func(p plan.Policy, dst ...string) plan.End {
		for _, d := range prefixesOf(dst...) {
			p.Routes = append(p.Routes, plan.Route{Dst: d})
		}
		return plan.End{Policies: []plan.Policy{p}}
	}
	from := func(prefix string) plan.Policy { return plan.Policy{From: netip.MustParsePrefix(prefix)} }
	for name, tt := range map[string]struct {
		end       plan.End
		what, hit string
	}{
		"nothing":                       {end: plan.End{}},
		"addresses of their own":        {end: at("10.60.0.1/32")},
		"own tunnel address":            {at("10.88.0.1/32"), "address 10.88.0.1/32", "10.88.0.1/24"},
		"one of the underlay":           {at("10.88.0.200/32"), "address 10.88.0.200/32", "10.88.0.1/24"},
		"the address of another node":   {via("10.88.0.2/32"), "route 10.88.0.2/32", "10.88.0.1/24"},
		"a half of the underlay":        {via("10.88.0.0/25"), "route 10.88.0.0/25", "10.88.0.1/24"},
		"as specific":                   {via("10.88.0.0/24"), "route 10.88.0.0/24", "10.88.0.1/24"},
		"less specific":                 {end: via("10.0.0.0/8")},
		"a node behind a router":        {via("192.0.2.0/24"), "route 192.0.2.0/24", "192.0.2.7, which is reached by way of 10.88.0.1/24"},
		"everything":                    {via("0.0.0.0/0"), "route 0.0.0.0/0", "192.0.2.7, which is reached by way of 10.88.0.1/24"},
		"a node of the other family":    {via("fd88::/64"), "route fd88::/64", "fd88::2, which is reached by way of 10.88.0.1/24"},
		"a network of the other family": {end: via("fd60::/64")},
		"policy for all":                {policy(plan.Policy{}, "10.0.0.0/8"), "policy route 10.0.0.0/8", "10.88.0.1/24"}, // before the main table
		"policy for all, default":       {policy(plan.Policy{}), "the policy route", "10.88.0.1/24"},
		"policy for what is not ours":   {end: policy(plan.Policy{}, "10.60.0.0/24")},
		"policy from the wire":          {end: policy(from("10.60.0.1/32"), "0.0.0.0/0")},
		"policy from the node":          {policy(from("10.88.0.0/16"), "0.0.0.0/0"), "policy route 0.0.0.0/0", "10.88.0.1/24"},
		"policy for pings":              {end: policy(plan.Policy{Proto: "icmp"}, "0.0.0.0/0")},
		"policy for a port":             {end: policy(plan.Policy{Proto: "tcp", DstPort: plan.PortRange{From: 80, To: 80}}, "0.0.0.0/0")},
		"policy for UDP":                {policy(plan.Policy{Proto: "17"}, "0.0.0.0/0"), "policy route 0.0.0.0/0", "10.88.0.1/24"},
	} {
		t.Run(name, func(t *testing.T) {
			if what, hit := u.hitBy(tt.end); what != tt.what || hit != tt.hit {
				t.Errorf("%q covers %q, want %q and %q", what, hit, tt.what, tt.hit)
			}
		})
	}
}

func TestHostOf(t *testing.T) {
	for url, want := range map[string]string{
		"tcp://10.88.0.2:5001": "10.88.0.2", "tcp://[fd88::2]:5001": "fd88::2", "tcp://[::ffff:10.88.0.2]:1": "10.88.0.2",
		"tcp://localhost:5002": "", "tcp://127.0.0.1:5002": "", "unix:///run/nsm.sock": "", "inode://4/99": "", "": "", "%": "",
	} {
		if got, ok := hostOf(url); ok != (want != "") || ok && got != netip.MustParseAddr(want) {
			t.Errorf("%q: %v, %v, want %q", url, got, ok, want)
		}
	}
}

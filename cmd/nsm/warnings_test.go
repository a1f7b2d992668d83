// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
)

// A wire on which everything stands as it should is warned of when what it sends does
// not come back, and the ports of its tunnel are named then.
func TestWarnings(t *testing.T) {
	const passed = "UDP has passed between 10.88.0.1:51820 and [fd00::2]:51821, in both directions (WIREGUARD): " +
		"WireGuard had a handshake 12s ago; if it still does, see whether the workload of the endpoint answers"
	const ports = "UDP must pass between 10.88.0.1:51820 and [fd00::2]:51821, in both directions (WIREGUARD)"
	legs := []*adminv1.WireLeg{
		{Type: "KERNEL"},
		{From: "fwd-a", To: "fwd-b", Type: "WIREGUARD", Parameters: map[string]string{"src_ip": "10.88.0.1", "src_port": "51820", "dst_ip": "fd00::2", "dst_port": "51821"}},
		{Type: "KERNEL"},
	}
	link := func(kind string, sent, received uint64) *adminv1.Link {
		return &adminv1.Link{Name: "nsm-1", Kind: kind, Namespace: "4:1", Index: 7, Counters: &adminv1.Counters{TxPackets: sent, RxPackets: received}}
	}
	guard := func(sent uint64, handshake time.Duration, keepalive time.Duration) *adminv1.WireGuard {
		w := &adminv1.WireGuard{Endpoint: "10.88.0.2:51820", TxBytes: sent, Keepalive: durationpb.New(keepalive)}
		if handshake > 0 {
			w.LastHandshake = ago(handshake)
		}
		return w
	}
	for _, tt := range []struct {
		name   string
		first  *adminv1.Link
		second *adminv1.Link
		guard  *adminv1.WireGuard
		code   string
		want   []string
	}{
		{name: "all is well", first: link("vxlan", 10, 10), second: link("vxlan", 15, 15)},
		{name: "nothing is sent", first: link("vxlan", 10, 0), second: link("vxlan", 10, 0)},
		{name: "a router solicitation or two", first: link("tunnel", 10, 3), second: link("tunnel", 12, 3)},
		{"a few that somebody sends", link("tunnel", 10, 3), link("tunnel", 13, 3), nil, "",
			[]string{"forwarder fwd-a: 3 packets were sent through nsm-1 within 1s, and none was received", ports}},
		{name: "only looked at once", first: link("vxlan", 10, 0)},
		{name: "a wire on this node", first: link("veth", 10, 0), second: link("veth", 20, 0)},
		{"nothing comes back", link("vxlan", 10, 3), link("vxlan", 15, 3), nil, "",
			[]string{"forwarder fwd-a: 5 packets were sent through nsm-1 within 1s, and none was received", ports}},
		{"never a handshake", link("tun", 0, 0), nil, guard(1480, 0, 0), "",
			[]string{"forwarder fwd-a: WireGuard has sent 1480 bytes to 10.88.0.2:51820 and has never had a handshake", ports}},
		{name: "nobody has tried", first: link("tun", 0, 0), guard: guard(0, 0, 0)},
		{name: "a handshake just now", first: link("wireguard", 0, 0), guard: guard(9, time.Minute, 25*time.Second)},
		{"an old handshake", link("wireguard", 0, 0), nil, guard(9, 5*time.Minute, 25*time.Second), "",
			[]string{"forwarder fwd-a: WireGuard has had no handshake with 10.88.0.2:51820 for 5m", ports}},
		{name: "an old handshake of what sends nothing", first: link("wireguard", 0, 0), guard: guard(9, 5*time.Minute, 0)},
		{name: "the client says so, and the tunnel is well", guard: guard(9, 12*time.Second, 0), code: nserr.NoPackets.Code, want: []string{passed}},
		{name: "the client says so, and the tunnel was well long ago", guard: guard(9, 5*time.Minute, 0), code: nserr.NoPackets.Code, want: []string{ports}},
		{"nothing comes back through a tunnel that is well", link("tunnel", 10, 3), link("tunnel", 15, 3), guard(9, 12*time.Second, 0), "",
			[]string{"forwarder fwd-a: 5 packets were sent through nsm-1 within 1s, and none was received", passed}},
		{name: "the client says so", code: nserr.NoPackets.Code, want: []string{ports}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &adminv1.WireDescription{Summary: wire("3f2a", "WIREGUARD"), Legs: legs}
			d.Summary.LastError = tt.code
			k := &adminv1.KernelObjects{Forwarder: "fwd-a", Wireguard: tt.guard}
			d.Kernel = []*adminv1.KernelObjects{{Forwarder: "fwd-b", Error: "away"}, k}
			if tt.first != nil {
				k.Links = []*adminv1.Link{tt.first}
			}
			var again *adminv1.WireDescription
			if tt.second != nil {
				again = proto.CloneOf(d)
				again.Kernel[1].Links[0] = tt.second
			}
			if got := warnings(d, again, time.Now()); !slices.Equal(got, tt.want) {
				t.Errorf("warns %q, want %q", got, tt.want)
			}
			if wants := tt.first != nil && tt.first.Kind != "veth"; worthASecondLook(d) != wants {
				t.Errorf("a second look: %v", !wants)
			}
		})
	}
}

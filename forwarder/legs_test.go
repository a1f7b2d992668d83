// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc/peer"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
)

// What a peer says to be its node's address is not this node's, whatever leads there, in
// Requests and answers; but for loopback, which nodes of one machine may share.
func TestOwnAddress(t *testing.T) {
	key := mechanism.NewPrivateKey().Public()
	for _, tt := range []struct {
		own, theirs string
		ok          bool
	}{
		{"10.0.0.1", "10.0.0.2", true},
		{"10.0.0.1", "10.0.0.1", false},
		{"10.0.0.1", "::ffff:10.0.0.1", false},
		{"10.0.0.1", "127.0.0.1", true},
		{"fd00::1", "fd00::1", false},
		{"127.0.0.1", "127.0.0.1", true},
	} {
		own := netip.MustParseAddr(tt.own)
		at := mechanism.Tunnel{Src: netip.AddrPortFrom(own, 4789), Dst: netip.AddrPortFrom(own, 4789)}
		for name, m := range map[string]mechanism.Mechanism{
			"VXLAN":     mechanism.VXLAN{Tunnel: at, VNI: 7}.With(mechanism.Mechanism{}),
			"WIREGUARD": mechanism.WireGuard{Tunnel: at, SrcKey: key, DstKey: key}.With(mechanism.Mechanism{}),
		} {
			for _, shared := range []bool{false, true} {
				f := &Forwarder{
					config:  Config{TunnelIP: own, NoTunnel: true},
					log:     slog.New(slog.DiscardHandler),
					numbers: newNumbers(51820, func(uint16) bool { return true }),
				}
				f.uplink.Store(1500)
				f.tunnel.peers = make(map[uint32]*claimant)
				half := mechanism.Shared{}
				if shared {
					half = mechanism.Shared{Key: key, Port: 51820, Node: 1, Wire: 2}
				}
				asked, told := m.WithShared(half, mechanism.Shared{}), m.WithShared(half, half)
				asked.Params["src_ip"], told.Params["dst_ip"] = tt.theirs, tt.theirs

				call := &hop.Call{Conn: &networkservice.Connection{Id: "id"}}
				left, err := f.openLeftWith(t.Context(), &wire{}, call, asked)
				if tt.ok != (err == nil) || !tt.ok && !errors.Is(err, nserr.BadMechanism) {
					t.Errorf("%s at %s, asked by %s, in the tunnel: %v: %v", name, tt.own, tt.theirs, shared, err)
				}
				left.holds.release()

				right := &leg{mech: told, tunnel: &plan.Tunnel{Own: plan.TunnelNode{ID: 9}}}
				err = f.acceptRight(t.Context(), &wire{}, right, &networkservice.Connection{Mechanism: hop.MechanismMessage(told)}, &peer.Peer{})
				if tt.ok != (err == nil) || !tt.ok && !errors.Is(err, nserr.BadAnswer) {
					t.Errorf("%s at %s, answered by %s, in the tunnel: %v: %v", name, tt.own, tt.theirs, shared, err)
				}
				right.holds.release()
			}
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/nserr"
)

func newKey(t testing.TB) wgtypes.Key {
	t.Helper()
	k, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// apply is what the kernel and wireguard-go do with a configuration.
func apply(dev wgtypes.Device, set wgtypes.Config) wgtypes.Device {
	if set.PrivateKey != nil {
		dev.PrivateKey = *set.PrivateKey
	}
	if set.ListenPort != nil {
		dev.ListenPort = *set.ListenPort
	}
	var peers []wgtypes.Peer
	if !set.ReplacePeers {
		peers = append(peers, dev.Peers...)
	}
	for _, p := range set.Peers {
		if !p.UpdateOnly {
			peers = append(peers, wgtypes.Peer{PublicKey: p.PublicKey})
		}
		for i := range peers {
			if peers[i].PublicKey != p.PublicKey {
				continue
			}
			if p.Endpoint != nil {
				peers[i].Endpoint = p.Endpoint
			}
			if p.PersistentKeepaliveInterval != nil {
				peers[i].PersistentKeepaliveInterval = *p.PersistentKeepaliveInterval
			}
			if p.ReplaceAllowedIPs {
				peers[i].AllowedIPs = nil
			}
			peers[i].AllowedIPs = append(peers[i].AllowedIPs, p.AllowedIPs...)
		}
	}
	dev.Peers = peers
	return dev
}

func TestChanges(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	own, peer, stranger := newKey(t), newKey(t).PublicKey(), newKey(t).PublicKey()
	want := plan.WireGuard{PrivateKey: own, Port: 51820, PeerKey: peer,
		Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), Keepalive: 10 * time.Second}
	done := func(change func(*wgtypes.Device)) wgtypes.Device {
		d := apply(wgtypes.Device{}, wgtypes.Config{PrivateKey: &own, ListenPort: ptr(51820), ReplacePeers: true, Peers: []wgtypes.PeerConfig{wholePeer(want)}})
		d.Peers[0].LastHandshakeTime = now.Add(-time.Minute)
		change(&d)
		return d
	}
	elsewhere := &net.UDPAddr{IP: net.IPv4(203, 0, 113, 9), Port: 40000}
	for name, tt := range map[string]struct {
		seen                    wgtypes.Device
		needed, port, sessionOK bool // sessionOK: the peer is not replaced
	}{
		"new":           {wgtypes.Device{}, true, true, false},
		"done":          {done(func(*wgtypes.Device) {}), false, false, true},
		"other key":     {done(func(d *wgtypes.Device) { d.PrivateKey = newKey(t) }), true, false, true},
		"other port":    {done(func(d *wgtypes.Device) { d.ListenPort = 1 }), true, true, true},
		"other peer":    {done(func(d *wgtypes.Device) { d.Peers[0].PublicKey = stranger }), true, false, false},
		"one peer more": {done(func(d *wgtypes.Device) { d.Peers = append(d.Peers, wgtypes.Peer{PublicKey: stranger}) }), true, false, false},
		"keepalive":     {done(func(d *wgtypes.Device) { d.Peers[0].PersistentKeepaliveInterval = 0 }), true, false, true},
		"no IPv6":       {done(func(d *wgtypes.Device) { d.Peers[0].AllowedIPs = d.Peers[0].AllowedIPs[:1] }), true, false, true},
		"moved, alive":  {done(func(d *wgtypes.Device) { d.Peers[0].Endpoint = elsewhere }), false, false, true},
		"moved, long dead": {done(func(d *wgtypes.Device) {
			d.Peers[0].Endpoint = elsewhere
			d.Peers[0].LastHandshakeTime = now.Add(-time.Hour)
		}), true, false, true},
		"no endpoint yet": {done(func(d *wgtypes.Device) { d.Peers[0].Endpoint = nil; d.Peers[0].LastHandshakeTime = time.Time{} }), true, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			set, needed := changes(want, &tt.seen, now)
			if needed != tt.needed || (set.ListenPort != nil) != tt.port || set.ReplacePeers == tt.sessionOK {
				t.Errorf("changes = %+v, %t", set, needed)
			}
			reached := apply(tt.seen, set)
			if again, needed := changes(want, &reached, now); needed {
				t.Errorf("not reached: still %+v", again)
			}
			if got := statusOf(&reached); name != "moved, alive" && got.WireGuard != want {
				t.Errorf("reached %+v, want %+v", got.WireGuard, want)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

// A zero port or endpoint means no opinion.
func TestChangesLeavesOpenWhatIsOpen(t *testing.T) {
	own, peer := newKey(t), newKey(t).PublicKey()
	want := plan.WireGuard{PrivateKey: own, PeerKey: peer}
	seen := apply(wgtypes.Device{ListenPort: 40000}, wgtypes.Config{PrivateKey: &own, ReplacePeers: true, Peers: []wgtypes.PeerConfig{wholePeer(want)}})
	seen.Peers[0].Endpoint = &net.UDPAddr{IP: net.IPv6loopback, Port: 7}
	if set, needed := changes(want, &seen, time.Now()); needed {
		t.Errorf("changes = %+v", set)
	}
}

func TestCheckKeys(t *testing.T) {
	own, peer := newKey(t), newKey(t).PublicKey()
	for name, wg := range map[string]plan.WireGuard{
		"no private key": {PeerKey: peer},
		"no peer key":    {PrivateKey: own},
		"own key":        {PrivateKey: own, PeerKey: own.PublicKey()},
	} {
		if err := check(wg); !errors.Is(err, nserr.BadMechanism) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := check(plan.WireGuard{PrivateKey: own, PeerKey: peer}); err != nil {
		t.Error(err)
	}
}

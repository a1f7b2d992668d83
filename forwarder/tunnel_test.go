// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc/peer"

	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Of another node's key, id and address the first who tells is believed, as long as there
// are wires to it. Whoever tells something else gets no wire in the tunnel, and changes
// nothing for those who have one.
func TestClaim(t *testing.T) {
	const a, b, evil = "spiffe://nsm.local/node/a", "spiffe://nsm.local/node/b", "spiffe://nsm.local/node/evil"
	own := mechanism.NewKeyPair()
	peer := func(key byte, id uint32, at string) plan.TunnelPeer {
		return plan.TunnelPeer{Key: [32]byte{key}, ID: id, Endpoint: netip.MustParseAddrPort(at), Wire: 9}
	}
	honest := peer(1, 1, "10.0.0.1:51820")
	for name, tt := range map[string]struct {
		told  plan.TunnelPeer
		whose string
		ok    bool
	}{
		"the same, from the same":             {honest, a, true},
		"the same, from another":              {honest, b, true},
		"another node":                        {peer(2, 2, "10.0.0.2:51820"), b, true},
		"another wire":                        {plan.TunnelPeer{Key: honest.Key, ID: honest.ID, Endpoint: honest.Endpoint, Wire: 1}, a, true},
		"it has moved, as it says":            {peer(1, 1, "10.0.0.9:51820"), a, true},
		"it has moved, as another says":       {peer(1, 1, "10.0.0.66:51820"), evil, false},
		"its id with another key":             {peer(6, 1, "10.0.0.1:51820"), evil, false},
		"its id with another key, as it says": {peer(6, 1, "10.0.0.1:51820"), a, false},
		"its key with another id":             {peer(1, 6, "10.0.0.1:51820"), evil, false},
		"this node's id":                      {peer(6, 77, "10.0.0.66:51820"), evil, false},
		"this node's key":                     {plan.TunnelPeer{Key: own.Public, ID: 6, Endpoint: honest.Endpoint}, evil, false},
	} {
		t.Run(name, func(t *testing.T) {
			tunnel := tunnel{own: plan.TunnelNode{PrivateKey: own.Private, Port: 51820, ID: 77}, keys: own, peers: make(map[uint32]*claimant)}
			first, err := tunnel.claim(honest, a)
			if err != nil {
				t.Fatal(err)
			}
			second, err := tunnel.claim(tt.told, tt.whose)
			if tt.ok != (err == nil) || !tt.ok && (!errors.Is(err, errClaimed) || !errors.Is(err, nserr.BadMechanism)) {
				t.Fatalf("claimed: %v", err)
			}
			if !tt.ok {
				if c := tunnel.peers[1]; c.peer.Endpoint != honest.Endpoint || c.peer.Key != honest.Key || c.whose != a {
					t.Errorf("the first claim has become %+v", c)
				}
			} else {
				second()
			}
			first()
			first() // counts once
			if len(tunnel.peers) != 0 {
				t.Errorf("%d nodes are left without a wire", len(tunnel.peers))
			}
			if release, err := tunnel.claim(peer(1, 1, "10.0.0.66:51820"), evil); err != nil {
				t.Errorf("nobody has a claim any more: %v", err)
			} else {
				release()
			}
		})
	}
}

// One identity is a few nodes at a time, whatever it says; who is refused has a place again as
// soon as one of them has no wire any more. What it has told already may be told again, and
// nobody else notices.
func TestClaimOfMany(t *testing.T) {
	const a, evil = "spiffe://nsm.local/node/a", "spiffe://nsm.local/node/evil"
	type step struct {
		whose string
		id    uint32 // of the node, and its key
		end   bool   // the last wire to it ends; else one is wanted
		ok    bool
	}
	claims := func(whose string, n int) (out []step) {
		for i := range n {
			out = append(out, step{whose: whose, id: uint32(i + 1), ok: true})
		}
		return out
	}
	for name, steps := range map[string][]step{
		"as many as allowed":      claims(evil, maxNodes),
		"one more":                append(claims(evil, maxNodes), step{whose: evil, id: 50}, step{whose: evil, id: 51}),
		"another wire to one":     append(claims(evil, maxNodes), step{whose: evil, id: 1, ok: true}),
		"somebody else":           append(claims(evil, maxNodes), step{whose: a, id: 50, ok: true}),
		"one that another told":   append(claims(evil, maxNodes), step{whose: a, id: 50, ok: true}, step{whose: evil, id: 50, ok: true}),
		"an old wire has expired": append(claims(a, maxNodes), step{whose: a, id: 50}, step{id: 1, end: true}, step{whose: a, id: 50, ok: true}),
		"restarts, wires follow": append(claims(a, 2), step{id: 1, end: true}, step{whose: a, id: 3, ok: true}, step{id: 2, end: true},
			step{whose: a, id: 4, ok: true}, step{id: 3, end: true}, step{whose: a, id: 5, ok: true}, step{whose: a, id: 6, ok: true}),
	} {
		t.Run(name, func(t *testing.T) {
			tunnel := tunnel{own: plan.TunnelNode{ID: 77}, keys: mechanism.NewKeyPair(), peers: make(map[uint32]*claimant)}
			releases := make(map[uint32]func())
			for i, s := range steps {
				if s.end {
					releases[s.id]()
					continue
				}
				had := len(tunnel.peers)
				release, err := tunnel.claim(plan.TunnelPeer{Key: [32]byte{byte(s.id)}, ID: s.id, Endpoint: netip.MustParseAddrPort("10.0.0.1:51820")}, s.whose)
				if s.ok != (err == nil) || !s.ok && (!errors.Is(err, errClaimed) || !errors.Is(err, nserr.BadMechanism) || len(tunnel.peers) != had) {
					t.Fatalf("step %d: %v, %d nodes after %d", i, err, len(tunnel.peers), had)
				}
				if err == nil {
					releases[s.id] = release
				}
			}
		})
	}
}

// Only managers and forwarders are believed, if somebody says who they are.
func TestWhoMayTunnel(t *testing.T) {
	const manager, workload = "spiffe://nsm.local/node/a/manager", "spiffe://nsm.local/node/a/uid/1000"
	peer := plan.TunnelPeer{Key: [32]byte{1}, ID: 1, Endpoint: netip.MustParseAddrPort("10.0.0.1:51820"), Wire: 9}
	f := &Forwarder{config: Config{MayTunnel: func(id string) bool { return id == manager }}}
	f.tunnel.peers = make(map[uint32]*claimant)
	for _, senders := range [][]string{{workload}, {manager, workload}, {workload, manager}} {
		if _, err := f.claim(peer, senders...); !errors.Is(err, errClaimed) || !errors.Is(err, nserr.NotAllowed) || len(f.tunnel.peers) > 0 {
			t.Errorf("%q: %v, %d nodes", senders, err, len(f.tunnel.peers))
		}
	}
	if _, err := f.claim(peer, manager); err != nil || f.tunnel.peers[1].whose != "spiffe://nsm.local/node/a" {
		t.Errorf("a manager: %v, %+v", err, f.tunnel.peers[1])
	}
	f.config.MayTunnel = nil
	if _, err := f.claim(peer, workload); err != nil {
		t.Errorf("nobody says who may: %v", err)
	}
}

// An answer with a half of a tunnel that was not offered makes no sense.
func TestTunnelNotOffered(t *testing.T) {
	f := &Forwarder{}
	half := mechanism.Shared{Key: mechanism.NewPrivateKey().Public(), Port: 51820, Node: 1, Wire: 2}
	m := mechanism.WireGuard{Tunnel: mechanism.Tunnel{Dst: netip.MustParseAddrPort("10.0.0.2:51820")}, DstKey: half.Key}.With(mechanism.Mechanism{})
	for name, spoil := range map[string]func(*leg) *networkservice.Mechanism{
		"nothing offered": func(*leg) *networkservice.Mechanism {
			return hop.MechanismMessage(m.WithShared(mechanism.Shared{}, half))
		},
		"a half of a half": func(l *leg) *networkservice.Mechanism {
			l.tunnel = &plan.Tunnel{}
			answer := hop.MechanismMessage(m.WithShared(half, half))
			delete(answer.Parameters, "dst_tunnel_id")
			return answer
		},
		"no address": func(l *leg) *networkservice.Mechanism {
			l.tunnel = &plan.Tunnel{}
			answer := hop.MechanismMessage(m.WithShared(half, half))
			delete(answer.Parameters, "dst_ip")
			return answer
		},
	} {
		l := &leg{mech: m}
		got := &networkservice.Connection{Mechanism: spoil(l)}
		if err := f.acceptRight(t.Context(), nil, l, got, &peer.Peer{}); !errors.Is(err, nserr.BadAnswer) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNodeOf(t *testing.T) {
	for id, want := range map[string]string{
		"spiffe://nsm.local/node/a/manager":   "spiffe://nsm.local/node/a",
		"spiffe://nsm.local/node/a/forwarder": "spiffe://nsm.local/node/a",
		"spiffe://nsm.local/node/a/uid/0":     "spiffe://nsm.local/node/a",
		"spiffe://other/node/a/manager":       "spiffe://other/node/a",
		"spiffe://nsm.local/node/a/uid/1000":  "spiffe://nsm.local/node/a/uid/1000",
		"spiffe://nsm.local/payments":         "spiffe://nsm.local/payments",
		"":                                    "",
	} {
		if got := nodeOf(id); got != want {
			t.Errorf("%q speaks for %q, want %q", id, got, want)
		}
	}
}

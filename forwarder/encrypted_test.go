// SPDX-License-Identifier: Apache-2.0

package forwarder

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/openvwire/nsm/forwarder/kernel/memkernel"
	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
)

// A wire without the tunnel is refused only where encryption is demanded, and only if it
// would be VXLAN. The error says why it is not in the tunnel, and how to fix it.
func TestWithoutTunnel(t *testing.T) {
	for _, tt := range []struct {
		mechanism         string
		encrypted, refuse bool
	}{
		{mechanism.TypeVXLAN, true, true},
		{mechanism.TypeVXLAN, false, false},
		{mechanism.TypeWireGuard, true, false},
		{mechanism.TypeWireGuard, false, false},
		{mechanism.TypeKernel, true, false},
	} {
		for _, why := range []error{nserr.Unsupported.Errorf("no device"), nserr.AddressInUse.Errorf("no port"), errors.New("no luck")} {
			f := &Forwarder{config: Config{Name: "fwd-a", Encrypted: tt.encrypted}, log: slog.Default()}
			err := f.withoutTunnel("id", tt.mechanism, why)
			if errors.Is(err, nserr.NotEncrypted) != tt.refuse || (err != nil) != tt.refuse {
				t.Errorf("%s, encryption demanded: %v, %v: %v", tt.mechanism, tt.encrypted, why, err)
			}
			if err == nil {
				continue
			}
			for _, says := range []string{"fwd-a", nserr.From(why).Msg, "--wireguard-tunnel", "--wireguard=userspace"} {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("%q does not say %q", err, says)
				}
			}
		}
	}
}

// An answer that is not in the tunnel, or in that of a node which is not believed, is refused
// where the wire would be in the clear. Else a claim that is refused is tried again without
// the tunnel, for which errClaimed stands.
func TestAnswerWithoutTunnel(t *testing.T) {
	at := netip.MustParseAddrPort("10.0.0.2:4789")
	half := mechanism.Shared{Key: mechanism.NewPrivateKey().Public(), Port: 51820, Node: 1, Wire: 2}
	vxlan := mechanism.VXLAN{Tunnel: mechanism.Tunnel{Src: at, Dst: at}, VNI: 7}.With(mechanism.Mechanism{})
	wireGuard := mechanism.WireGuard{Tunnel: mechanism.Tunnel{Src: at, Dst: at}, DstKey: half.Key}.With(mechanism.Mechanism{})
	in := func(m mechanism.Mechanism) mechanism.Mechanism { return m.WithShared(half, half) }
	for _, tt := range []struct {
		name      string
		answer    mechanism.Mechanism
		encrypted bool
		want      error // nil: accepted
	}{
		{"ETHERNET, not accepted", vxlan, true, nserr.NotEncrypted},
		{"ETHERNET, not accepted, allowed", vxlan, false, nil},
		{"IP, not accepted", wireGuard, true, nil},
		{"ETHERNET, not believed", in(vxlan), true, nserr.NotEncrypted},
		{"ETHERNET, not believed, allowed", in(vxlan), false, errClaimed},
		{"IP, not believed", in(wireGuard), true, errClaimed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &Forwarder{
				config:  Config{Name: "fwd-a", Encrypted: tt.encrypted, MayTunnel: func(string) bool { return false }},
				numbers: newNumbers(51820, func(uint16) bool { return true }),
			}
			l := &leg{mech: tt.answer, tunnel: &plan.Tunnel{Own: plan.TunnelNode{ID: 9}}}
			got := &networkservice.Connection{Mechanism: hop.MechanismMessage(tt.answer)}
			err := f.acceptRight(t.Context(), nil, l, got, &grpcpeer.Peer{})
			if !errors.Is(err, tt.want) {
				t.Fatalf("%v, want %v", err, tt.want)
			}
			if tt.want == nserr.NotEncrypted && (errors.Is(err, errClaimed) || nserr.From(err).Reason != nserr.NotEncrypted) {
				t.Errorf("%v would be tried again, or has another reason", err)
			}
			l.holds.release()
		})
	}
}

// adopting is a forwarder that has adopted what there is.
func adopting(t *testing.T, k Kernel, encrypted bool) *Forwarder {
	t.Helper()
	table, err := netns.NewTable()
	if err != nil {
		t.Fatal(err)
	}
	peers := peer.NewPool(peer.PoolConfig{})
	f, err := New(Config{
		Name: "f", Kernel: k, Namespaces: table, Peers: peers, Sockets: rpc.NewSockets(), Encrypted: encrypted,
		Tokens:   func(*x509.Certificate) (string, time.Time, error) { return "", time.Time{}, nil },
		Registry: new(grpc.ClientConn), // nobody asks it
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Stop()
		peers.Close()
		table.Close()
	})
	if err := f.Adopt(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	return f
}

// Of what an earlier life has left, what is in the clear is removed at once where encryption
// is demanded, whenever it is found; all else stays.
func TestAdoptInClear(t *testing.T) {
	for _, tt := range []struct {
		link      string // its kind
		encrypted bool
		gone      bool
	}{
		{"vxlan", true, true},
		{"vxlan", false, false},
		{"veth", true, false},
		{"wireguard", true, false},
		{"tun", true, false},
		{plan.LinkTunnel, true, false},
	} {
		for _, late := range []bool{false, true} {
			name := tt.link
			if tt.encrypted {
				name += ", encryption demanded"
			}
			if late {
				name += ", found late"
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					links := []plan.Found{{Tag: plan.Tag{Owner: "f", ID: "u", Side: plan.Client}, NetNS: "n", Name: "nsm-1", LinkKind: tt.link, Hidden: true}}
					k := &leftBehind{Kernel: memkernel.New("f"), removed: make(chan plan.Wire, 2)}
					if !late {
						k.found = links
					}
					f := adopting(t, k, tt.encrypted)
					if late {
						k.found = links
						f.Prune(t.Context())
					}
					if gone := len(k.removed) == 1; gone != tt.gone || len(f.wires.IDs()) == 1 == tt.gone {
						t.Errorf("removed: %v, wires %q", gone, f.wires.IDs())
					}
				})
			})
		}
	}
}

// stubborn is a kernel that does not let go at first.
type stubborn struct {
	*leftBehind
	refusals int
}

func (k *stubborn) Remove(ctx context.Context, w plan.Wire) error {
	if k.refusals > 0 {
		k.refusals--
		return nserr.KernelFailed.Errorf("busy")
	}
	return k.leftBehind.Remove(ctx, w)
}

// What is in the clear, and cannot be removed, is tried again, and not kept until its time.
func TestAdoptInClearStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &stubborn{refusals: 2, leftBehind: &leftBehind{Kernel: memkernel.New("f"), removed: make(chan plan.Wire, 2), found: []plan.Found{
			{Tag: plan.Tag{Owner: "f", ID: "u", Side: plan.Client}, NetNS: "n", Name: "nsm-1", LinkKind: "vxlan", Hidden: true},
		}}}
		f := adopting(t, k, true)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(k.removed) != 1 || f.wires.Len() != 0 {
			t.Errorf("%d wires removed, %d known", len(k.removed), f.wires.Len())
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package mechanism

import (
	"errors"
	"maps"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/openvwire/nsm/sdk/nserr"
)

func someHalf() Shared {
	return Shared{Key: NewPrivateKey().Public(), Port: 51820, Node: 1<<32 - 1, Wire: 7}
}

// An offer says all that a wire of its own needs as well; an answer that accepts leaves
// it out, and one that does not leaves the tunnel out.
func TestSharedOfferAndAnswer(t *testing.T) {
	near, far := someHalf(), someHalf()
	plain := WireGuard{
		Tunnel: Tunnel{Src: netip.MustParseAddrPort("10.0.0.1:51821"), MTU: 1440}, SrcKey: NewPrivateKey().Public(),
	}.With(Mechanism{Params: map[string]string{"unknown": "kept"}})
	offer := plain.WithShared(near, Shared{})
	if offer.IsShared() || offer.Shown() != TypeWireGuard {
		t.Error("an offer is no answer")
	}
	if src, dst, err := offer.Shared(); err != nil || src != near || !dst.IsZero() {
		t.Errorf("offered %+v and %+v, %v", src, dst, err)
	}
	if w, err := offer.WireGuard(); err != nil || w.SrcKey.IsZero() || w.Src.Port() != 51821 {
		t.Errorf("without a tunnel: %+v, %v", w, err)
	}
	answer := offer.WithShared(near, far)
	if src, dst, err := answer.Shared(); err != nil || src != near || dst != far {
		t.Errorf("answered %+v and %+v, %v", src, dst, err)
	}
	if w, err := answer.WireGuard(); err != nil || !w.SrcKey.IsZero() || w.Src.Port() != 0 || w.MTU != 1440 {
		t.Errorf("what is left of the wire's own: %+v, %v", w, err)
	}
	if !answer.IsShared() || answer.Shown() != TypeShared || answer.Params["unknown"] != "kept" {
		t.Errorf("answer is %v", answer)
	}
	if diff := cmp.Diff(plain, offer.WithShared(Shared{}, Shared{})); diff != "" {
		t.Errorf("without the tunnel: %s", diff)
	}
}

func TestSharedRefuses(t *testing.T) {
	whole := Mechanism{Type: TypeVXLAN}.WithShared(someHalf(), someHalf()).Params
	for _, key := range []string{"src_tunnel_public_key", "src_tunnel_port", "dst_tunnel_id", "dst_tunnel_wire"} {
		for _, value := range []string{"", "0", "-1", "4294967296", "x", Key{}.String()} {
			params := maps.Clone(whole)
			params[key] = value
			if _, _, err := (Mechanism{Type: TypeVXLAN, Params: params}).Shared(); !errors.Is(err, nserr.BadMechanism) {
				t.Errorf("%s=%q: %v", key, value, err)
			}
		}
	}
}

func FuzzShared(f *testing.F) {
	h := someHalf()
	f.Add(h.Key.String(), "51820", "17", "4")
	f.Add("", "", "", "")
	f.Add(h.Key.String(), "65536", "0", "")
	f.Fuzz(func(t *testing.T, key, port, node, wire string) {
		m := Mechanism{Type: TypeWireGuard, Params: map[string]string{
			"src_tunnel_public_key": key, "src_tunnel_port": port, "src_tunnel_id": node, "src_tunnel_wire": wire,
		}}
		src, dst, err := m.Shared()
		if err != nil {
			if !errors.Is(err, nserr.BadMechanism) {
				t.Fatal(err)
			}
			return
		}
		if !dst.IsZero() || !src.IsZero() && (src.Port == 0 || src.Node == 0 || src.Wire == 0 || src.Key.IsZero()) {
			t.Fatalf("read %+v and %+v", src, dst)
		}
		again, _, err := m.WithShared(src, Shared{}).Shared()
		if err != nil || again != src {
			t.Fatalf("%+v is written as %+v, %v", src, again, err)
		}
	})
}

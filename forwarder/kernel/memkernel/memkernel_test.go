// SPDX-License-Identifier: Apache-2.0

package memkernel_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/openvwire/nsm/forwarder/kernel/memkernel"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/nserr"
)

func veth(id string) plan.Wire {
	return plan.Wire{ID: id, Kind: plan.KindVeth, Payload: plan.IP, Ends: []plan.End{
		{NetNS: "4:1", Name: "c-" + id, Side: plan.Client, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}},
		{NetNS: "4:2", Name: "e-" + id, Side: plan.Endpoint},
	}}
}

func TestNamespaceVanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := memkernel.New("fwd")
		if _, err := k.Apply(t.Context(), veth("u1")); err != nil {
			t.Fatal(err)
		}
		k.DeleteNamespace("4:1")
		if n := k.Links(); n != 0 {
			t.Errorf("%d links left: a pair dies with either namespace", n)
		}
		if _, err := k.Apply(t.Context(), veth("u1")); !errors.Is(err, nserr.NoNetNS) {
			t.Errorf("Apply: %v, want NoNetNS", err)
		}
		if err := k.Remove(t.Context(), veth("u1")); err != nil {
			t.Errorf("Remove: %v", err)
		}
	})
}

func TestErrors(t *testing.T) {
	k := memkernel.New("fwd")
	k.AddLink("4:2", "e-u1")
	if _, err := k.Apply(t.Context(), veth("u1")); !errors.Is(err, nserr.NameTaken) {
		t.Errorf("taken: %v, want NameTaken", err)
	}
	bad := veth("u2")
	bad.Ends[0].Name = "a/b"
	if _, err := k.Apply(t.Context(), bad); !errors.Is(err, nserr.BadName) {
		t.Errorf("name: %v, want BadName", err)
	}
	k.Fail = func(s plan.Step) error {
		if _, ok := s.(plan.AddAddr); ok {
			return errors.New("injected")
		}
		return nil
	}
	if _, err := k.Apply(t.Context(), veth("u3")); !errors.Is(err, nserr.KernelFailed) {
		t.Errorf("injected: %v, want KernelFailed", err)
	}
	if n := k.Links(); n != 1 {
		t.Errorf("%d links, want the stranger's alone", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Apply(ctx, veth("u4")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestTunnels(t *testing.T) {
	k := memkernel.New("fwd")
	vxlan := plan.Wire{ID: "u1", Kind: plan.KindVXLAN, Payload: plan.Ethernet,
		VXLAN: &plan.VXLAN{VNI: 5, Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddr("192.0.2.2"), Port: 4789},
		Ends:  []plan.End{{NetNS: "4:1", Name: "nsm-1", Side: plan.Client}}}
	if _, err := k.Apply(t.Context(), vxlan); err != nil {
		t.Fatal(err)
	}
	vxlan.ID, vxlan.Ends = "u2", []plan.End{{NetNS: "4:2", Name: "nsm-1", Side: plan.Client}}
	if _, err := k.Apply(t.Context(), vxlan); !errors.Is(err, nserr.KernelFailed) {
		t.Errorf("the same VNI: %v, want KernelFailed", err)
	}
	wg := plan.Wire{ID: "u3", Kind: plan.KindWireGuard, Payload: plan.IP,
		WireGuard: &plan.WireGuard{PrivateKey: [32]byte{1}, PeerKey: [32]byte{2}, Port: 51821},
		Ends:      []plan.End{{NetNS: "4:1", Name: "nsm-2", Side: plan.Client}}}
	if !k.PortFree(51821) {
		t.Error("port 51821 is not free")
	}
	if _, err := k.Apply(t.Context(), wg); err != nil {
		t.Fatal(err)
	}
	if k.PortFree(51821) {
		t.Error("port 51821 is free")
	}
	key, port, ok := k.WireGuardKey(t.Context(), "4:1", "u3")
	if key != wg.WireGuard.PrivateKey || port != 51821 || !ok {
		t.Errorf("key %v, port %d, %v", key, port, ok)
	}
	if _, _, ok := k.WireGuardKey(t.Context(), "4:1", "u1"); ok {
		t.Error("a key for a wire without WireGuard")
	}
}

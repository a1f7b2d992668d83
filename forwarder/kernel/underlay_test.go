// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/openvwire/nsm/sdk/nserr"
)

func TestUnderlay(t *testing.T) {
	a, b := newNode(t, "fwd"), newNode(t, "fwd")
	connect(t, a, b)
	for _, addr := range []string{"172.16.0.1", "fd16::1"} {
		if mtu, err := a.UnderlayMTU(netip.MustParseAddr(addr)); err != nil || mtu != 1500 {
			t.Errorf("MTU of the link with %s is %d, %v", addr, mtu, err)
		}
	}
	for _, prefix := range []string{"172.16.0.1/24", "fd16::1/64"} {
		want := netip.MustParsePrefix(prefix)
		if got, err := a.UnderlayPrefix(want.Addr()); err != nil || got != want {
			t.Errorf("prefix of %s is %s, %v", want.Addr(), got, err)
		}
	}
	if _, err := a.UnderlayMTU(netip.MustParseAddr("172.16.0.2")); !errors.Is(err, nserr.BadFlag) {
		t.Errorf("an address of the other node: %v, want BadFlag", err)
	}

	var c net.PacketConn
	err := a.table.Self().Do(func() (err error) {
		c, err = net.ListenPacket("udp", "172.16.0.1:51820")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if a.PortFree(51820) || !a.PortFree(51821) || !b.PortFree(51820) {
		t.Error("a port in use is free, or one that is free is not")
	}
}

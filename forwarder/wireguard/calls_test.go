// SPDX-License-Identifier: Apache-2.0

package wireguard

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/openvwire/nsm/forwarder/plan"
)

// Who calls, so that not both do.
func TestWhoCalls(t *testing.T) {
	never, once := &wgtypes.Peer{}, &wgtypes.Peer{LastHandshakeTime: time.Now()}
	for name, tt := range map[string]struct {
		seen    *wgtypes.Peer
		lost    bool
		awaited bool
		calls   bool // this node has asked
		own     uint32
		want    caller
	}{
		"this node has asked":                {nil, false, false, true, 1, ownCall},
		"the other one has asked":            {nil, false, false, false, 1, peerCalls},
		"the holder has died":                {nil, true, false, false, 1, ownCall},
		"it has asked for another wire":      {never, false, true, false, 1, peerCalls},
		"both have asked, this has the turn": {never, false, true, true, 1, ownCall},
		"both have asked, the other has it":  {never, false, true, true, 3, peerCalls},
		"it has called":                      {once, false, true, true, 1, nobodyCalls},
		"this node has called":               {never, false, false, true, 1, nobodyCalls},
		"there is a session":                 {once, false, false, false, 1, nobodyCalls},
	} {
		want := plan.Tunnel{Own: plan.TunnelNode{ID: tt.own}, Peer: plan.TunnelPeer{ID: 2}, Calls: tt.calls}
		if got := whoCalls(want, tt.seen, tt.lost, tt.awaited); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// Who was asked, and has lost what it knew, which the other one has not, calls: at once, if its
// forwarder has seen that, else when it is not called.
func TestTunnelNotCalled(t *testing.T) {
	a, b := newTunnel(t)
	far := b.add(t, b.to(a, 1, false), false, "172.16.1.2")
	near := a.add(t, a.to(b, 1, true), false, "172.16.1.1")
	c := dial(t, near.ns, echo(t, far.ns, far.addr))
	roundTrip(t, c, "at first")
	tunnel, _, err := b.backend.device(t.Context())
	must(t, err)
	peer := key(a.own.PrivateKey).PublicKey()
	lose := func() {
		must(t, b.backend.wg.ConfigureDevice(tunnel.UAPI, wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: peer, Remove: true}}}))
	}
	// Until it has called, and the other one has heard of it, packets go in the session that is lost.
	answered := func() bool {
		must(t, c.SetDeadline(time.Now().Add(100*time.Millisecond)))
		_, err := c.Write([]byte("in the next session"))
		must(t, err)
		_, err = c.Read(make([]byte, 2048))
		return err == nil
	}
	waitForAnswer := func() {
		t.Helper()
		for start := time.Now(); !answered(); {
			if time.Since(start) > 10*callPatience {
				t.Fatal("it does not call")
			}
		}
	}
	lose()
	must(t, b.backend.PointWire(t.Context(), far.ns.Key(), far.tag, b.to(a, 1, false)))
	if got := b.device(t).Peers; len(got) != 1 || got[0].Endpoint == nil {
		t.Errorf("peers %v: it is to call at once", got)
	}
	waitForAnswer()

	lose()
	b.backend.peers.mu.Lock()
	b.backend.peers.waitNoMoreLocked(peer) // as a forwarder that has started anew
	delete(b.backend.peers.given, peer)
	b.backend.peers.mu.Unlock()
	must(t, b.backend.PointWire(t.Context(), far.ns.Key(), far.tag, b.to(a, 1, false)))
	if got := b.device(t).Peers; len(got) != 1 || got[0].Endpoint != nil {
		t.Errorf("peers %v: it is to wait for a call first", got)
	}
	if s, found, err := b.backend.ReadWire(t.Context(), far.ns.Key(), far.tag); err != nil || !found || s.Peer != b.to(a, 1, false).Peer {
		t.Errorf("meanwhile the wire is seen as %+v, %v, %v", s, found, err)
	}
	waitForAnswer()
	if p := b.device(t).Peers[0]; p.PersistentKeepaliveInterval != tunnelKeepalive {
		t.Errorf("keepalive %v", p.PersistentKeepaliveInterval)
	}
}

// Who gets no answer calls again, sooner than WireGuard by itself: which calls each 5 s, so that
// the fourth would come after 15 s.
func TestTunnelCallsAgain(t *testing.T) {
	for name, asked := range map[string]bool{"it has asked": false, "it was asked": true} {
		t.Run(name, func(t *testing.T) {
			a, b := newTunnel(t)
			var deaf *net.UDPConn
			must(t, b.table.Self().Do(func() (err error) {
				deaf, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.underlay4, 7)))
				return err
			}))
			defer deaf.Close()
			want := a.to(b, 1, !asked)
			want.Peer.Endpoint = deaf.LocalAddr().(*net.UDPAddr).AddrPort()
			a.add(t, want, false, "172.16.1.1")
			start := time.Now()
			for calls := 0; calls < 4; {
				must(t, deaf.SetReadDeadline(start.Add(12*time.Second)))
				buf := make([]byte, 2048)
				n, err := deaf.Read(buf)
				if err != nil {
					t.Fatalf("it has called %d times: %v", calls, err)
				}
				if n == 148 && buf[0] == 1 { // a handshake's initiation (wireguard.com/protocol)
					calls++
				}
			}
		})
	}
}

// Calls that meet are in vain, or leave a session in which one side hears nothing, as happens
// when the holder of who has asked stands still for longer than the other one is patient. That is
// over before WireGuard would call again, after 5 s, or give up the session, after 15 s.
func TestTunnelCallsMeet(t *testing.T) {
	a, b := newTunnel(t)
	status, err := a.backend.Holder().Status(t.Context())
	must(t, err)
	for number := uint32(1); number <= 6; number++ {
		near := a.add(t, a.to(b, number, true), false, "172.16.1.1")
		tunnel, _, err := a.backend.device(t.Context())
		must(t, err)
		a.backend.peers.mu.Lock()
		a.backend.peers.waitNoMoreLocked(key(b.own.PrivateKey).PublicKey())
		must(t, a.backend.setPeers(tunnel, wgtypes.PeerConfig{PublicKey: key(b.own.PrivateKey).PublicKey(), Remove: true}))
		a.backend.peers.mu.Unlock()

		far := b.add(t, b.to(a, number, false), false, "172.16.1.2")
		c := dial(t, near.ns, echo(t, far.ns, far.addr))
		must(t, unix.Kill(status.PID, unix.SIGSTOP))
		pointed := make(chan error, 1)
		go func() {
			a.backend.peers.mu.Lock()
			defer a.backend.peers.mu.Unlock()
			pointed <- a.backend.setPeer(tunnel, a.to(b, number, true), nil)
		}()
		<-time.After(callPatience * 13 / 10)
		must(t, unix.Kill(status.PID, unix.SIGCONT))
		start := time.Now()
		must(t, <-pointed)
		for answered := false; !answered; {
			must(t, c.SetDeadline(time.Now().Add(20*time.Millisecond)))
			_, err := c.Write([]byte("hello"))
			must(t, err)
			_, err = c.Read(make([]byte, 2048))
			answered = err == nil
			if time.Since(start) > 4500*time.Millisecond {
				t.Fatalf("wire %d carries nothing", number)
			}
		}
		t.Logf("wire %d carries packets after %v", number, time.Since(start))
		must(t, a.backend.Delete(t.Context(), near.ns.Key(), near.ns, ifname, near.tag))
		must(t, b.backend.Delete(t.Context(), far.ns.Key(), far.ns, ifname, far.tag))
	}
}

// A peer is heard when something has come beside the handshake.
func TestHeard(t *testing.T) {
	handshakes := []int64{0, 92, 148, 148 + 92}
	for _, h := range handshakes {
		if heard(h) {
			t.Errorf("%d bytes are a handshake's", h)
		}
		for data := int64(32); data < 1<<12; data += 16 {
			if h > 0 && !heard(h+data) {
				t.Errorf("not heard after a handshake of %d bytes and %d of data", h, data)
			}
		}
	}
}

// One that answers is called once.
func TestTunnelCalledOnce(t *testing.T) {
	a, b := newTunnel(t)
	far := b.add(t, b.to(a, 1, false), false, "172.16.1.2")
	near := a.add(t, a.to(b, 1, true), false, "172.16.1.1")
	roundTrip(t, dial(t, near.ns, echo(t, far.ns, far.addr)), "at first")
	first := a.device(t).Peers[0].LastHandshakeTime
	for _, e := range []*end{a, b} {
		for start := time.Now(); ; {
			e.backend.peers.mu.Lock()
			pending := len(e.backend.peers.pending)
			e.backend.peers.mu.Unlock()
			if pending == 0 {
				break
			}
			if time.Since(start) > 10*callPatience {
				t.Fatal("it is waited for still")
			}
			<-time.After(10 * time.Millisecond)
		}
	}
	if last := a.device(t).Peers[0].LastHandshakeTime; first.IsZero() || !last.Equal(first) {
		t.Errorf("the session of %v is now one of %v", first, last)
	}
}

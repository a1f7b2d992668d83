// SPDX-License-Identifier: Apache-2.0

package outage_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/lab/blackhole"
	"github.com/openvwire/nsm/internal/nstest"
	"github.com/openvwire/nsm/test/heal/outage"
)

func TestMain(m *testing.M) { nstest.MainWith(m, "github.com/openvwire/nsm/cmd/nsm") }

const port = 7

func newLab(t *testing.T) (from, to *lab.Node) {
	t.Helper()
	l, err := lab.New(t.Context(), lab.Config{Binary: nstest.Program(), Nodes: []string{"a", "b"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l.Node("a"), l.Node("b")
}

func serve(t *testing.T, n *lab.Node) *outage.Server {
	t.Helper()
	s, err := outage.Serve(n.NetNS, port)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// An interruption is as long as it was, and none is none.
func TestInterruption(t *testing.T) {
	a, b := newLab(t)
	server := serve(t, b)
	defer server.Close()
	to := netip.AddrPortFrom(b.Addr, port)
	ping, err := outage.Ping(a.NetNS, to)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := outage.Stream(t.Context(), a.NetNS, to)
	if err != nil {
		t.Fatal(err)
	}
	flowing := func() {
		t.Helper()
		if err := ping.Flowing(t.Context(), 10); err != nil {
			t.Fatal(err)
		}
		if err := stream.Flowing(t.Context(), 10); err != nil {
			t.Fatal(err)
		}
	}
	flowing()
	hole, err := blackhole.Dig(b.NetNS, lab.Underlay, blackhole.All)
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(50 * time.Millisecond)
	if err := hole.Fill(); err != nil {
		t.Fatal(err)
	}
	flowing()
	ping.Begin() // and that is forgotten
	stream.Begin()
	flowing()

	const least = 300 * time.Millisecond
	if hole, err = blackhole.Dig(b.NetNS, lab.Underlay, blackhole.All); err != nil {
		t.Fatal(err)
	}
	dug := time.Now()
	<-time.After(least)
	lasted := time.Since(dug)
	if err := hole.Fill(); err != nil {
		t.Fatal(err)
	}
	flowing()
	p, s := ping.Stop(), stream.Stop()
	t.Logf("%v: ping %+v, stream %+v", lasted, p, s)
	if p.Gap < lasted-2*outage.Interval-p.Blind || p.Lost == 0 || p.Lost == p.Sent || p.Open || p.Resets != 0 {
		t.Errorf("%v: ping %+v", lasted, p)
	}
	if s.Gap < lasted-2*outage.Interval || s.Lost != 0 || s.Resets != 0 || s.Open {
		t.Errorf("%v: stream %+v", lasted, s)
	}
}

func TestNoInterruption(t *testing.T) {
	a, b := newLab(t)
	server := serve(t, b)
	defer server.Close()
	ping, err := outage.Ping(a.NetNS, netip.AddrPortFrom(b.Addr, port))
	if err != nil {
		t.Fatal(err)
	}
	if err := ping.Flowing(t.Context(), 30); err != nil {
		t.Fatal(err)
	}
	if p := ping.Stop(); p.Sent < 30 || p.Lost != 0 || p.Gap != 0 || p.Open {
		t.Errorf("ping %+v", p)
	}
}

// A server that dies and comes back costs a stream its connection.
func TestReset(t *testing.T) {
	a, b := newLab(t)
	server := serve(t, b)
	stream, err := outage.Stream(t.Context(), a.NetNS, netip.AddrPortFrom(b.Addr, port))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Flowing(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	server.Close()
	server = serve(t, b)
	defer server.Close()
	if err := stream.Flowing(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	if s := stream.Stop(); s.Resets == 0 || s.Why == "" || s.Open {
		t.Errorf("stream %+v", s)
	}
}

// What never ends is told.
func TestOpen(t *testing.T) {
	a, b := newLab(t)
	server := serve(t, b)
	ping, err := outage.Ping(a.NetNS, netip.AddrPortFrom(b.Addr, port))
	if err != nil {
		t.Fatal(err)
	}
	if err := ping.Flowing(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	server.Close()
	<-time.After(100 * time.Millisecond)
	if p := ping.Stop(); p.Lost == 0 || !p.Open || p.Gap == 0 {
		t.Errorf("ping %+v", p)
	}
}

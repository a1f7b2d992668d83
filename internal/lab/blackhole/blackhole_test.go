// SPDX-License-Identifier: Apache-2.0

package blackhole_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/openvwire/nsm/internal/lab"
	"github.com/openvwire/nsm/internal/lab/blackhole"
	"github.com/openvwire/nsm/internal/nstest"
)

func TestMain(m *testing.M) { nstest.MainWith(m, "github.com/openvwire/nsm/cmd/nsm") }

// A hole swallows what it is told to, in both directions and silently, as long
// as it is there.
func TestHole(t *testing.T) {
	l, err := lab.New(t.Context(), lab.Config{Binary: nstest.Program()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	a, b := l.Node("a"), l.Node("b")
	tcp := tcpPath(t, a, b)
	udp := udpPath(t, a, b)
	for _, tt := range []struct {
		kind     blackhole.Kind
		udp, tcp bool // pass
	}{
		{blackhole.UDP, false, true},
		{blackhole.TCP, true, false},
		{blackhole.All, false, false},
	} {
		t.Run(tt.kind.String(), func(t *testing.T) {
			check(t, "before", udp, true)
			hole, err := blackhole.Dig(b.NetNS, lab.Underlay, tt.kind)
			if err != nil {
				t.Fatal(err)
			}
			check(t, "UDP", udp, tt.udp)
			check(t, "TCP", tcp, tt.tcp)
			if err := hole.Fill(); err != nil {
				t.Fatal(err)
			}
			check(t, "UDP, the hole filled", udp, true)
			check(t, "TCP, the hole filled", tcp, true)
		})
	}
}

func check(t *testing.T, what string, path func(limit time.Duration) error, pass bool) {
	t.Helper()
	limit := 10 * time.Second
	if !pass {
		limit = 200 * time.Millisecond
	}
	switch err := path(limit); {
	case pass && err != nil:
		t.Errorf("%s: %v", what, err)
	case !pass && err == nil:
		t.Errorf("%s passes", what)
	case !pass && !errors.Is(err, os.ErrDeadlineExceeded):
		t.Errorf("%s: %v: the sender is not to be told", what, err)
	}
}

// tcpPath returns a function that sends a byte there and back.
func tcpPath(t *testing.T, from, to *lab.Node) func(time.Duration) error {
	t.Helper()
	var l net.Listener
	if err := to.NetNS.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(to.Addr, 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err == nil {
			echo(c)
		}
	}()
	var c net.Conn
	if err := from.NetNS.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", l.Addr().String(), 10*time.Second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	pending := false // a byte that was swallowed comes when the hole is filled
	return func(limit time.Duration) error {
		if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
			return err
		}
		if !pending {
			if _, err := c.Write([]byte{1}); err != nil {
				return err
			}
		}
		_, err := c.Read(make([]byte, 1))
		pending = err != nil
		return err
	}
}

func echo(c net.Conn) {
	defer c.Close()
	b := make([]byte, 64)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
}

// udpPath returns a function that sends datagrams there until one comes back.
func udpPath(t *testing.T, from, to *lab.Node) func(time.Duration) error {
	t.Helper()
	var far, near *net.UDPConn
	if err := to.NetNS.Do(func() (err error) {
		far, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Addr, 0)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			n, at, err := far.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = far.WriteToUDPAddrPort(b[:n], at)
		}
	}()
	if err := from.NetNS.Do(func() (err error) {
		near, err = net.DialUDP("udp", nil, far.LocalAddr().(*net.UDPAddr))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	return func(limit time.Duration) (err error) {
		for end := time.Now().Add(limit); ; {
			if _, err := near.Write([]byte{1}); err != nil {
				return err
			}
			if err := near.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
				return err
			}
			if _, err = near.Read(make([]byte, 64)); err == nil || time.Now().After(end) {
				return err
			}
		}
	}
}

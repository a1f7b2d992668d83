// SPDX-License-Identifier: Apache-2.0

package mux

import (
	"bytes"
	"crypto/rand"
	"io"
	"iter"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

func lines(s string) iter.Seq[string] { return strings.SplitSeq(s, "\n") }

// All that workloads send gets through, on both kinds of wire.
func TestTraffic(t *testing.T) {
	p := newPair(t)
	for _, ethernet := range []bool{false, true} {
		name := "IP"
		if ethernet {
			name = "ETHERNET"
		}
		t.Run(name, func(t *testing.T) {
			a, b := p.wire(t, ethernet)
			for _, to := range []netip.Addr{b.addr4, b.addr6} {
				t.Run(to.String(), func(t *testing.T) {
					for _, size := range []int{0, 1, 100, 1300, 8000, 65000} {
						udpEcho(t, a, b, to, size)
					}
					tcpEcho(t, a, b, to, 4<<20)
					ping(t, a, to)
				})
			}
		})
	}
}

// udpEcho sends a packet from a to b and expects it back.
func udpEcho(t testing.TB, a, b end, to netip.Addr, size int) {
	t.Helper()
	var server, client *net.UDPConn
	must(t, b.ns.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 7)))
		return err
	}))
	defer server.Close()
	must(t, a.ns.Do(func() (err error) {
		client, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 7)))
		return err
	}))
	defer client.Close()
	payload := make([]byte, size)
	_, _ = rand.Read(payload)
	must(t, client.SetDeadline(time.Now().Add(patience)))
	must(t, server.SetDeadline(time.Now().Add(patience)))
	_, err := client.Write(payload)
	must(t, err)
	buf := make([]byte, 1<<16)
	n, from, err := server.ReadFromUDPAddrPort(buf)
	must(t, err)
	_, err = server.WriteToUDPAddrPort(buf[:n], from)
	must(t, err)
	n, err = client.Read(buf)
	if err != nil {
		t.Fatalf("%d bytes: %v", size, err)
	}
	if !bytes.Equal(buf[:n], payload) {
		t.Errorf("%d bytes came back as %d others", size, n)
	}
}

// tcpEcho sends size bytes from a to b and back.
func tcpEcho(t *testing.T, a, b end, to netip.Addr, size int) {
	t.Helper()
	var l *net.TCPListener
	must(t, b.ns.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to, 7)))
		return err
	}))
	defer l.Close()
	var c *net.TCPConn
	must(t, a.ns.Do(func() (err error) {
		c, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(to, 7)))
		return err
	}))
	defer c.Close()
	done := make(chan error, 2)
	go func() {
		s, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer s.Close()
		_, err = io.Copy(struct{ io.Writer }{s}, struct{ io.Reader }{s}) // not by splice, which keeps pipes
		done <- err
	}()
	payload := make([]byte, size)
	_, _ = rand.Read(payload)
	must(t, c.SetDeadline(time.Now().Add(6*patience)))
	go func() {
		_, err := c.Write(payload)
		if err == nil {
			err = c.CloseWrite()
		}
		done <- err
	}()
	back, err := io.ReadAll(c)
	must(t, err)
	for range 2 {
		must(t, <-done)
	}
	if !bytes.Equal(back, payload) {
		t.Errorf("%d bytes came back as %d others", size, len(back))
	}
}

// ping sends an echo request from a and waits for the reply of the other kernel.
func ping(t *testing.T, a end, to netip.Addr) {
	t.Helper()
	network, own := "ip4:icmp", a.addr4
	request, reply := icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply)
	if to.Is6() {
		network, own, request, reply = "ip6:ipv6-icmp", a.addr6, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	var c *icmp.PacketConn
	must(t, a.ns.Do(func() (err error) {
		c, err = icmp.ListenPacket(network, own.String())
		return err
	}))
	defer c.Close()
	message := icmp.Message{Type: request, Body: &icmp.Echo{ID: 7, Seq: 1, Data: []byte("hello")}}
	raw, err := message.Marshal(nil) // the kernel makes the checksum of ICMPv6
	must(t, err)
	_, err = c.WriteTo(raw, &net.IPAddr{IP: to.AsSlice()})
	must(t, err)
	must(t, c.SetDeadline(time.Now().Add(patience)))
	buf := make([]byte, 1500)
	for {
		n, _, err := c.ReadFrom(buf)
		must(t, err)
		if got, err := icmp.ParseMessage(reply.Protocol(), buf[:n]); err == nil && got.Type == reply {
			return
		}
	}
}

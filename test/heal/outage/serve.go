// SPDX-License-Identifier: Apache-2.0

package outage

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/openvwire/nsm/internal/lab"
)

// Server answers pings and streams.
type Server struct {
	packets  *net.UDPConn
	listener net.Listener
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu; nil when closed
}

// Serve answers at a port of all addresses of the namespace, those that come
// later included.
func Serve(ns *lab.NetNS, port uint16) (*Server, error) {
	s := &Server{conns: make(map[net.Conn]bool)}
	at := netip.AddrPortFrom(netip.IPv4Unspecified(), port)
	err := ns.Do(func() (err error) {
		if s.packets, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at)); err != nil {
			return err
		}
		if s.listener, err = net.Listen("tcp4", at.String()); err != nil {
			_ = s.packets.Close()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	s.running.Go(s.echo)
	s.running.Go(s.accept)
	return s, nil
}

func (s *Server) echo() {
	b := make([]byte, 2048)
	for {
		n, from, err := s.packets.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = s.packets.WriteToUDPAddrPort(b[:n], from)
		}
	}
}

func (s *Server) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		if !s.keep(c) {
			_ = c.Close()
			return
		}
		s.running.Go(func() {
			_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) // no splice: messages are small
			s.drop(c)
		})
	}
}

func (s *Server) keep(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns != nil {
		s.conns[c] = true
	}
	return s.conns != nil
}

func (s *Server) drop(c net.Conn) {
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// Close ends the server as its process would end: connections are cut.
func (s *Server) Close() {
	_ = s.packets.Close()
	_ = s.listener.Close()
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	for c := range conns {
		_ = c.(*net.TCPConn).SetLinger(0) // RST, as when data is left unread
		_ = c.Close()
	}
	s.running.Wait()
}

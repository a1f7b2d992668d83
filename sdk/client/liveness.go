// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/sdk/conn"
)

// Liveness says how a wire finds out whether packets flow: it pings the endpoint
// through the wire, from a socket in the workload's namespace. That needs no
// privilege where the workload's namespace is this process's own, and
// CAP_SYS_ADMIN, to enter it, where it is another.
//
// An endpoint that has never answered is not held to be dead: it may not want to.
type Liveness struct {
	Disabled bool
	Interval time.Duration // between pings; default 200 ms, as NSM_LIVENESS_CHECK_INTERVAL
	Timeout  time.Duration // without any answer, after which packets are lost; default 1 s
}

func (l *Liveness) fill() {
	if l.Interval <= 0 {
		l.Interval = 200 * time.Millisecond
	}
	if l.Timeout <= 0 {
		l.Timeout = time.Second
	}
}

// prober pings the far end of one wire. Its methods are for the wire's run
// goroutine, except data and hear, which anybody may call.
type prober struct {
	config Liveness
	netns  *os.File
	lost   func() // called from another goroutine, once for each time that answers cease; must not block

	targets []netip.Addr  // being pinged
	stop    func()        // ends the pinging of targets and waits; nil when there is none
	hurry   chan struct{} // of the goroutine that pings: ask more often for a while
	heard   atomic.Int64  // time of the last answer in ns since the epoch; 0 = never
	rtt     atomic.Int64  // of that answer, in ns
	anxious atomic.Int64  // since when more is asked, in ns since the epoch; 0 = as usual
}

// While the control plane says that something is wrong, packets are looked at
// more closely: a path that is really gone is given up within anxiousTimeout, or
// within a few round trips where those take longer.
const (
	anxiousInterval = 50 * time.Millisecond
	anxiousTimeout  = 250 * time.Millisecond
	anxiousTrips    = 4
	anxiousFor      = 3 * time.Second
)

// follow pings the given addresses from now on, in place of others.
func (p *prober) follow(own, peers []netip.Addr) {
	if p.config.Disabled || slices.Equal(p.targets, peers) {
		return
	}
	p.end()
	p.targets = slices.Clone(peers)
	p.heard.Store(0)
	var sockets []*pingSocket
	for _, family := range []bool{true, false} {
		to, okTo := first(peers, family)
		from, okFrom := first(own, family)
		if !okTo || !okFrom {
			continue
		}
		if s, err := openPing(p.netns, from, to); err == nil {
			sockets = append(sockets, s)
		} // else it is not known whether packets flow, which is what no answer means too
	}
	if len(sockets) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, s := range sockets {
		running.Go(func() { s.receive(ctx, p.hear) })
	}
	hurry := make(chan struct{}, 1)
	p.hurry = hurry
	p.anxious.Store(0)
	running.Go(func() { p.ping(ctx, sockets, hurry) })
	p.stop = func() {
		cancel()
		for _, s := range sockets {
			_ = s.file.Close()
		}
		running.Wait()
	}
}

// hear notes an answer to what was sent at the given time, in ns since the epoch.
func (p *prober) hear(sent int64) {
	now := time.Now().UnixNano()
	p.rtt.Store(max(now-sent, 0))
	p.heard.Store(now)
}

// data returns what is known about packets.
func (p *prober) data(now time.Time) conn.Data {
	heard := p.heard.Load()
	last, timeout := heard, p.config.Timeout
	if since := p.anxious.Load(); since != 0 {
		timeout = min(timeout, max(anxiousTimeout, time.Duration(anxiousTrips*p.rtt.Load())))
		last = max(heard, since) // what was asked before does not count
	}
	switch {
	case heard == 0:
		return conn.Unknown
	case now.UnixNano()-last <= int64(timeout):
		return conn.Flowing
	}
	return conn.Stopped
}

// suspect has packets looked at more closely for a while.
func (p *prober) suspect() {
	if p.stop == nil {
		return
	}
	select {
	case p.hurry <- struct{}{}:
	default:
	}
}

func (p *prober) end() {
	if p.stop != nil {
		p.stop()
		p.stop = nil
	}
	p.targets = nil
	p.heard.Store(0)
}

// ping sends one echo request per family and interval until ctx ends.
func (p *prober) ping(ctx context.Context, sockets []*pingSocket, hurry <-chan struct{}) {
	tick := time.NewTicker(p.config.Interval)
	defer tick.Stop()
	var calm <-chan time.Time
	told := false
	for seq := uint16(0); ; seq++ {
		for _, s := range sockets {
			s.send(seq)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-hurry:
			tick.Reset(min(p.config.Interval, anxiousInterval))
			calm = time.After(anxiousFor)
			p.anxious.Store(time.Now().UnixNano())
		case <-calm:
			tick.Reset(p.config.Interval)
			calm = nil
			p.anxious.Store(0)
		}
		switch p.data(time.Now()) {
		case conn.Flowing:
			told = false
		case conn.Stopped:
			if !told {
				told = true
				p.lost()
			}
		}
	}
}

func first(addrs []netip.Addr, v4 bool) (netip.Addr, bool) {
	for _, a := range addrs {
		if a.Is4() == v4 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// pingSocket is an unprivileged ICMP echo socket (icmp(7), "ping sockets"); the
// kernel gives it the answers to its own requests only. The forwarder opens
// net.ipv4.ping_group_range in the namespace of a wire (protocol.md §2.15).
type pingSocket struct {
	file *os.File // non-blocking, so that Close ends a Read
	v4   bool
}

// openPing opens a socket in the namespace, from an address of the wire to the
// one at its far end.
func openPing(netns *os.File, from, to netip.Addr) (*pingSocket, error) {
	s := &pingSocket{v4: to.Is4()}
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if !s.v4 {
		domain, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := socketIn(netns, domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(unix.Bind(fd, sockaddr(from)), unix.Connect(fd, sockaddr(to))); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	s.file = os.NewFile(uintptr(fd), "ping")
	return s, nil
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// socketIn makes a socket in a network namespace. A socket stays in the namespace
// it was made in; the thread that went there is not used for anything else.
func socketIn(netns *os.File, domain, typ, proto int) (fd int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		raw, rawErr := netns.SyscallConn()
		if rawErr != nil {
			err = rawErr
			return
		}
		if ctlErr := raw.Control(func(ns uintptr) {
			if !sameNamespace(int(ns)) {
				if err = unix.Setns(int(ns), unix.CLONE_NEWNET); err != nil {
					return
				}
			}
			fd, err = unix.Socket(domain, typ, proto)
		}); ctlErr != nil {
			err = ctlErr
		}
	}()
	<-done
	return fd, err
}

// sameNamespace reports whether the calling thread is in the namespace already,
// which it needs no privilege for.
func sameNamespace(ns int) bool {
	var there, here unix.Stat_t
	return unix.Fstat(ns, &there) == nil && unix.Stat("/proc/thread-self/ns/net", &here) == nil &&
		there.Dev == here.Dev && there.Ino == here.Ino
}

// send asks once. Errors mean that there is going to be no answer, which is
// noticed by itself.
func (s *pingSocket) send(seq uint16) {
	var typ icmp.Type = ipv4.ICMPTypeEcho
	if !s.v4 {
		typ = ipv6.ICMPTypeEchoRequest
	}
	var payload [8]byte
	binary.BigEndian.PutUint64(payload[:], uint64(time.Now().UnixNano()))
	b, err := (&icmp.Message{Type: typ, Body: &icmp.Echo{Seq: int(seq), Data: payload[:]}}).Marshal(nil)
	if err == nil {
		_, _ = s.file.Write(b)
	}
}

// echoHeader is the length of an echo message before its payload (RFC 792, RFC 4443).
const echoHeader = 8

// errorPause is how long receive leaves a socket alone after an error, in case
// reading does not clear it. Answers wait in the socket meanwhile.
const errorPause = 10 * time.Millisecond

// receive calls heard with the time that each answer brings back, until the
// socket is closed. Errors that the kernel reports on the socket, such as host
// unreachable, are no answers; they may come for as long as the far end is away.
func (s *pingSocket) receive(ctx context.Context, heard func(sent int64)) {
	b := make([]byte, 128)
	for {
		n, err := s.file.Read(b)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			select {
			case <-time.After(errorPause):
			case <-ctx.Done():
				return
			}
			continue
		}
		if n >= echoHeader+8 && (s.v4 && b[0] == byte(ipv4.ICMPTypeEchoReply) || !s.v4 && b[0] == byte(ipv6.ICMPTypeEchoReply)) {
			heard(int64(binary.BigEndian.Uint64(b[echoHeader:])))
		}
	}
}

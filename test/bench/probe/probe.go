// SPDX-License-Identifier: Apache-2.0

// Package probe measures the path between two addresses: TCP throughput, TCP
// round trips and UDP packets per second.
//
//	client                                  server, [Serve]
//	Stream     TCP ── 's' data data … FIN ──▶ counts ('S': one of several streams)
//	               ◀────────── bytes, 8 B ──
//	Ping       TCP ── 'p' 1 B ──▶ 1 B back, one at a time
//	Datagrams  UDP ── 'd' seq … ────────────▶ counts
//	               ◀── seq, packets, 16 B ── after every [ackEvery] packets
//	Reply      UDP ── 'p' … ──▶ the same back
//
// Sockets block and each is used by one locked thread, as in netperf: Go's
// network poller would add its own wake-ups to every round trip, the same on
// both sides of a comparison, and so hide part of a difference.
//
// A stream and the datagrams are sent on the first processor and received on the
// last one; the two ends of a round trip share the last one, so that it is not
// the wake-up of an idle processor that is measured. Several streams run anywhere.
package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	chunk    = 128 << 10 // bytes of one write or read of a TCP stream
	patience = 10 * time.Second

	window   = 256 // UDP packets that may be under way
	ackEvery = 64  // UDP packets per answer; divides window
)

// Throughput is what arrived.
type Throughput struct {
	Units   uint64        // bytes (Stream) or packets (Datagrams)
	Elapsed time.Duration // from the first one sent to the last one confirmed
	CPU     time.Duration // of the processes in Options.PIDs
}

// PerSecond returns units per second.
func (t Throughput) PerSecond() float64 { return float64(t.Units) / t.Elapsed.Seconds() }

// RoundTrips are the quantiles of many round trips.
type RoundTrips struct {
	N        int
	P50, P99 time.Duration
}

// Stream sends n TCP streams to dst for about d and returns what arrived. CPU is
// measured of this process and of pids.
func Stream(dst netip.AddrPort, n int, d time.Duration, pids []int) (Throughput, error) {
	hello, where := byte('s'), firstProcessor
	if n > 1 {
		hello, where = 'S', anywhere
	}
	socks := make([]int, n)
	for i := range socks {
		s, err := dial(unix.SOCK_STREAM, dst, hello)
		if err != nil {
			return Throughput{}, err
		}
		defer unix.Close(s)
		socks[i] = s
	}
	before, err := CPU(pids)
	if err != nil {
		return Throughput{}, err
	}
	start := time.Now()
	type end struct {
		bytes uint64
		err   error
	}
	ends := make(chan end)
	for _, s := range socks {
		go func() {
			b, err := on(where, func() (uint64, error) { return stream(s, start.Add(d)) })
			ends <- end{b, err}
		}()
	}
	var t Throughput
	for range socks {
		e := <-ends
		t.Units += e.bytes
		err = errors.Join(err, e.err)
	}
	t.Elapsed = time.Since(start)
	after, cpuErr := CPU(pids)
	t.CPU = after - before
	return t, errors.Join(err, cpuErr)
}

// stream sends on s until the deadline and returns what the server counted.
func stream(s int, until time.Time) (uint64, error) {
	buf := make([]byte, chunk)
	for time.Now().Before(until) {
		if _, err := retry(func() (int, error) { return unix.Write(s, buf) }); err != nil {
			return 0, fmt.Errorf("stream: %w", err)
		}
	}
	if err := unix.Shutdown(s, unix.SHUT_WR); err != nil {
		return 0, fmt.Errorf("stream: shutdown: %w", err)
	}
	var count [8]byte
	n, err := retry(func() (int, error) { return unix.Read(s, count[:]) })
	if err != nil || n != len(count) {
		return 0, fmt.Errorf("stream: no count from the server (%d bytes): %w", n, err)
	}
	return binary.BigEndian.Uint64(count[:]), nil
}

// Ping sends one byte over TCP to dst and waits for one byte, again and again
// for about d.
func Ping(dst netip.AddrPort, d time.Duration) (RoundTrips, error) {
	return on(lastProcessor, func() (RoundTrips, error) { return ping(dst, d) })
}

func ping(dst netip.AddrPort, d time.Duration) (RoundTrips, error) {
	s, err := dial(unix.SOCK_STREAM, dst, 'p')
	if err != nil {
		return RoundTrips{}, err
	}
	defer unix.Close(s)
	if err := unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return RoundTrips{}, err
	}
	var b [1]byte
	times := make([]time.Duration, 0, 1<<16)
	start := time.Now()
	for last := start; last.Sub(start) < d; {
		if _, err := retry(func() (int, error) { return unix.Write(s, b[:]) }); err != nil {
			return RoundTrips{}, fmt.Errorf("ping: %w", err)
		}
		if n, err := retry(func() (int, error) { return unix.Read(s, b[:]) }); err != nil || n != 1 {
			return RoundTrips{}, fmt.Errorf("ping: no answer (%d bytes): %w", n, err)
		}
		now := time.Now()
		times = append(times, now.Sub(last))
		last = now
	}
	slices.Sort(times)
	return RoundTrips{N: len(times), P50: Quantile(times, 0.5), P99: Quantile(times, 0.99)}, nil
}

// Datagrams sends UDP packets with size bytes of payload to dst for about d and
// returns how many arrived. At most [window] are under way: a sender that knows
// no bounds would measure who is better at dropping packets.
func Datagrams(dst netip.AddrPort, size int, d time.Duration, pids []int) (Throughput, error) {
	return on(firstProcessor, func() (Throughput, error) { return datagrams(dst, size, d, pids) })
}

func datagrams(dst netip.AddrPort, size int, d time.Duration, pids []int) (Throughput, error) {
	s, err := dial(unix.SOCK_DGRAM, dst, 0)
	if err != nil {
		return Throughput{}, err
	}
	defer unix.Close(s)
	// A lost packet holds up the window until this has passed.
	if err := timeout(s, unix.SO_RCVTIMEO, 5*time.Millisecond); err != nil {
		return Throughput{}, err
	}
	before, err := CPU(pids)
	if err != nil {
		return Throughput{}, err
	}
	packet := make([]byte, max(size, datagramHeader))
	packet[0] = 'd'
	var sent, seen, arrived uint64
	start := time.Now()
	for time.Since(start) < d {
		for range ackEvery {
			sent++
			binary.BigEndian.PutUint64(packet[1:], sent)
			if _, err := retry(func() (int, error) { return unix.Write(s, packet) }); err != nil {
				return Throughput{}, fmt.Errorf("datagrams: %w", err)
			}
		}
		for sent-seen > window-ackEvery {
			ack, err := readAck(s)
			if errors.Is(err, unix.EAGAIN) {
				seen = sent // the rest is lost
				break
			} else if err != nil {
				return Throughput{}, fmt.Errorf("datagrams: %w", err)
			}
			seen, arrived = max(seen, ack.seq), ack.packets
		}
	}
	if arrived == 0 && timeout(s, unix.SO_RCVTIMEO, patience) == nil {
		// On a busy machine the server may not have run yet.
		if ack, err := readAck(s); err == nil {
			arrived = ack.packets
		}
	}
	t := Throughput{Units: arrived, Elapsed: time.Since(start)}
	after, err := CPU(pids)
	t.CPU = after - before
	if arrived == 0 {
		return t, errors.Join(err, fmt.Errorf("datagrams: none of %d arrived at %v", sent, dst))
	}
	return t, err
}

// Reply reports when a UDP packet to dst is answered, which it sends every
// interval through s, a socket from [Datagram]. It is for wires that have just
// been made, whose first packet may find nobody at home.
func Reply(s int, dst netip.AddrPort, interval, patience time.Duration) (sent int, err error) {
	if err := timeout(s, unix.SO_RCVTIMEO, interval); err != nil {
		return 0, err
	}
	to, _ := sockaddr(dst)
	buf := []byte{'p', 0}
	for start := time.Now(); time.Since(start) < patience; {
		sent++
		err := unix.Sendto(s, buf, 0, to)
		if err == nil {
			_, _, err = unix.Recvfrom(s, buf, 0)
		}
		switch err {
		case nil:
			return sent, nil
		case unix.EAGAIN, unix.EINTR, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ECONNREFUSED:
		default:
			return sent, os.NewSyscallError("reply", err)
		}
	}
	return sent, fmt.Errorf("no answer from %v within %v (%d packets)", dst, patience, sent)
}

// Quantile returns the q-quantile of sorted values (nearest rank).
func Quantile[T any](sorted []T, q float64) T {
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

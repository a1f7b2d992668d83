// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"net/netip"
	"sync"
	"time"
)

// Secrets of 128 bits cannot be guessed; the limit keeps those who try from
// filling logs and burning processor time.
const (
	failWindow = time.Minute
	maxFails   = 10   // failed joins of one host in a window
	maxHosts   = 4096 // hosts remembered at a time
)

// limiter counts the failed joins of each host. The zero value is ready.
type limiter struct {
	mu    sync.Mutex
	hosts map[netip.Prefix]fails
}

type fails struct {
	since time.Time
	n     int
}

// blocked reports whether a host has failed too often lately.
func (l *limiter) blocked(host netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.hosts[network(host)]
	return f.n >= maxFails && now.Sub(f.since) < failWindow
}

// failed counts a failure of a host.
func (l *limiter) failed(host netip.Addr, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.hosts) >= maxHosts {
		l.forgetLocked(now)
	}
	if l.hosts == nil {
		l.hosts = make(map[netip.Prefix]fails)
	}
	f := l.hosts[network(host)]
	if now.Sub(f.since) >= failWindow {
		f = fails{since: now}
	}
	f.n++
	l.hosts[network(host)] = f
}

// forgetLocked makes room: of hosts whose window is over, or else of all.
func (l *limiter) forgetLocked(now time.Time) {
	for host, f := range l.hosts {
		if now.Sub(f.since) >= failWindow {
			delete(l.hosts, host)
		}
	}
	if len(l.hosts) >= maxHosts {
		clear(l.hosts)
	}
}

// network returns what counts as one host: an IPv4 address, or an IPv6 /64.
func network(host netip.Addr) netip.Prefix {
	host = host.Unmap().WithZone("")
	bits := host.BitLen()
	if host.Is6() {
		bits = 64
	}
	p, _ := host.Prefix(bits) // the zero Addr, of no address, gives the zero Prefix
	return p
}

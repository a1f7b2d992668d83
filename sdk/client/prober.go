// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/openvwire/nsm/internal/echo"
	"github.com/openvwire/nsm/sdk/conn"
)

// Liveness says how a wire finds out whether packets flow: it pings the endpoint
// through the wire, from a socket in the workload's namespace. That needs no
// privilege where the workload's namespace is this process's own, and
// CAP_SYS_ADMIN, to enter it, where it is another.
//
// An endpoint that has never answered is not held to be dead: it may not want to.
// One that comes after another at the same wire which has answered, is.
type Liveness struct {
	Disabled bool
	Interval time.Duration // between pings; default 200 ms, as NSM_LIVENESS_CHECK_INTERVAL; at most a quarter of Timeout
	Timeout  time.Duration // without any answer, after which packets are lost; default 1 s

	// Open opens what asks one address from another. nil means an ICMP socket; tests
	// set it.
	Open func(netns *os.File, from, to netip.Addr) (Echo, error)
}

// Echo asks an address for a sign of life. None of its methods waits.
type Echo interface {
	Send(seq uint16) error
	Receive() (seq uint16, ok bool) // one answer that has come
	Close() error
}

func (l *Liveness) isZero() bool {
	return !l.Disabled && l.Interval == 0 && l.Timeout == 0 && l.Open == nil
}

func (l *Liveness) fill() {
	if l.Interval <= 0 {
		l.Interval = 200 * time.Millisecond
	}
	if l.Timeout <= 0 {
		l.Timeout = time.Second
	}
	l.Interval = min(l.Interval, l.Timeout/missed)
	if l.Open == nil {
		l.Open = func(netns *os.File, from, to netip.Addr) (Echo, error) { return echo.Open(netns, from, to) }
	}
}

// prober pings the far end of one wire, at the client's pacer. follow and end are for
// the wire's run goroutine; anybody may call the others.
type prober struct {
	config Liveness
	netns  *os.File
	pacer  *pacer
	lost   func() // called once for each time that answers cease; must not block
	back   func() // called once for each time that answers come, on a new path or again; must not block
	none   func() // called once if no answer has ever come; must not block

	slot // of the pacer

	mu    sync.Mutex
	own   []netip.Addr  // as told to follow; guarded by mu
	peers []netip.Addr  // likewise; guarded by mu
	again time.Time     // when to open lines again, if none could be; zero = not; guarded by mu
	pulse pulse         // guarded by mu
	lines []line        // one per family, or none; guarded by mu
	best  int           // of lines: the one that answered last; guarded by mu
	told  bool          // lost has been called; guarded by mu
	came  bool          // back has been called, and lost not since; guarded by mu
	tried int           // requests on any path, up to noneAfter, and one more once none has been called; guarded by mu
	next  time.Time     // when to send; guarded by mu
	peek  time.Duration // until the next look for an answer that is measured; guarded by mu
}

// line is a way to one address of the far end.
type line struct {
	Echo
	from, to netip.Addr
}

// follow pings from one of own to one of peers, of each family, from now on. For a new
// path end comes first: there may be another endpoint with the same addresses.
// What could not be opened is tried again with the next call; if that is all of it and
// there is somebody who answers, every reopen, too: the interface may be gone or without
// addresses until the forwarder has repaired it, which is not this process's doing.
func (p *prober) follow(own, peers []netip.Addr) {
	if p.config.Disabled {
		return
	}
	p.mu.Lock()
	p.own, p.peers = own, peers
	begins := p.openLocked(time.Now()) || !p.again.IsZero()
	p.mu.Unlock()
	if begins {
		p.pacer.wake(p)
	}
}

// reopen is how long after an attempt to open lines the next one is made. Each costs a
// thread where the workload's namespace is another.
const reopen = 2 * time.Second

// openLocked opens the lines that are not open yet, and closes those of other addresses.
// It reports whether there are new ones.
func (p *prober) openLocked(now time.Time) (changed bool) {
	var lines []line
	known := false
	for _, v4 := range []bool{true, false} {
		from, okFrom := first(p.own, v4)
		to, okTo := first(p.peers, v4)
		if !okFrom || !okTo {
			continue
		}
		known = true
		if i := slices.IndexFunc(p.lines, func(l line) bool { return l.from == from && l.to == to }); i >= 0 {
			lines = append(lines, p.lines[i])
		} else if e, err := p.config.Open(p.netns, from, to); err == nil {
			lines = append(lines, line{e, from, to})
			changed = true
		} // else it is not known whether packets flow, which is what no answer means too
	}
	for _, l := range p.lines {
		if !slices.Contains(lines, l) {
			_ = l.Close()
			p.forgetLocked()
		}
	}
	p.lines, p.best, p.again = lines, 0, time.Time{}
	if len(lines) == 0 && known && p.pulse.expects {
		p.again = now.Add(reopen)
	}
	if changed {
		p.next = time.Time{} // at once
	}
	return changed
}

// end ends the pinging. What is known about endpoints of the service stays known.
func (p *prober) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.lines {
		_ = l.Close()
	}
	p.lines, p.again = nil, time.Time{}
	p.forgetLocked()
}

// forgetLocked forgets what is known of the path.
func (p *prober) forgetLocked() {
	p.pulse = pulse{expects: p.pulse.expects}
	p.told, p.came = false, false
}

// heard returns when an answer came last on this path, zero if none has.
func (p *prober) heard() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pulse.heard
}

// data returns what is known about packets.
func (p *prober) data(now time.Time) conn.Data {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.read(now)
	return p.pulse.data(now, p.config)
}

// suspect has packets looked at closely for a while.
func (p *prober) suspect() { p.closely((*pulse).suspect) }

// recheck follows a refresh, which may have repaired what was broken: if packets
// had stopped, lost is called again if they still do not come.
func (p *prober) recheck() {
	if p.data(time.Now()) == conn.Stopped {
		p.closely((*pulse).pardon)
	}
}

func (p *prober) closely(f func(*pulse, time.Time) bool) {
	p.mu.Lock()
	now := time.Now()
	p.read(now)
	begins := f(&p.pulse, now) && len(p.lines) > 0
	if begins {
		p.next, p.told = time.Time{}, false
	}
	p.mu.Unlock()
	if begins {
		p.pacer.wake(p)
	}
}

// read takes in the answers that have come.
func (p *prober) read(now time.Time) {
	best := -1
	for i, l := range p.lines {
		for range remember { // whoever floods is left for the next time
			seq, ok := l.Receive()
			if !ok {
				break
			}
			p.pulse.hear(seq, now)
			if best < 0 || i == p.best {
				best = i
			}
		}
	}
	if best >= 0 {
		p.best = best
	}
}

// noneAfter is how many requests without an answer are none ever: 5 s by default.
const noneAfter = 25

// measureEvery is how many requests share one measurement of the trip, which
// costs a few more looks.
const measureEvery = 16

// tick does what is due and returns when it wants to be called again; never is
// the zero time. It is called by the pacer.
func (p *prober) tick(now time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.again.IsZero() && p.again.Sub(now) < grain {
		p.openLocked(now)
	}
	if len(p.lines) == 0 {
		return p.again
	}
	p.read(now)
	p.pulse.look(now, p.config)
	switch p.pulse.data(now, p.config) {
	case conn.Flowing:
		p.told = false
		if !p.came {
			p.came = true
			p.back()
		}
	case conn.Stopped:
		if !p.told {
			p.told, p.came = true, false
			p.lost()
		}
	}
	if !p.pulse.expects && p.tried == noneAfter {
		p.tried++
		p.none()
	}
	if p.next.Sub(now) < grain {
		p.send(now)
		p.next = now.Add(p.pulse.pace(now, p.config))
		p.peek = grain / 2
	}
	p.peek *= 2
	if again := now.Add(p.peek); p.pulse.measured > 0 && again.Before(p.next) {
		return again
	}
	return p.next
}

// send asks along the line that answered last, along all of them while none does.
func (p *prober) send(now time.Time) {
	known := p.pulse.usual.from == p.pulse.sent && !p.pulse.heard.IsZero() // the last request was answered
	seq := p.pulse.send(now)
	sent := false
	for i, l := range p.lines {
		if !known || i == p.best {
			sent = !errors.Is(l.Send(seq), echo.ErrNotSent) || sent
		}
	}
	if !sent {
		p.pulse.unsend()
		return
	}
	if p.tried < noneAfter {
		p.tried++
	}
	if seq%measureEvery == 0 {
		p.pulse.measure()
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

// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/internal/echo/memecho"
	"github.com/openvwire/nsm/sdk/conn"
	"github.com/openvwire/nsm/sdk/nserr"
)

// through has a client's wires ping through the air.
func through(air *memecho.Air) func(*Config) {
	return func(c *Config) {
		c.Liveness = Liveness{Open: func(netns *os.File, from, to netip.Addr) (Echo, error) {
			s, err := air.Open(netns, from, to)
			if err != nil {
				return nil, err
			}
			return s, nil
		}}
	}
}

func addresses(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

// newProber returns a prober that counts how often it finds that answers cease.
func newProber(t *testing.T, air *memecho.Air) (p *prober, lost *atomic.Int64) {
	t.Helper()
	var c Config
	through(air)(&c)
	c.Liveness.fill()
	lost = new(atomic.Int64)
	p = &prober{config: c.Liveness, pacer: newPacer(), lost: func() { lost.Add(1) }, back: func() {}, none: func() {}}
	t.Cleanup(func() {
		p.end()
		p.pacer.close()
		if n := air.Sockets(); n != 0 {
			t.Errorf("%d sockets are left", n)
		}
	})
	return p, lost
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// The prober says that packets have stopped once, in time, and again after they
// have flowed or a refresh has changed nothing.
func TestProber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		air := &memecho.Air{Trip: 5 * time.Millisecond}
		p, lost := newProber(t, air)
		know := func(what string, data conn.Data, n int64) {
			t.Helper()
			synctest.Wait()
			if got := p.data(time.Now()); got != data || lost.Load() != n {
				t.Errorf("%s: %v, lost %d times; want %v, %d", what, got, lost.Load(), data, n)
			}
		}
		own, peers := addresses("10.0.0.1"), addresses("10.0.0.2")
		p.follow(own, peers)
		know("before the first answer", conn.Unknown, 0)
		pass(10 * time.Millisecond)
		know("after it", conn.Flowing, 0)
		pass(time.Minute)
		know("all is well", conn.Flowing, 0)
		cut := time.Now()
		air.SetCarries(func(memecho.Path) bool { return false })
		for lost.Load() == 0 {
			pass(10 * time.Millisecond)
		}
		if took := time.Since(cut); took < time.Second || took > 1300*time.Millisecond {
			t.Errorf("noticed after %v", took)
		}
		pass(time.Minute)
		know("said once", conn.Stopped, 1)
		p.recheck() // a refresh that has changed nothing
		pass(300 * time.Millisecond)
		know("said again after a refresh", conn.Stopped, 2)
		air.SetCarries(nil)
		pass(300 * time.Millisecond)
		know("answers come again", conn.Flowing, 2)

		// Under suspicion it is quicker.
		p.suspect()
		air.SetCarries(func(memecho.Path) bool { return false })
		pass(200 * time.Millisecond)
		know("too early to tell", conn.Flowing, 2)
		pass(100 * time.Millisecond)
		know("after a close look", conn.Stopped, 3)
		air.SetCarries(nil)
		pass(time.Second)
		p.suspect()
		pass(time.Minute)
		know("a suspicion without ground", conn.Flowing, 3)

		// Another path: what is at its end has not answered yet.
		air.SetCarries(func(memecho.Path) bool { return false })
		p.end()
		p.follow(own, peers)
		pass(900 * time.Millisecond)
		know("a new path is given time", conn.Unknown, 3)
		pass(400 * time.Millisecond)
		know("but an endpoint of this service would answer", conn.Stopped, 4)
	})
}

// An endpoint that never answers need not: it may not want to.
func TestProberOfTheSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		air := &memecho.Air{}
		air.SetCarries(func(memecho.Path) bool { return false })
		p, lost := newProber(t, air)
		p.follow(addresses("10.0.0.1"), addresses("10.0.0.2"))
		p.suspect()
		pass(5 * time.Minute)
		p.recheck()
		pass(5 * time.Minute)
		if got := p.data(time.Now()); got != conn.Unknown || lost.Load() != 0 {
			t.Errorf("%v, lost %d times", got, lost.Load())
		}
	})
}

// Where an interface was deleted no socket can be opened until the forwarder has made it
// again, which no Request of the client tells of: then packets are looked at as before.
func TestProberOpensAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		air := &memecho.Air{Trip: time.Millisecond}
		p, lost := newProber(t, air)
		var came atomic.Int64
		p.back = func() { came.Add(1) }
		own, peers := addresses("10.0.0.1", "fd00::1"), addresses("10.0.0.2", "fd00::2")
		p.follow(own, peers)
		pass(time.Second)
		if got := p.data(time.Now()); got != conn.Flowing || came.Load() != 1 {
			t.Fatalf("all is well: %v, came %d times", got, came.Load())
		}
		air.SetRefuses(errors.New("cannot assign requested address"))
		p.end() // another path, of the same addresses
		p.follow(own, peers)
		pass(20 * time.Second)
		if got := p.data(time.Now()); got != conn.Unknown || lost.Load() != 0 {
			t.Errorf("without a socket: %v, lost %d times", got, lost.Load())
		}
		air.SetRefuses(nil)
		pass(reopen + 500*time.Millisecond)
		if got, n := p.data(time.Now()), air.Sockets(); got != conn.Flowing || came.Load() != 2 || n != 2 {
			t.Errorf("repaired: %v, came %d times, %d sockets", got, came.Load(), n)
		}
		air.SetRefuses(errors.New("cannot assign requested address"))
		p.end()
		p.follow(own, peers)
		pass(time.Second)
		air.SetRefuses(nil)
		p.end() // for good
		pass(time.Minute)
		if n := air.Sockets(); n != 0 {
			t.Errorf("%d sockets after the end", n)
		}
	})
}

// Sockets follow the addresses of both ends, one by one; what could not be opened
// is tried again; what an endpoint has shown is remembered.
func TestProberFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		air := &memecho.Air{Trip: time.Millisecond}
		p, _ := newProber(t, air)
		var mu sync.Mutex
		var paths []memecho.Path // guarded by mu
		air.SetCarries(func(p memecho.Path) bool {
			mu.Lock()
			defer mu.Unlock()
			paths = append(paths, p)
			return true
		})
		asked := func(own, peers []netip.Addr) (pairs map[string]bool) {
			t.Helper()
			p.follow(own, peers)
			pass(500 * time.Millisecond)
			mu.Lock()
			paths = nil
			mu.Unlock()
			pass(time.Second)
			mu.Lock()
			defer mu.Unlock()
			pairs = make(map[string]bool)
			for _, p := range paths {
				pairs[p.From.String()+" "+p.To.String()] = true
			}
			return pairs
		}
		air.SetRefuses(errors.New("not permitted"))
		if got := asked(addresses("10.0.0.1"), addresses("10.0.0.2")); len(got) != 0 {
			t.Errorf("asked %v without a socket", got)
		}
		air.SetRefuses(nil)
		for _, tt := range []struct {
			own, peers []netip.Addr
			want       string
			sockets    int
			data       conn.Data
		}{
			{addresses("10.0.0.1"), addresses("10.0.0.2"), "10.0.0.1 10.0.0.2", 1, conn.Flowing},
			{addresses("10.0.0.1"), addresses("10.0.0.2"), "10.0.0.1 10.0.0.2", 1, conn.Flowing},
			{addresses("10.0.0.7"), addresses("10.0.0.2"), "10.0.0.7 10.0.0.2", 1, conn.Flowing}, // only the own address has changed
			{addresses("10.0.0.7", "fd00::1"), addresses("10.0.0.2", "fd00::2"), "10.0.0.7 10.0.0.2", 2, conn.Flowing},
			{addresses("10.0.0.9", "fd00::1"), addresses("10.0.0.2", "fd00::2"), "10.0.0.9 10.0.0.2", 2, conn.Flowing},
			{addresses("fd00::1"), addresses("10.0.0.2", "fd00::2"), "fd00::1 fd00::2", 1, conn.Flowing},
			{nil, nil, "", 0, conn.Unknown},
		} {
			got := asked(tt.own, tt.peers)
			if n := air.Sockets(); n != tt.sockets {
				t.Errorf("from %v to %v: %d sockets, want %d", tt.own, tt.peers, n, tt.sockets)
			}
			if tt.want != "" && (!got[tt.want] || len(got) > 1) {
				t.Errorf("from %v to %v: asked %v", tt.own, tt.peers, got)
			}
			if data := p.data(time.Now()); data != tt.data {
				t.Errorf("from %v to %v: %v", tt.own, tt.peers, data)
			}
		}
	})
}

// Of two families the one that answers is asked. While it does not, both are.
func TestProberFamilies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		air := &memecho.Air{Trip: time.Millisecond}
		p, lost := newProber(t, air)
		var mu sync.Mutex
		var v4, v6 int        // guarded by mu
		var dead4, dead6 bool // guarded by mu
		air.SetCarries(func(p memecho.Path) bool {
			mu.Lock()
			defer mu.Unlock()
			if p.To.Is4() {
				v4++
				return !dead4
			}
			v6++
			return !dead6
		})
		p.follow(addresses("10.0.0.1", "fd00::1"), addresses("10.0.0.2", "fd00::2"))
		count := func(d time.Duration) (int, int) {
			mu.Lock()
			v4, v6 = 0, 0
			mu.Unlock()
			pass(d)
			mu.Lock()
			defer mu.Unlock()
			return v4, v6
		}
		kill := func(four, six bool) {
			mu.Lock()
			defer mu.Unlock()
			dead4, dead6 = four, six
		}
		pass(time.Second)
		if n4, n6 := count(time.Minute); n4 < 295 || n4 > 305 || n6 != 0 {
			t.Errorf("asked %d and %d times in a minute, want 300 of one family", n4, n6)
		}
		kill(true, false)
		pass(time.Second)
		if n4, n6 := count(time.Minute); n4 != 0 || n6 < 295 || n6 > 305 {
			t.Errorf("asked %d and %d times in a minute, want 300 of the other family", n4, n6)
		}
		kill(true, true)
		pass(2 * time.Second)
		if n4, n6 := count(time.Minute); n4 < 295 || n6 < 295 || lost.Load() != 1 {
			t.Errorf("asked %d and %d times in a minute, want 300 of each; lost %d times", n4, n6, lost.Load())
		}
	})
}

// A thousand wires have one goroutine that pings, and few wake-ups.
func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		air := &memecho.Air{Trip: time.Millisecond}
		var c Config
		through(air)(&c)
		c.Liveness.fill()
		pacer := newPacer()
		defer pacer.close()
		probers := make([]*prober, 1000)
		var mu sync.Mutex
		moments := make(map[time.Time]bool) // guarded by mu
		air.SetCarries(func(memecho.Path) bool {
			mu.Lock()
			defer mu.Unlock()
			moments[time.Now()] = true
			return true
		})
		goroutines := func() int {
			stacks := make([]byte, 1<<20)
			return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), ".(*pacer).run(")
		}
		for i := range probers {
			probers[i] = &prober{config: c.Liveness, pacer: pacer, lost: func() { t.Error("lost") }, back: func() {}, none: func() {}}
			probers[i].follow(addresses("10.0.0.1"), addresses("10.0.0.2"))
			pass(time.Duration(i%7) * time.Millisecond)
		}
		if n := goroutines(); n != 1 {
			t.Errorf("%d goroutines for %d wires", n, len(probers))
		}
		mu.Lock()
		clear(moments)
		mu.Unlock()
		sent := air.Sent()
		pass(10 * time.Second)
		if n := air.Sent() - sent; n < 49*len(probers) || n > 54*len(probers) {
			t.Errorf("%d requests in 10 s for %d wires", n, len(probers))
		}
		mu.Lock()
		if n := len(moments); n > 1000 {
			t.Errorf("woken %d times in 10 s", n)
		}
		mu.Unlock()
		for _, p := range probers {
			p.end()
		}
		pass(time.Second)
		if n := goroutines(); n != 0 {
			t.Errorf("%d goroutines are left", n)
		}
	})
}

// When a new path is dead, too, the wire goes on looking for one that is not, as
// the endpoints of this service answer when they are alive.
func TestBlackHoleTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		air := &memecho.Air{Trip: time.Millisecond}
		m, c := newManager(t, through(air))
		m.amend(func(c *networkservice.Connection) { c.NetworkServiceEndpointName = "the only one" })
		w := connect(t, c)
		pass(time.Second)
		m.take()
		air.SetCarries(func(memecho.Path) bool { return false })
		cut := time.Now()
		pass(20 * time.Second)
		asked := m.take()
		if len(asked) < 3 {
			t.Fatalf("asked %d times in 20 s while nothing flows", len(asked))
		}
		for i, a := range asked {
			if !a.reselect {
				t.Errorf("%v: asked the dead path again", a.at.Sub(cut))
			}
			if i < 2 && a.at.Sub(cut) > time.Duration(i+1)*1300*time.Millisecond {
				t.Errorf("attempt %d after %v", i, a.at.Sub(cut))
			}
		}
		air.SetCarries(nil)
		pass(10 * time.Second)
		m.take()
		pass(time.Minute)
		if asked := m.take(); len(asked) != 0 || w.Connection().GetState() != networkservice.State_UP {
			t.Errorf("asked %+v although packets flow, %v", asked, w.Connection().GetState())
		}
	})
}

// Packets that stop while a refresh hangs are not waited for: the refresh is given
// up, and another path is asked for.
func TestDataLostInterruptsRefresh(t *testing.T) {
	for _, tt := range []struct {
		name string
		slow time.Duration // what the refresh would take
		cut  time.Duration // after it has begun; before it, if negative
		tell bool          // the manager says at that time that the path is down
	}{
		{"cut while it hangs", time.Hour, time.Second, false},
		{"cut just before it", time.Hour, -900 * time.Millisecond, false},
		{"the manager says so, too", time.Hour, time.Second, true},
		{"it succeeds, and packets do not flow", 1300 * time.Millisecond, 50 * time.Millisecond, false},
		{"it succeeds, and was asked for since the path was down", 1300 * time.Millisecond, 50 * time.Millisecond, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				air := &memecho.Air{Trip: time.Millisecond}
				m, c := newManager(t, through(air))
				w := connect(t, c)
				pass(time.Second)
				m.take()
				m.delay(tt.slow)
				begin, end := time.Now().Add(time.Second), time.Now().Add(time.Second+tt.cut)
				time.AfterFunc(time.Until(begin), func() { m.tell("web-0", networkservice.State_REFRESH_REQUESTED) })
				time.AfterFunc(time.Until(end), func() {
					air.SetCarries(func(memecho.Path) bool { return false })
					if tt.tell {
						m.tell("web-0", networkservice.State_DOWN)
					}
				})
				pass(time.Until(end.Add(2 * time.Second)))
				asked := m.take()
				i := slices.IndexFunc(asked, func(a ask) bool { return a.reselect })
				if i < 0 {
					t.Fatalf("no other path was asked for: %+v", asked)
				}
				if took := asked[i].at.Sub(end); took > 1700*time.Millisecond {
					t.Errorf("another path was asked for after %v", took)
				}
				if tries, _, err := w.Status(); tries > 1 || err != nil && !errors.Is(err, nserr.NoPackets) {
					t.Errorf("%d tries, %v", tries, err)
				}
			})
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"math/bits"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/internal/echo/memecho"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Where packets flow on no path and the control plane is well, other paths are tried
// less and less often. The log says so once, and that they come back; in between the
// Requests and Status do. The path on which they come back stays.
func TestNoPackets(t *testing.T) {
	for _, endpoints := range []int{1, 2} {
		t.Run(fmt.Sprint(endpoints, " endpoints"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lines
				air := &memecho.Air{Trip: time.Millisecond}
				m, c := newManager(t, logTo(&log), through(air))
				var moved atomic.Int64
				m.amend(func(c *networkservice.Connection) {
					if c.GetState() == networkservice.State_RESELECT_REQUESTED {
						moved.Add(1)
					}
					c.NetworkServiceEndpointName = fmt.Sprint("db-", moved.Load()%int64(endpoints))
					c.Path.PathSegments = append(c.Path.PathSegments, &networkservice.PathSegment{
						Name: "forwarder", Id: "f", Metrics: map[string]string{"client_interface": "WIREGUARD/nsm-1"},
					})
				})
				w := connect(t, c)
				pass(10 * time.Second)
				m.take()
				air.SetCarries(func(memecho.Path) bool { return false })
				pass(10 * time.Minute)
				asked := m.take()
				if n := len(asked); n < 20 || n > 40 {
					t.Errorf("asked %d times in ten minutes", n)
				}
				last := time.Duration(0)
				for i, a := range asked[1:] {
					said := fmt.Sprint(a.metrics["attempts"], " ", a.metrics["last_error"])
					if want := fmt.Sprint(i+1, " ", nserr.NoPackets.Code); a.reselect && said != want {
						t.Errorf("Request %d says %s, want %s", i+1, said, want)
					}
					if a.reselect {
						last = a.at.Sub(asked[i].at)
					}
				}
				if last < 20*time.Second || last > 33*time.Second {
					t.Errorf("at last %v between attempts", last)
				}
				tries, _, err := w.Status()
				if tries < 20 || nserr.From(err).Reason != nserr.NoPackets {
					t.Errorf("status %d, %v", tries, err)
				}
				warned := 1 + bits.Len(uint(tries)) - bits.Len(7) // at first, and of paths the 8th, the 16th, the 32nd…
				for _, text := range []string{"no packets come back through the wire", "WIREGUARD", "nsm describe wire web-0"} {
					if n := log.count(text); n == 0 || n > warned {
						t.Errorf("%d lines with %q:\n%s", n, text, log.buf.String())
					}
				}
				if n := log.count("level=WARN"); n != warned {
					t.Errorf("%d warnings, want %d:\n%s", n, warned, log.buf.String())
				}
				if n := log.count("wire moved"); n != endpoints-1 {
					t.Errorf("%d lines of moving:\n%s", n, log.buf.String())
				}

				for len(m.take()) == 0 { // so that no other path is due when packets come back
					pass(100 * time.Millisecond)
				}
				pass(2 * time.Second)
				air.SetCarries(nil)
				pass(6 * time.Second) // as flapping is answered
				asked = m.take()
				if len(asked) != 1 || asked[0].reselect || len(asked[0].metrics) != 0 {
					t.Errorf("asked %+v when packets come back, want one refresh", asked)
				}
				if tries, _, err := w.Status(); tries != 0 || err != nil || w.Connection().GetState() != networkservice.State_UP {
					t.Errorf("status %d, %v, %v", tries, err, w.Connection().GetState())
				}
				if n := log.count("packets come back through the wire again"); n != 1 {
					t.Errorf("%d lines of the end:\n%s", n, log.buf.String())
				}
				pass(time.Minute)
				if asked := m.take(); len(asked) != 0 {
					t.Errorf("then asked %+v", asked)
				}
				moved.Store(0)
				air.SetCarries(func(memecho.Path) bool { return moved.Load() > 0 })
				pass(2 * time.Second)
				if n := log.count("no packets come back through the wire"); n != 2 {
					t.Errorf("the second time is not told:\n%s", log.buf.String())
				}
				if asked := m.take(); len(asked) != 1 || !asked[0].reselect || len(asked[0].metrics) != 0 {
					t.Errorf("asked %+v where another path is good", asked)
				}
			})
		})
	}
}

// Packets that come back before another path is asked for make that needless.
func TestPacketsComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		air := &memecho.Air{Trip: time.Millisecond}
		m, c := newManager(t, through(air))
		w := connect(t, c)
		air.SetCarries(func(memecho.Path) bool { return false })
		pass(2 * time.Minute)
		m.take()
		air.SetCarries(nil)
		pass(time.Minute)
		for _, a := range m.take() {
			if a.reselect {
				t.Errorf("asked %+v", a)
			}
		}
		// Where Requests fail, too, the same path will do.
		air.SetCarries(func(memecho.Path) bool { return false })
		m.answer(nserr.EndpointsFailed.Errorf("none"))
		pass(time.Minute)
		air.SetCarries(nil)
		pass(time.Second)
		m.take()
		pass(30 * time.Second)
		asked := m.take()
		if len(asked) < 3 || asked[0].reselect {
			t.Errorf("asked %+v", asked)
		}
		m.answer(nil)
		pass(6 * time.Second)
		if w.Connection().GetState() != networkservice.State_UP {
			t.Errorf("state %v", w.Connection().GetState())
		}
	})
}

// An endpoint that has never answered may not want to. It is said once all the same:
// perhaps nothing gets through.
func TestNoPacketEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		air := &memecho.Air{}
		air.SetCarries(func(memecho.Path) bool { return false })
		m, c := newManager(t, logTo(&log), through(air))
		connect(t, c)
		m.take()
		pass(time.Minute)
		if asked := m.take(); len(asked) != 0 {
			t.Errorf("asked %v", asked)
		}
		pass(20 * time.Minute)
		if n := log.count("has ever come"); n != 1 || log.count("WARN") != 1 {
			t.Errorf("said %d times:\n%s", n, log.buf.String())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var log lines
		_, c := newManager(t, logTo(&log), through(&memecho.Air{Trip: time.Millisecond}))
		connect(t, c)
		pass(20 * time.Minute)
		if log.count("WARN") != 0 {
			t.Errorf("said of a wire that is well:\n%s", log.buf.String())
		}
	})
}

// That a wire has moved is said, with where to and why; also when nothing was amiss.
func TestMoveIsTold(t *testing.T) {
	for _, tt := range []struct {
		name  string
		event func(*manager)
		why   string
	}{
		{"a hop asks for it", func(m *manager) { m.tell("web-0", networkservice.State_RESELECT_REQUESTED) }, "a hop asked for another path"},
		{"the path is down", func(m *manager) { m.tell("web-0", networkservice.State_DOWN) }, "a hop said that the path is down"},
		{"a Request has failed", func(m *manager) {
			m.answer(nserr.EndpointGone.Errorf("db-0 is away"))
			m.tell("web-0", networkservice.State_DOWN)
			pass(100 * time.Millisecond)
			m.answer(nil)
		}, nserr.EndpointGone.Code + ": db-0 is away"},
		{"a refresh", func(*manager) { pass(3 * time.Minute) }, "the answer to a refresh said so"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lines
				m, c := newManager(t, logTo(&log))
				connect(t, c)
				synctest.Wait() // until it listens
				m.amend(func(c *networkservice.Connection) {
					c.NetworkServiceEndpointName, c.Context.IpContext.SrcIpAddrs = "db-1", []string{"10.61.0.1/32"}
				})
				tt.event(m)
				pass(3 * time.Minute)
				if n := log.count("wire moved"); n != 1 {
					t.Fatalf("said %d times:\n%s", n, log.buf.String())
				}
				for _, text := range []string{"from=one", "endpoint=db-1", "addresses=[10.61.0.1]", `remote="[10.60.0.0 fd00::]"`} {
					if log.count(text) != 1 {
						t.Errorf("no %s in\n%s", text, log.buf.String())
					}
				}
				if !strings.Contains(log.buf.String(), tt.why) {
					t.Errorf("not said why, %q:\n%s", tt.why, log.buf.String())
				}
			})
		})
	}
}

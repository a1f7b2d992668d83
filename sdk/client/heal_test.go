// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/internal/echo/memecho"
	"github.com/openvwire/nsm/sdk/nserr"
)

// lines keeps what is logged.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// count returns how many lines contain the text.
func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for line := range strings.Lines(l.buf.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func logTo(l *lines) func(*Config) {
	return func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(l, nil)) }
}

// A manager that says ten times a second that the path is down, and up again, is
// asked every few seconds, whether the Requests succeed or not, and says so once.
func TestFlappingPeer(t *testing.T) {
	for _, fail := range []error{nil, nserr.EndpointsFailed.Errorf("none answers")} {
		for _, liveness := range []bool{true, false} {
			t.Run(fmt.Sprintf("error %v, liveness check %v", fail, liveness), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var log lines
					changes := []func(*Config){logTo(&log)}
					if liveness {
						changes = append(changes, through(&memecho.Air{Trip: time.Millisecond}))
					}
					m, c := newManager(t, changes...)
					connect(t, c)
					pass(time.Minute)
					m.take()
					m.answer(fail)
					for i := range 600 {
						m.tell("web-0", []networkservice.State{networkservice.State_DOWN, networkservice.State_UP}[i%2])
						pass(100 * time.Millisecond)
					}
					asked := m.take()
					if n := len(asked); n < 5 || n > 40 { // of which each may be two Requests
						t.Errorf("asked %d times in a minute", n)
					}
					for _, a := range asked {
						if a.reselect && (liveness || fail == nil) {
							t.Error("a path on which packets flow was given up")
							break
						}
					}
					if n := log.count("WARN"); n > 4 || n > 0 && fail == nil {
						t.Errorf("%d warnings:\n%s", n, log.buf.String())
					}
				})
			})
		}
	}
}

// When one event concerns many wires they do not ask all at once while packets
// flow; when they do not, or nobody knows, they do.
func TestManyWiresOneEvent(t *testing.T) {
	for _, liveness := range []bool{true, false} {
		t.Run(fmt.Sprint("liveness check ", liveness), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const many = 200
				var changes []func(*Config)
				if liveness {
					changes = append(changes, through(&memecho.Air{Trip: time.Millisecond}))
				}
				m, c := newManager(t, changes...)
				for range many {
					connect(t, c)
				}
				pass(time.Minute)
				m.take()
				start := time.Now()
				for i := range many {
					m.tell(fmt.Sprintf("web-%d", i), networkservice.State_DOWN)
				}
				pass(time.Second)
				asked := m.take()
				moments := make(map[time.Duration]int)
				for _, a := range asked {
					d := a.at.Sub(start)
					moments[d/(20*time.Millisecond)]++
					if d > 200*time.Millisecond || !liveness && d != 0 {
						t.Errorf("asked after %v", d)
					}
				}
				if len(asked) != many {
					t.Errorf("%d wires asked %d times", many, len(asked))
				}
				for _, n := range moments {
					if liveness && n > many/4 {
						t.Errorf("%d of %d ask within 20 ms", n, many)
					}
				}
			})
		})
	}
}

// A wire that could not be healed while it lived is over: what is asked for then,
// with more and more time in between, is a new one, until Close.
func TestExpiredWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		m, c := newManager(t, logTo(&log))
		w := connect(t, c)
		end := time.Now().Add(life)
		pass(time.Minute)
		m.answer(nserr.ForwarderGone.Errorf("none"))
		m.tell("web-0", networkservice.State_DOWN)
		pass(time.Until(end) - time.Second)
		if n := len(w.Connection().GetPath().GetPathSegments()); n != 2 || log.count("expired") != 0 {
			t.Errorf("before its end: path of %d segments, log\n%s", n, log.buf.String())
		}
		m.take()
		pass(time.Second + 10*time.Millisecond)
		if log.count("wire has expired") != 1 || log.count("attempt=0") != 0 {
			t.Errorf("at its end:\n%s", log.buf.String())
		}
		for line := range strings.Lines(log.buf.String()) {
			if strings.Contains(line, "wire has expired") && !strings.Contains(line, nserr.ForwarderGone.Code) {
				t.Errorf("it is not said why: %s", line)
			}
		}
		pass(9 * time.Second)
		if n := len(w.Connection().GetPath().GetPathSegments()); n != 1 || w.Connection().GetState() != networkservice.State_DOWN {
			t.Errorf("after its end: path of %d segments, %v", n, w.Connection().GetState())
		}
		i := slices.IndexFunc(m.take(), func(a ask) bool { return a.segments == 1 && a.endpoint == "" })
		if i < 0 {
			t.Error("no new wire is asked for")
		}
		pass(10 * time.Minute)
		asked := m.take()
		for i, a := range asked {
			if a.segments != 1 || a.endpoint != "" {
				t.Errorf("asked %+v for a new wire", a)
			}
			if i > 10 && a.at.Sub(asked[i-1].at) > 31*time.Second {
				t.Errorf("%v between attempts", a.at.Sub(asked[i-1].at))
			}
		}
		if n := len(asked); n < 18 || n > 40 {
			t.Errorf("asked %d times in ten minutes", n)
		}
		if n := log.count("wire has expired"); n != 1 {
			t.Errorf("said %d times that the wire has expired", n)
		}
		m.answer(nil)
		pass(31 * time.Second)
		if tries, _, err := w.Status(); tries != 0 || err != nil || w.Connection().GetState() != networkservice.State_UP || len(w.Connection().GetPath().GetPathSegments()) != 2 {
			t.Errorf("%d tries, %v, %v", tries, err, w.Connection())
		}
		if w.Interface() != "made-up" || w.ID() != "web-0" {
			t.Errorf("interface %s of %s", w.Interface(), w.ID())
		}
		m.take()
		pass(2 * time.Minute)
		if asked := m.take(); len(asked) != 1 || asked[0].reselect || asked[0].segments != 2 {
			t.Errorf("then asked %+v, want one refresh", asked)
		}
	})
}

// A wire for which nobody has asked in time, as when its process was suspended, does not
// say that nothing was wrong.
func TestExpiredUnasked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		_, c := newManager(t, logTo(&log))
		w := connect(t, c)
		w.Leave() // nobody else changes it from here on
		w.expire()
		if log.count("wire has expired") != 1 || log.count("no Request was made in time") != 1 || log.count("nil") != 0 {
			t.Errorf("said\n%s", log.buf.String())
		}
	})
}

// What has failed in the life of a wire is no failure of the one that takes its place.
func TestStatusOfANewWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newManager(t)
		w := connect(t, c)
		m.answer(nserr.ForwarderGone.Errorf("none"))
		pass(life - time.Millisecond)
		if tries, _, err := w.Status(); tries == 0 || err == nil {
			t.Fatalf("%d tries, %v at the end of its life", tries, err)
		}
		var tries int
		var err error
		m.amend(func(*networkservice.Connection) {
			if tries, _, err = w.Status(); w.Connection().GetState() != networkservice.State_DOWN {
				t.Errorf("asked for as %v", w.Connection().GetState())
			}
		})
		pass(2 * time.Millisecond)
		m.answer(nil)
		pass(time.Second)
		if asked := m.take(); asked[len(asked)-1].segments != 1 {
			t.Fatalf("asked %+v at last, want a new wire", asked[len(asked)-1])
		}
		if tries != 0 || err != nil {
			t.Errorf("%d tries, %v while it is asked for the first time", tries, err)
		}
	})
}

// Closing what has expired asks nobody, and does not hang.
func TestCloseExpiredWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newManager(t)
		w := connect(t, c)
		m.answer(nserr.ForwarderGone.Errorf("none"))
		pass(2 * life)
		if err := w.Close(t.Context()); err != nil {
			t.Error(err)
		}
		m.take()
		pass(life)
		if asked, closed := m.take(), m.closes(); len(asked) != 0 || len(closed) != 0 {
			t.Errorf("asked %v, closed %v", asked, closed)
		}
	})
}

// Hops that do not say when their segments expire, or say that they have long, do
// not make a client that asks without end.
func TestStrangeExpiries(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*networkservice.PathSegment)
		asks   int // in ten minutes, at most
	}{
		{"none", func(s *networkservice.PathSegment) { s.Expires = nil }, 10},
		{"not a time", func(s *networkservice.PathSegment) { s.Expires = &timestamppb.Timestamp{Nanos: -1} }, 10},
		{"long past", func(s *networkservice.PathSegment) { s.Expires = timestamppb.New(time.Unix(0, 0)) }, 600},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, c := newManager(t)
				m.amend(func(c *networkservice.Connection) {
					far := &networkservice.PathSegment{Name: "far", Id: "f"}
					tt.change(far)
					c.Path.PathSegments = append(c.Path.PathSegments, far)
				})
				connect(t, c)
				m.take()
				pass(10 * time.Minute)
				if n := len(m.take()); n < 4 || n > tt.asks {
					t.Errorf("asked %d times in ten minutes", n)
				}
			})
		})
	}
}

// How often a wire was asked for in vain stands in the Requests and in the log: the
// first attempt and the first for each reason, then fewer and fewer.
func TestAttemptsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		m, c := newManager(t, logTo(&log))
		w := connect(t, c)
		pass(time.Minute)
		m.take()
		m.answer(nserr.ForwarderGone.Errorf("none"))
		m.tell("web-0", networkservice.State_DOWN)
		pass(time.Minute)
		m.answer(nserr.NoForwarder.Errorf("none"))
		pass(4 * time.Minute)
		asked := m.take()
		for i, a := range asked[:10] {
			tries, code := "", ""
			if i > 0 {
				// From the fourth on each attempt is two Requests.
				tries, code = fmt.Sprint(min(i, 4+max(0, i-4)/2)), nserr.ForwarderGone.Code
			}
			if a.metrics["attempts"] != tries || a.metrics["last_error"] != code {
				t.Errorf("Request %d: %v, want %s and %s", i, a.metrics, tries, code)
			}
		}
		if last := asked[len(asked)-1].metrics; last["last_error"] != nserr.NoForwarder.Code {
			t.Errorf("last %v", last)
		}
		tries, _, _ := w.Status()
		if n := log.count("level=WARN"); tries < 50 || n < 4 || n > 7 {
			t.Errorf("%d warnings of %d attempts:\n%s", n, tries, log.buf.String())
		}
		for _, attempt := range []string{"attempt=1 ", "attempt=8 ", "attempt=32 "} {
			if log.count(attempt) != 1 {
				t.Errorf("no line with %s:\n%s", attempt, log.buf.String())
			}
		}
		m.answer(nil)
		pass(6 * time.Second)
		m.take()
		pass(2 * time.Minute)
		if asked := m.take(); len(asked) != 1 || len(asked[0].metrics) != 0 {
			t.Errorf("asked %v when all is well again", asked)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/internal/backoff"
	"github.com/openvwire/nsm/sdk/nserr"
)

// retry spaces the attempts to open a stream: a peer that restarts is back within
// milliseconds, one that is gone is asked every few seconds.
var retry = backoff.Policy{Min: 20 * time.Millisecond, Max: 2 * time.Second}

const (
	// settle is how long after Subscribe a peer may not have told of the connection
	// yet: the event of a Request and its reply come on different streams.
	settle = time.Second
	// steady is how long a stream must have lived for the back-off to start over, and
	// to be spoken of as well again.
	steady = 5 * time.Second
	// calm is how long it must have lived for its next break not to count as one more.
	calm = time.Minute
	// maxState bounds the first state in bytes, which comes as one message: more than
	// a node can have connections, at about 1 KiB each.
	maxState = 64 << 20
)

// ChangesOnly is a metadata key with which a watcher says that it has no use for events
// of refreshes that change nothing but tokens. Our hops heed it, others do not know it:
// whoever sends refreshes through a peer gets its answers, which say more.
const ChangesOnly = "nsm-changes-only"

// Kind says what an Event means.
type Kind int

// What the far side of a wire can do.
const (
	// Update: the peer changed the connection; its state may be DOWN.
	Update Kind = iota + 1
	// Down: the peer has closed the connection, does not know it, or has told that
	// it is down before anybody has subscribed.
	Down
	// Lost: the peer cannot be watched; nothing is known about the connection.
	Lost
	// Restored: the peer can be watched again and still has the connection.
	Restored
)

func (k Kind) String() string {
	switch k {
	case Update:
		return "update"
	case Down:
		return "down"
	case Lost:
		return "lost"
	case Restored:
		return "restored"
	}
	return "none"
}

// Event is what happened to a connection at the next hop.
type Event struct {
	Kind Kind
	// Conn is the peer's view of it, shared and not to be changed. It is nil for
	// Lost, and for Down when the peer has never heard of the connection; when
	// nobody had subscribed it has no more than the state.
	Conn *networkservice.Connection
}

// Subscribe has f called with the events of the connection whose segment of this
// pool's name has the given id. Subscribe once the Request has succeeded: a
// connection that the peer does not know a second later counts as Down.
//
// All functions of a peer are called from one goroutine, in order, and must not
// block. cancel ends the subscription; a call that has begun may still be running
// when it returns. After Pool.Close nothing is called.
//
//	        first state                    error                first state
//	(opens) ───────────▶ Update/Down … ───────────▶ Lost … ───────────▶ Restored | Down …
func (p *Peer) Subscribe(id string, f func(Event)) (cancel func()) {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	if p.pool.closed {
		return func() {}
	}
	if p.monitor == nil {
		p.monitor = p.startMonitorLocked()
	}
	m := p.monitor
	s := &subscription{id: id, f: f, since: time.Now()}
	p.refLocked()
	m.add(s)
	return sync.OnceFunc(func() { p.unsubscribe(m, s) })
}

func (p *Peer) startMonitorLocked() *monitor {
	ctx, cancel := context.WithCancel(context.Background())
	m := &monitor{
		name:   p.pool.config.Name,
		log:    p.pool.config.Logger.With("peer", p.url),
		ignore: p.Ignore,
		cancel: cancel,
		wake:   make(chan struct{}, 1),
		subs:   make(map[string][]*subscription),
	}
	p.pool.streams.Go(func() { m.routineMonitor(ctx, p) })
	return m
}

// Ignore notes that what the peer told of a connection does not fit: it is old, or made
// up. It is nothing to act on; the log has it once for each reason, however many
// connections and events there are.
func (p *Peer) Ignore(id, why string) {
	level := p.pool.ignored.Level(slog.LevelInfo, p.url, why)
	p.pool.config.Logger.Log(context.Background(), level, "event of the peer is ignored", "peer", p.url, "connection", id, "error", why)
}

func (p *Peer) unsubscribe(m *monitor, s *subscription) {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	if m.remove(s) && p.monitor == m {
		p.monitor = nil
		m.cancel()
	}
	p.unrefLocked()
}

// monitor is the stream of one peer from the first subscription to the last. Its
// goroutine owns the state of the stream; subscribers come and go under mu.
type monitor struct {
	name   string
	log    *slog.Logger
	ignore func(id, why string)
	cancel context.CancelFunc
	wake   chan struct{} // holds one element when there are new subscriptions

	mu    sync.Mutex
	subs  map[string][]*subscription // by id
	young []*subscription            // not judged yet, in order of since; also in subs

	// Of routineMonitor alone:
	live   bool      // the first state of the current stream has come
	since  time.Time // when it came
	lost   bool      // subscribers have been told so
	breaks int       // how often it was lost since it was calm
	blamed bool      // the log says that it is lost
	// known has the own connections that the peer knows, valid while live.
	known *known
}

// subscription is one function for the events of one connection.
type subscription struct {
	id    string      // fixed
	f     func(Event) // fixed
	since time.Time   // fixed
	ended bool        // guarded by monitor.mu
	told  Kind        // last event; of routineMonitor alone
}

func (m *monitor) add(s *subscription) {
	m.mu.Lock()
	m.subs[s.id] = append(m.subs[s.id], s)
	m.young = append(m.young, s)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// remove reports whether s was the last.
func (m *monitor) remove(s *subscription) (last bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.ended = true
	isS := func(x *subscription) bool { return x == s }
	m.young = slices.DeleteFunc(m.young, isS)
	m.subs[s.id] = slices.DeleteFunc(m.subs[s.id], isS)
	if len(m.subs[s.id]) == 0 {
		delete(m.subs, s.id)
	}
	return len(m.subs) == 0
}

// routineMonitor keeps a stream open until ctx ends.
func (m *monitor) routineMonitor(ctx context.Context, p *Peer) {
	for attempt := 0; ; attempt++ {
		err := m.follow(ctx, p, attempt > 0)
		if ctx.Err() != nil {
			return
		}
		if m.live && time.Since(m.since) >= steady {
			attempt = 0
		}
		m.becomeLost(err)
		if !m.pause(ctx, retry.Delay(attempt)) {
			return
		}
	}
}

// pause waits for d and tells subscribers that come meanwhile.
func (m *monitor) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-m.wake:
			m.greet()
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// follow opens a stream and dispatches its events until it fails, or the peer says
// nothing at all. With patient it waits for a connection: who knows that the peer is
// lost wants to know the moment that it is back.
//
// When the connection of the stream is superseded another stream takes its place with
// its first event, which is all that the peer knows: what the old one has not told by
// then is part of that.
func (m *monitor) follow(ctx context.Context, p *Peer, patient bool) error {
	conn := p.Conn()
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	open := func(patient bool) *feed {
		f, ctx := newFeed(ctx)
		running.Go(func() {
			f.routineReceive(ctx, networkservice.NewMonitorConnectionClient(conn), m.name, grpc.WaitForReady(patient))
		})
		return f
	}
	feed, next := open(patient), noFeed
	failures := 0 // of next, in a row
	again := newStoppedTimer()
	defer again.Stop()

	young := time.NewTimer(settle)
	defer young.Stop()
	settled := newStoppedTimer() // until there is something to settle
	defer settled.Stop()
	pulse := newPulse(conn, p.pool.config.ProbeEvery)
	defer pulse.stop()
	take := func(e *networkservice.ConnectionEvent) {
		pulse.heard()
		before := m.live
		if m.dispatch(e); m.live && !before {
			settled.Reset(steady)
		}
	}
	for {
		select {
		case e := <-feed.events:
			take(e)
		case <-feed.superseded:
			next = open(true)
		case e := <-next.events:
			feed.end()
			feed, next, failures = next, noFeed, 0
			take(e)
		case <-next.failed:
			next = noFeed
			again.Reset(retry.Delay(failures))
			failures++
		case <-again.C:
			next = open(true)
		case <-m.wake:
			m.greet()
		case <-young.C:
		case <-settled.C:
			m.becomeSteady()
		case <-pulse.due.C:
			if pulse.isQuiet() {
				running.Go(func() { pulse.ask(ctx) })
			}
		case answered := <-pulse.answers:
			if !pulse.judge(answered) {
				return nserr.PeerDown.Errorf("%s has not answered for %v", p.url, 2*probeLimit)
			}
		case err := <-feed.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
		if next, more := m.judgeYoung(); more {
			young.Reset(next)
		}
	}
}

func newStoppedTimer() *time.Timer {
	t := time.NewTimer(0)
	t.Stop()
	return t
}

// becomeLost tells subscribers that have not been told. The log has the first time,
// and how often it happens if that goes on.
func (m *monitor) becomeLost(err error) {
	if m.live || m.breaks == 0 {
		if m.live && time.Since(m.since) >= calm {
			m.breaks = 0
		}
		switch m.breaks++; {
		case m.breaks == 1:
			m.blamed = true
			m.log.Info("connections of the peer cannot be watched", "error", err)
		case isPowerOfTen(m.breaks):
			m.blamed = true
			m.log.Warn("the peer is unstable", "count", m.breaks, "error", err)
		}
	}
	m.live, m.since, m.lost, m.known = false, time.Time{}, true, nil
	for _, s := range m.all() {
		if s.told != Lost {
			m.tell(s, Event{Kind: Lost})
		}
	}
}

func isPowerOfTen(n int) bool {
	for n >= 10 && n%10 == 0 {
		n /= 10
	}
	return n == 1
}

// becomeLive begins to believe the stream: what its first state lacks, the peer
// does not have.
func (m *monitor) becomeLive() {
	if !m.live {
		m.since = time.Now()
	}
	m.live, m.lost, m.known = true, false, newKnown()
}

// becomeSteady speaks well of a stream that has been live for some time.
func (m *monitor) becomeSteady() {
	if m.live && m.blamed {
		m.log.Info("connections of the peer are watched again", "count", m.breaks)
		m.blamed = false
	}
}

// greet tells newcomers what everybody else knows already: that the peer is lost.
func (m *monitor) greet() {
	if !m.lost {
		return
	}
	m.mu.Lock()
	young := slices.Clone(m.young)
	m.mu.Unlock()
	for _, s := range young {
		if s.told == 0 {
			m.tell(s, Event{Kind: Lost})
		}
	}
}

// dispatch takes in one event of the stream.
func (m *monitor) dispatch(e *networkservice.ConnectionEvent) {
	initial := e.GetType() == networkservice.ConnectionEventType_INITIAL_STATE_TRANSFER
	if initial {
		m.becomeLive()
	} else if m.known == nil {
		m.known = newKnown() // no first state; see live
	}
	for _, conn := range e.GetConnections() {
		id := ownID(conn, m.name)
		switch {
		case id == "" && !passes(conn, m.name):
			m.ignore(conn.GetId(), "it is of a connection that does not come from here")
		case id == "":
		case e.GetType() == networkservice.ConnectionEventType_DELETE:
			m.known.delete(id)
			m.tellAll(id, Event{Kind: Down, Conn: conn})
		default:
			m.known.set(id, conn.GetState() == networkservice.State_DOWN)
			m.tellAll(id, Event{Kind: Update, Conn: conn})
		}
	}
	m.trim()
	if initial {
		for _, s := range m.all() {
			if time.Since(s.since) >= settle {
				m.judge(s)
			}
		}
	}
}

// judgeYoung judges the subscriptions that have come of age. It returns how long
// the next one takes, if there is one. While the stream is not live they wait.
func (m *monitor) judgeYoung() (next time.Duration, more bool) {
	for m.live {
		m.mu.Lock()
		if len(m.young) == 0 {
			m.mu.Unlock()
			break
		}
		s := m.young[0]
		if age := time.Since(s.since); age < settle {
			m.mu.Unlock()
			return settle - age, true
		}
		m.young[0], m.young = nil, m.young[1:]
		m.mu.Unlock()
		m.judge(s)
	}
	return 0, false
}

// judge tells a subscriber whose connection the peer should know by now that it
// does not, or that it was down before anybody asked.
func (m *monitor) judge(s *subscription) {
	down, known := m.known.get(s.id)
	switch {
	case !known && s.told != Down:
		m.tell(s, Event{Kind: Down})
	case down && s.told == 0:
		m.tell(s, Event{Kind: Down, Conn: &networkservice.Connection{State: networkservice.State_DOWN}})
	}
}

// trim keeps in mind what somebody has subscribed to, and not much more.
func (m *monitor) trim() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known.trim(len(m.subs)+spare, func(id string) bool { return len(m.subs[id]) > 0 })
}

func (m *monitor) tellAll(id string, e Event) {
	m.mu.Lock()
	subs := slices.Clone(m.subs[id])
	m.mu.Unlock()
	for _, s := range subs {
		if e.Kind == Update && s.told == Lost {
			m.tell(s, Event{Kind: Restored, Conn: e.Conn})
		} else {
			m.tell(s, e)
		}
	}
}

func (m *monitor) tell(s *subscription, e Event) {
	m.mu.Lock()
	ended := s.ended
	m.mu.Unlock()
	if ended {
		return
	}
	s.told = e.Kind
	s.f(e)
}

// all returns all subscriptions. It is meant for rare occasions.
func (m *monitor) all() []*subscription {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*subscription, 0, len(m.subs))
	for _, subs := range m.subs {
		all = append(all, subs...)
	}
	return all
}

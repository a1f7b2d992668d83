// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/rpc"
)

// listener collects the events of one subscription.
type listener struct {
	mu     sync.Mutex
	events []Event
}

func (l *listener) hear(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// kinds returns the kinds heard since the last time, with the state of the connection.
func (l *listener) kinds() (kinds []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		k := e.Kind.String()
		if e.Conn.GetState() == networkservice.State_DOWN {
			k += "/DOWN"
		}
		kinds = append(kinds, k)
	}
	l.events = nil
	return kinds
}

func (l *listener) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := l.kinds(); !slices.Equal(got, want) {
		t.Errorf("heard %v, want %v", got, want)
	}
}

func TestOneStreamForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		h.first = initial(up("1"), up("2"), up("3"))
		p := newPool(t, h).Get("a")
		defer p.Release()
		var one, two, again listener
		cancels := []func(){p.Subscribe("1", one.hear), p.Subscribe("2", two.hear), p.Subscribe("1", again.hear)}
		synctest.Wait()
		if opened, open := h.count(); opened != 1 || open != 1 {
			t.Errorf("%d streams opened, %d open", opened, open)
		}
		one.kinds()
		two.kinds()
		again.kinds()

		h.send(update(up("1"), up("3")))
		one.expect(t, "update")
		again.expect(t, "update")
		two.expect(t)
		h.send(update(connection("2", networkservice.State_DOWN)))
		two.expect(t, "update/DOWN")
		h.send(remove(up("1")))
		one.expect(t, "down")
		again.expect(t, "down")
		h.send(update(&networkservice.Connection{}, nil, up("")))
		one.expect(t)
		two.expect(t)

		cancels[0]()
		cancels[0]()
		h.send(update(up("1")))
		one.expect(t)
		again.expect(t, "update")
		cancels[1]()
		cancels[2]()
		synctest.Wait()
		if _, open := h.count(); open != 0 {
			t.Error("the stream is open without subscriptions")
		}
		defer p.Subscribe("2", two.hear)()
		synctest.Wait()
		if opened, open := h.count(); opened != 2 || open != 1 {
			t.Errorf("%d streams opened, %d open", opened, open)
		}
	})
}

// Every stream says that it has no use for refreshes, also one that takes another's place.
func TestAsksForChangesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		p := newPool(t, h).Get("a")
		defer p.Release()
		defer p.Subscribe("1", new(listener).hear)()
		synctest.Wait()
		h.fail(up("1"))
		time.Sleep(5 * time.Second)
		h.set(func() {
			if h.opened < 2 || h.spared != h.opened {
				t.Errorf("of %d streams %d want changes only", h.opened, h.spared)
			}
		})
	})
}

func TestLostAndRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		h.first = initial(up("kept"), up("gone"))
		p := newPool(t, h).Get("a")
		defer p.Release()
		var kept, gone, newcomer listener
		defer p.Subscribe("kept", kept.hear)()
		defer p.Subscribe("gone", gone.hear)()
		kept.expect(t, "update")
		gone.expect(t, "update")
		time.Sleep(time.Minute)

		h.set(func() { h.down = true })
		h.fail(up("kept"))
		kept.expect(t, "lost")
		gone.expect(t, "lost")
		time.Sleep(time.Minute) // attempts that fail are not worth an event each
		kept.expect(t)
		if opened, _ := h.count(); opened < 20 || opened > 80 {
			t.Errorf("%d attempts in a minute", opened)
		}
		defer p.Subscribe("newcomer", newcomer.hear)()
		newcomer.expect(t, "lost")

		h.set(func() { h.down = false })
		time.Sleep(retry.Max)
		kept.expect(t, "restored")
		gone.expect(t, "down")
		newcomer.expect(t, "down") // it has been there for longer than settle
	})
}

// A peer that comes back at once is noticed within milliseconds, also one that
// went away and came back many times.
func TestRestoredQuickly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		h.first = initial(up("1"))
		p := newPool(t, h).Get("a")
		defer p.Release()
		var l listener
		defer p.Subscribe("1", l.hear)()
		l.expect(t, "update")
		for range 10 {
			time.Sleep(steady)
			h.fail(up("1"))
			time.Sleep(retry.Min)
			l.expect(t, "lost", "restored")
		}
	})
}

// The event of a Request may come after its reply. A subscriber is told Down only
// if it has not come after a while, and learns what happened before it asked.
func TestSubscribeWhileStreamRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		h.first = initial(up("other"), connection("broken", networkservice.State_DOWN), up("known"))
		p := newPool(t, h).Get("a")
		defer p.Release()
		var other, known, late, unknown, broken listener
		defer p.Subscribe("other", other.hear)()
		time.Sleep(time.Minute)

		for id, l := range map[string]*listener{"known": &known, "late": &late, "unknown": &unknown, "broken": &broken} {
			defer p.Subscribe(id, l.hear)()
		}
		time.Sleep(settle - 1)
		h.send(update(up("late")))
		late.expect(t, "update")
		unknown.expect(t)
		broken.expect(t)
		time.Sleep(time.Nanosecond)
		unknown.expect(t, "down")
		broken.expect(t, "down/DOWN")
		time.Sleep(time.Minute)
		for _, l := range []*listener{&known, &late, &unknown, &broken} {
			l.expect(t)
		}
		h.send(update(up("unknown")))
		unknown.expect(t, "update")
	})
}

// The first state of the first stream may be older than the connection, too.
func TestFirstStreamSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		p := newPool(t, h).Get("a")
		defer p.Release()
		var a, b listener
		defer p.Subscribe("a", a.hear)()
		defer p.Subscribe("b", b.hear)()
		a.expect(t)
		h.send(update(up("a")))
		time.Sleep(settle)
		a.expect(t, "update")
		b.expect(t, "down")
	})
}

// As long as a peer has not told its state, nothing follows from its silence.
func TestSilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		h.mute = true
		p := newPool(t, h).Get("a")
		defer p.Release()
		var l listener
		defer p.Subscribe("1", l.hear)()
		time.Sleep(time.Minute)
		l.expect(t)
		h.send(update(up("2"))) // an event without a first state
		l.expect(t)
		h.send(initial())
		l.expect(t, "down")
	})
}

// Functions may use the peer they hear from.
func TestSubscribeWithinEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		p := newPool(t, h).Get("a")
		defer p.Release()
		var second listener
		var cancelFirst, cancelSecond func()
		heard := 0
		cancelFirst = p.Subscribe("1", func(Event) {
			heard++
			cancelSecond = p.Subscribe("2", second.hear)
			cancelFirst()
		})
		synctest.Wait()
		h.send(update(up("1")))
		h.send(update(up("1"), up("2")))
		second.expect(t, "update")
		if heard != 1 {
			t.Errorf("heard %d events", heard)
		}
		cancelSecond()
		synctest.Wait()
		if _, open := h.count(); open != 0 {
			t.Error("the stream is open without subscriptions")
		}
	})
}

// twice is how the peer sees the own connection when the path passes it and the
// peer twice, as it does with an endpoint that passes traffic on; the second time
// has the id "2nd-ID". at is the index.
func twice(id string, at uint32) *networkservice.Connection {
	c := &networkservice.Connection{Path: &networkservice.Path{Index: at, PathSegments: []*networkservice.PathSegment{
		{Name: "client", Id: "client-" + id}, {Name: ownName, Id: id}, {Name: "peer", Id: "peer-" + id},
		{Name: "middle", Id: "middle-" + id}, {Name: ownName, Id: "2nd-" + id}, {Name: "peer", Id: "peer-2nd-" + id},
	}}}
	c.Id = c.Path.PathSegments[at].Id
	return c
}

// A path that passes here more than once has a connection for each time; what the
// peer tells is of the one that its index says. The index is the peer's own, or
// (the reference has both) that of the hop before it.
func TestPathPassesTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		h.first = initial(twice("1", 2), twice("1", 5), twice("2", 1), twice("2", 4))
		p := newPool(t, h).Get("a")
		defer p.Release()
		ids := []string{"1", "2nd-1", "2", "2nd-2"}
		listeners := make(map[string]*listener)
		for _, id := range ids {
			listeners[id] = new(listener)
			defer p.Subscribe(id, listeners[id].hear)()
		}
		time.Sleep(2 * settle)
		for _, id := range ids {
			listeners[id].expect(t, "update")
		}
		broken := twice("1", 5)
		broken.State = networkservice.State_DOWN
		h.send(update(broken))
		listeners["2nd-1"].expect(t, "update/DOWN")
		listeners["1"].expect(t)
		h.send(remove(twice("1", 2)))
		listeners["1"].expect(t, "down")
		listeners["2nd-1"].expect(t)
		// The peer is a hop elsewhere on the path, or nowhere: nothing of ours.
		elsewhere := twice("2", 3)
		outside := twice("2", 2)
		outside.Path.Index = 9
		h.send(remove(elsewhere, outside))
		for _, id := range ids {
			listeners[id].expect(t)
		}
	})
}

func TestManySubscriptionsNoGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHop(t)
		p := newPool(t, h).Get("a")
		defer p.Release()
		var first []*networkservice.Connection
		listeners := make([]listener, 1000)
		for i := range listeners {
			id := fmt.Sprint(i)
			first = append(first, up(id))
			defer p.Subscribe(id, listeners[i].hear)()
		}
		time.Sleep(time.Minute)
		h.fail(first...)
		time.Sleep(retry.Min)
		synctest.Wait()
		for i := range listeners {
			listeners[i].expect(t, "down", "lost", "restored")
		}
		if opened, _ := h.count(); opened != 2 {
			t.Errorf("%d streams opened", opened)
		}
	})
}

// The same over a socket, with a server that dies and another that takes its place.
func TestServerRestarts(t *testing.T) {
	client, server := rpc.Plaintext()
	url := "unix://" + filepath.Join(t.TempDir(), "s.sock")
	start := func() (stop func()) {
		l, err := rpc.Listen(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		s := rpc.NewServer(rpc.ServerOptions{Credentials: server, Logger: quiet})
		rpc.RegisterMonitorConnection(s, &hop{first: initial(up("1"))})
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(l) }()
		return func() { s.Stop(); <-done }
	}
	pool := NewPool(PoolConfig{Name: ownName, Logger: quiet, Dial: func(url string) (grpc.ClientConnInterface, io.Closer, error) {
		cc, err := rpc.Dial(url, rpc.DialOptions{Credentials: client})
		return cc, cc, err
	}})
	defer pool.Close()
	p := pool.Get(url)
	defer p.Release()

	stop := start()
	events := make(chan Event, 10)
	defer p.Subscribe("1", func(e Event) { events <- e })()
	for _, want := range []Kind{Update, Lost, Restored} {
		select {
		case e := <-events:
			if e.Kind != want {
				t.Fatalf("heard %v, want %v", e.Kind, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("waited in vain for %v", want)
		}
		switch want {
		case Update:
			stop()
		case Lost:
			stop = start()
		}
	}
	stop()
}

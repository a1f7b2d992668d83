// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/endpoint"
	"github.com/openvwire/nsm/sdk/nserr"
)

// takes is a handler that is busy for a while with each Request.
func takes(d time.Duration) []endpoint.Middleware {
	return []endpoint.Middleware{func(next endpoint.Handler) endpoint.Handler {
		return endpoint.Funcs{OnRequest: func(ctx context.Context, r *endpoint.Request) error {
			time.Sleep(d)
			return next.Request(ctx, r)
		}, OnClose: next.Close}
	}}
}

// tally counts how Requests end.
type tally struct {
	t  *testing.T
	mu sync.Mutex

	made    []*client.Wire // guarded by mu
	refused int            // guarded by mu
	going   sync.WaitGroup
}

// ask has a client ask for a wire, and notes how that ends. Who is refused must be told so,
// and when to try again.
func (y *tally) ask(c *Client, url string) {
	y.going.Go(func() {
		w, err := c.Try(y.t.Context(), url)
		y.mu.Lock()
		defer y.mu.Unlock()
		switch e := nserr.From(err); {
		case err == nil:
			y.made = append(y.made, w)
		case errors.Is(err, nserr.Busy) && e.Retry > 0:
			y.refused++
		default:
			y.t.Errorf("%s: %v", url, err)
		}
	})
}

// closeAll closes what was made, a few at a time are enough.
func (y *tally) closeAll(c *Client) {
	y.going.Wait()
	for _, w := range y.made {
		c.Close(w)
	}
	y.made = nil
}

// Under four times the load that a node can bear it makes as many wires as ever, what is
// up stays up, Closes are not delayed, nobody waits because another one asks for much, and
// when it is over everything is as it was.
func TestOverload(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		const (
			places   = 4
			each     = 100 * time.Millisecond
			capacity = int(places * time.Second / each) // wires per second
			during   = 10                               // seconds
		)
		m.places = places
		a := m.Node("a")
		a.Serve(Service{Name: "db", CIDR: "10.60.0.0/16", With: takes(each)})
		old, greedy, modest := a.Client("old"), a.Client("greedy"), a.Client("modest")
		for _, c := range []string{"old", "greedy", "modest"} { // not made while others look for theirs
			m.Space(c)
		}
		held := &tally{t: t}
		for i := range 20 {
			held.ask(old, fmt.Sprintf("kernel://db/old-%d", i))
			held.going.Wait()
		}
		m.Network.Forget()
		Pass(106 * time.Second) // refreshes come between 108 and 120 s

		load, fair := &tally{t: t}, &tally{t: t}
		n := 0
		for second := range during {
			for range 4 * capacity {
				load.ask(greedy, fmt.Sprintf("kernel://db/g-%d", n))
				n++
				time.Sleep(time.Second / time.Duration(4*capacity))
			}
			fair.ask(modest, fmt.Sprintf("kernel://db/m-%d", second))
			if second == during/2 { // a Close waits for nobody
				start := time.Now()
				old.Close(held.made[0])
				if took := time.Since(start); took > each {
					t.Errorf("a Close took %v", took)
				}
				held.made = held.made[1:]
			}
		}
		load.going.Wait()
		fair.going.Wait()
		fmt.Printf("MEASURED: under 4 times the load it can bear a node of %d wires per second made %d in %d s and refused %d (in a bubble)\n",
			capacity, len(load.made)+len(fair.made), during, load.refused)
		if n := len(load.made); n < during*capacity*8/10 || load.refused == 0 {
			t.Errorf("%d of %d wires made in %d s, %d refused; %d per second is what the node can do", n, 4*during*capacity, during, load.refused, capacity)
		}
		if fair.refused > 0 {
			t.Errorf("%d of %d Requests of somebody modest were refused", fair.refused, during)
		}
		for _, w := range held.made {
			if attempts, _, err := w.Status(); attempts > 0 {
				t.Errorf("wire %s was not refreshed: %v", w.ID(), err)
			}
		}
		if refreshes := m.Network.CallsBy("old", "Request"); refreshes < 5 {
			t.Errorf("%d refreshes under load are too few to show anything", refreshes)
		}

		// A second later nobody waits any more.
		Pass(time.Second)
		start := time.Now()
		w := modest.Connect("kernel://db/last")
		if took := time.Since(start); took != each {
			t.Errorf("after the burst a wire took %v, want %v", took, each)
		}
		modest.Close(w)
		load.closeAll(greedy)
		fair.closeAll(modest)
		held.closeAll(old)
		m.CheckEmpty()
	})
}

// Managers that wait for each other do not block each other, however few places they
// have, and who is refused gets a wire later.
func TestGatesInACircle(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		m.places = 1
		a, b := m.Node("a"), m.Node("b")
		a.Serve(Service{Name: "at-a", CIDR: "10.60.0.0/24", With: takes(time.Millisecond)})
		b.Serve(Service{Name: "at-b", CIDR: "10.61.0.0/24", With: takes(time.Millisecond)})
		ca, cb := a.Client("of-a"), b.Client("of-b")
		m.Space("of-a")
		m.Space("of-b")
		var opening sync.WaitGroup
		var mu sync.Mutex
		wires := make(map[*Client][]*client.Wire)
		for i := range 10 {
			for c, service := range map[*Client]string{ca: "at-b", cb: "at-a"} {
				opening.Go(func() {
					w, err := c.Ask(t.Context(), client.Request{Service: service, Interface: fmt.Sprint("nsm-", i), Retry: true})
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					wires[c] = append(wires[c], w)
				})
			}
		}
		opening.Wait()
		synctest.Wait()
		for c, all := range wires {
			for _, w := range all {
				c.Close(w)
			}
		}
		m.CheckEmpty()
	})
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/openvwire/nsm/sdk/client"
)

// phase is how far a Request or Close of a wire across nodes has come: it is on its way
// to the hop of that number, or the answer is on its way back from there.
type phase struct {
	hop    int
	answer bool
}

func (p phase) String() string {
	way := "to"
	if p.answer {
		way = "back from"
	}
	return fmt.Sprintf("%s hop %d", way, p.hop)
}

var phases = func() (all []phase) {
	for hop := range 5 {
		all = append(all, phase{hop, false}, phase{hop, true})
	}
	return all
}()

// holdAt has all calls of a method wait when one of them, of those to come, is at a
// phase.
func (m *Mesh) holdAt(method string, p phase) (reached <-chan struct{}) {
	held := make(chan struct{})
	var once sync.Once
	hold := func() { once.Do(func() { m.Network.Hold(method); close(held) }) }
	var nth int // of the call; SetFate's function is not called twice at once
	var url atomic.Value
	m.Network.SetFate(func(c Call) Fate {
		if c.Method != method {
			return Deliver
		}
		if nth == p.hop {
			url.Store(c.To)
			if !p.answer {
				hold()
			}
		}
		nth++
		return Deliver
	})
	m.Network.SetServed(func(c Call) {
		if p.answer && c.Method == method && c.To == url.Load() {
			hold()
		}
	})
	return held
}

// goOn has them go on.
func (m *Mesh) goOn() {
	m.Network.SetFate(nil)
	m.Network.SetServed(nil)
	m.Network.Hold("")
}

// Any part may be killed at any phase of a Request, a refresh and a Close, and start
// again at once. What was asked for can be had at once then, if need be by asking again
// for the same; what stood is the same to the last parameter; nothing is left of what
// was closed when it was closed again, nor of what nobody cares for any more when the
// life of a token has passed.
func TestRestartsAtEachPhase(t *testing.T) {
	parts := []struct {
		name     string
		hop      int // which it is on the way, -1 if none
		down, up func(*rig)
	}{
		{"registry", -1, func(r *rig) { r.StopRegistry() }, func(r *rig) { r.StartRegistry() }},
		{"manager", 0, func(r *rig) { r.a.StopManager() }, func(r *rig) { r.a.StartManager() }},
		{"forwarder", 1, func(r *rig) { r.a.Forwarder().Stop() }, func(r *rig) { r.a.StartForwarder("forwarder-a", map[string]string{"p2p": "true"}) }},
		{"far manager", 2, func(r *rig) { r.b.StopManager() }, func(r *rig) { r.b.StartManager() }},
		{"far forwarder", 3, func(r *rig) { r.b.Forwarder().Stop() }, func(r *rig) { r.b.StartForwarder("forwarder-b", map[string]string{"p2p": "true"}) }},
		{"endpoint", 4, func(r *rig) { r.e.Vanish() }, func(r *rig) { r.e = r.b.Serve(Service{Name: "db", CIDR: "10.60.0.0/24"}) }},
	}
	request := client.Request{ID: "the-wire", Service: "db", Interface: "nsm-1", Retry: true}
	begin := func(m *Mesh) *rig {
		r := &rig{Mesh: m, a: m.Node("a"), b: m.Node("b")}
		r.e = r.b.Serve(Service{Name: "db", CIDR: "10.60.0.0/24"})
		r.c = r.a.Client("web")
		return r
	}
	// again asks for the wire as whoever was refused does.
	again := func(t *testing.T, r *rig) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var err error
		if r.w, err = r.c.Ask(ctx, request); err != nil {
			t.Fatalf("not to be had: %v", err)
		}
	}
	// forgotten checks that what has failed half-way is gone in the end, and asks then.
	forgotten := func(t *testing.T, r *rig) {
		t.Helper()
		Pass(TokenLifetime + time.Minute)
		r.CheckEmpty()
		again(t, r)
	}
	ask := func(r *rig, p phase, restart func()) error {
		held := r.holdAt("Request", p)
		done := make(chan error, 1)
		go func() {
			once := request
			once.Retry = false
			ctx, cancel := context.WithTimeout(r.t.Context(), 15*time.Second)
			defer cancel()
			var err error
			r.w, err = r.c.Ask(ctx, once)
			done <- err
		}()
		<-held
		restart()
		return <-done
	}
	closes := func(r *rig, p phase, restart func()) {
		held := r.holdAt("Close", p)
		done := make(chan error, 1)
		go func() { done <- r.w.Close(r.t.Context()) }()
		<-held
		restart()
		<-done
	}
	operations := []struct {
		name string
		do   func(t *testing.T, r *rig, p phase, hop int, restart func())
	}{
		{"Request", func(t *testing.T, r *rig, p phase, hop int, restart func()) {
			if ask(r, p, restart) != nil {
				again(t, r)
			}
		}},
		{"forgotten Request", func(t *testing.T, r *rig, p phase, hop int, restart func()) {
			if ask(r, p, restart) != nil {
				forgotten(t, r)
			}
		}},
		{"refresh", func(t *testing.T, r *rig, p phase, hop int, restart func()) {
			again(t, r)
			before, steps := View(r.w), r.steps()
			<-r.holdAt("Request", p)
			restart()
			Pass(5 * time.Minute)
			if diff := cmp.Diff(before, View(r.w)); diff != "" || r.steps() != steps {
				t.Errorf("the wire has changed in %d steps (-before +after):\n%s", r.steps()-steps, diff)
			}
		}},
		{"Close", func(t *testing.T, r *rig, p phase, hop int, restart func()) {
			again(t, r)
			closes(r, p, restart)
			if !p.answer && p.hop == hop { // it passes on what it does not know
				Pass(time.Second)
				r.CheckEmpty()
			}
			again(t, r)
		}},
		{"forgotten Close", func(t *testing.T, r *rig, p phase, hop int, restart func()) {
			again(t, r)
			closes(r, p, restart)
			forgotten(t, r)
		}},
	}
	for _, op := range operations {
		for _, part := range parts {
			for _, p := range phases {
				t.Run(fmt.Sprintf("%s %s/%s", op.name, p, part.name), func(t *testing.T) {
					Run(t, func(t *testing.T, m *Mesh) {
						r := begin(m)
						op.do(t, r, p, part.hop, func() {
							part.down(r)
							part.up(r)
							m.goOn()
						})
						Pass(5 * time.Second)
						if tries, _, err := r.w.Status(); err != nil || tries != 0 || !Up(r.w) || !r.flows() {
							t.Errorf("the wire is not up: %v, %d tries", err, tries)
						}
						r.c.Close(r.w)
						Pass(time.Second)
						m.CheckEmpty()
					})
				})
			}
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/internal/echo/memecho"
	"github.com/openvwire/nsm/sdk/client"
	"github.com/openvwire/nsm/sdk/hop"
)

// Schedule is a history of a mesh, as text: what happens to it, one step after the
// other. A step is a verb and what it is about.
//
//	open web-0      close web-0     the client asks for its wire, closes it
//	kill PART       start PART      as a SIGKILL does; it knows nothing afterwards
//	freeze PART     thaw PART       the process is stopped, goes on
//	cut a>b         heal a>b        nothing gets from node a to node b
//	events FATE     calls FATE      what becomes of every third event, of every fifth Request and Close
//	refresh ENDPOINT reselect ENDPOINT   it asks its clients for that
//	rotate PART                     it gets another key
//	pass DURATION
//
// A step that makes no sense, to kill what is dead, does nothing; so every part of a
// schedule is one.
type Schedule []string

func (s Schedule) String() string { return strings.Join(s, "; ") }

// ParseSchedule is the inverse of String.
func ParseSchedule(text string) (s Schedule) {
	for step := range strings.SplitSeq(text, ";") {
		if step = strings.TrimSpace(step); step != "" {
			s = append(s, step)
		}
	}
	return s
}

// The cast of every schedule: three nodes, an endpoint of one service on each, two
// clients on each of two nodes, of which one pings.
var (
	castNodes     = []string{"a", "b", "c"}
	castEndpoints = map[string]string{"here": "a", "one": "b", "two": "c"}
	castClients   = map[string]string{"web-0": "a", "web-1": "a", "web-2": "b", "web-3": "b"}
)

// castParts are those that can be killed.
func castParts() []string {
	parts := []string{"registry"}
	for _, n := range castNodes {
		parts = append(parts, "manager-"+n, "forwarder-"+n)
	}
	return slices.Concat(parts, slices.Sorted(maps.Keys(castEndpoints)), slices.Sorted(maps.Keys(castClients)))
}

// RandomSchedule is the one with a seed.
func RandomSchedule(seed uint64) (s Schedule) {
	r := rand.New(rand.NewPCG(seed, 0))
	one := func(of ...string) string { return of[r.IntN(len(of))] }
	parts, clients := castParts(), slices.Sorted(maps.Keys(castClients))
	endpoints := slices.Sorted(maps.Keys(castEndpoints))
	for _, c := range clients {
		s = append(s, "open "+c)
	}
	for range 10 + r.IntN(20) {
		verb := one("open", "open", "close", "kill", "kill", "start", "start", "start", "freeze", "thaw", "thaw", "cut", "heal", "heal", "events", "calls", "refresh", "reselect", "rotate")
		switch verb {
		case "open", "close":
			s = append(s, verb+" "+one(clients...))
		case "cut", "heal":
			s = append(s, verb+" "+one("a>b", "b>a", "a>c", "c>a", "b>c", "c>b"))
		case "events":
			s = append(s, verb+" "+one("told", "lost", "doubled", "swapped"))
		case "calls":
			s = append(s, verb+" "+one("delivered", "delivered", "lost", "unanswered", "doubled", "refused"))
		case "refresh", "reselect":
			s = append(s, verb+" "+one(endpoints...))
		default:
			s = append(s, verb+" "+one(parts...))
		}
		if r.IntN(3) > 0 {
			s = append(s, "pass "+one("10ms", "300ms", "1s", "3s", "10s", "30s", "1m0s", "2m0s", "4m0s", "11m0s"))
		}
	}
	return s
}

var callFates = map[string]Fate{"delivered": Deliver, "lost": LoseRequest, "unanswered": LoseReply, "doubled": Double, "refused": Refuse}
var eventFates = map[string]EventFate{"told": Tell, "lost": DropEvent, "doubled": TellTwice, "swapped": TellLater}

// stage is a mesh while a schedule is played.
type stage struct {
	*Mesh
	t       *critic
	nodes   map[string]*Node
	ends    map[string]*Endpoint // that are up
	clients map[string]*Client   // that are up
	wires   map[string]*client.Wire
	frozen  map[string]bool
	cut     map[string]bool
	calls   int
	events  int
	fates   bool // calls or events are disturbed
	leases  string
}

// Play plays a schedule in a bubble, until all is well again, and returns what was
// wrong at which step.
func Play(t *testing.T, s Schedule) (wrong []string) {
	leases := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := &critic{TB: t}
		defer func() { wrong = c.wrong }()
		m := newMesh(c)
		defer m.stop()
		c.watch(func() { play(c, m, s, leases) })
	})
	return wrong
}

// critic is a testing.TB that writes down what fails.
type critic struct {
	testing.TB
	step  string
	wrong []string
}

type fatal struct{}

func (c *critic) Errorf(format string, args ...any) {
	c.wrong = append(c.wrong, c.step+": "+fmt.Sprintf(format, args...))
}
func (c *critic) Error(args ...any)                 { c.Errorf("%s", fmt.Sprint(args...)) }
func (c *critic) Fatalf(format string, args ...any) { c.Errorf(format, args...); panic(fatal{}) }
func (c *critic) Fatal(args ...any)                 { c.Fatalf("%s", fmt.Sprint(args...)) }

// watch runs f, which Fatal ends.
func (c *critic) watch(f func()) {
	defer func() {
		if r := recover(); r != nil && r != any(fatal{}) {
			panic(r)
		}
	}()
	f()
}

func play(c *critic, m *Mesh, schedule Schedule, leases string) {
	s := &stage{
		Mesh: m, t: c, nodes: make(map[string]*Node), ends: make(map[string]*Endpoint), clients: make(map[string]*Client),
		wires: make(map[string]*client.Wire), frozen: make(map[string]bool), cut: make(map[string]bool), leases: leases,
	}
	c.step = "begin"
	m.StartRegistry()
	for _, n := range castNodes {
		s.nodes[n] = m.Node(n)
		m.Userspace = true // on all but the first
	}
	s.startAll()
	for i, step := range schedule {
		c.step = fmt.Sprintf("step %d, %s", i, step)
		verb, about, _ := strings.Cut(step, " ")
		s.do(verb, about)
		synctest.Wait()
		s.check()
		if len(c.wrong) > 0 {
			return
		}
	}
	s.end()
}

func (s *stage) do(verb, about string) {
	switch verb {
	case "pass":
		d, err := time.ParseDuration(about)
		if err != nil {
			s.t.Fatalf("%v", err)
		}
		Pass(d)
	case "open":
		s.open(about)
	case "close":
		s.close(about)
	case "kill":
		s.kill(about)
	case "start":
		s.start(about)
	case "freeze", "thaw":
		s.frozen[about] = verb == "freeze"
		s.applyCuts()
	case "cut", "heal":
		s.cut[about] = verb == "cut"
		s.applyCuts()
	case "calls":
		s.disturbCalls(callFates[about])
	case "events":
		s.disturbEvents(eventFates[about])
	case "refresh", "reselect":
		if e := s.ends[about]; e != nil {
			e.ask(map[string]networkservice.State{"refresh": networkservice.State_REFRESH_REQUESTED, "reselect": networkservice.State_RESELECT_REQUESTED}[verb])
		}
	case "rotate":
		if p := s.part(about); p != nil {
			p.Rotate()
		}
	default:
		s.t.Fatalf("no such step")
	}
}

// part is a part that is up, nil if it is not.
func (s *stage) part(name string) *part {
	kind, node, _ := strings.Cut(name, "-")
	switch n := s.nodes[node]; {
	case name == "registry" && s.registry != nil:
		return s.registry.part
	case kind == "manager" && n.Manager != nil:
		return n.Manager.part
	case kind == "forwarder" && n.Forwarder() != nil:
		return n.Forwarder().part
	case s.ends[name] != nil:
		return s.ends[name].part
	case s.clients[name] != nil:
		return s.clients[name].part
	}
	return nil
}

func (s *stage) kill(name string) {
	if s.part(name) == nil {
		return
	}
	kind, node, _ := strings.Cut(name, "-")
	switch {
	case name == "registry":
		s.StopRegistry()
	case kind == "manager":
		s.nodes[node].StopManager()
	case kind == "forwarder":
		s.nodes[node].Forwarder().Stop()
	case s.ends[name] != nil:
		s.ends[name].Vanish()
		delete(s.ends, name)
	case s.clients[name] != nil:
		s.clients[name].Vanish()
		delete(s.clients, name)
		delete(s.wires, name)
	}
}

// start starts a part that is down, if it can start now: some wait for others.
func (s *stage) start(name string) {
	if s.part(name) != nil {
		return
	}
	kind, at, _ := strings.Cut(name, "-")
	switch n := s.nodes[at]; {
	case name == "registry":
		s.StartRegistry()
	case kind == "manager":
		n.StartManager()
	case kind == "forwarder":
		if s.listens("manager-"+at) && !s.frozen[name] {
			n.StartForwarder(name, map[string]string{"p2p": "true"})
		}
	case castEndpoints[name] != "":
		n := s.nodes[castEndpoints[name]]
		if s.listens("manager-"+n.Name) && s.listens("registry") && !s.frozen[name] {
			i := slices.Index(castNodes, n.Name)
			s.ends[name] = n.Serve(Service{Name: "db", Endpoint: name, CIDR: fmt.Sprintf("10.%d.0.0/24", 60+i), Leases: filepath.Join(s.leases, name)})
		}
	case castClients[name] != "":
		n := s.nodes[castClients[name]]
		if strings.HasSuffix(name, "1") || strings.HasSuffix(name, "2") {
			s.clients[name] = n.Client(name, s.Pings)
		} else {
			s.clients[name] = n.Client(name)
		}
	}
}

// listens reports whether a part is up and hears.
func (s *stage) listens(name string) bool { return s.part(name) != nil && !s.frozen[name] }

func (s *stage) startAll() {
	for _, name := range castParts() {
		s.start(name)
	}
}

func (s *stage) open(name string) {
	c := s.clients[name]
	if c == nil || s.wires[name] != nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	w, err := c.Ask(ctx, client.Request{ID: "wire-of-" + name, Service: "db", Interface: "nsm-1"})
	if err == nil {
		s.wires[name] = w
	}
}

// close closes a wire. On a healthy mesh that reaches the end at once.
func (s *stage) close(name string) {
	w := s.wires[name]
	if w == nil {
		return
	}
	delete(s.wires, name)
	path := View(w)
	err := w.Close(s.t.Context())
	if !s.healthy() || path.Endpoint == "" {
		return
	}
	Pass(time.Second)
	if err != nil {
		s.t.Errorf("not closed: %v", err)
	}
	for _, h := range s.hops() {
		for _, id := range path.IDs {
			if _, ok := h.monitor.Get(id); ok {
				s.t.Errorf("closed, and still at %s", h.name)
			}
		}
	}
}

// healthy reports whether nothing is wrong with the mesh now, nor with what was built
// before.
func (s *stage) healthy() bool {
	for _, name := range castParts() {
		if castClients[name] == "" && !s.listens(name) {
			return false
		}
	}
	return !s.fates && !slices.Contains(slices.Collect(maps.Values(s.cut)), true) && s.allUp()
}

// allUp reports whether all wires are up, and have been for a while.
func (s *stage) allUp() bool {
	for _, w := range s.wires {
		if tries, _, err := w.Status(); tries != 0 || err != nil || !Up(w) {
			return false
		}
	}
	return true
}

func (s *stage) applyCuts() {
	frozen, cut := maps.Clone(s.frozen), make(map[string]bool)
	for pair, is := range s.cut {
		cut[pair] = is
	}
	nodes := maps.Clone(castEndpoints)
	maps.Copy(nodes, castClients)
	for _, n := range castNodes {
		nodes["manager-"+n], nodes["forwarder-"+n] = n, n
	}
	s.Network.SetCut(func(from, to string) bool {
		return frozen[from] || frozen[to] || cut[nodes[from]+">"+nodes[to]]
	})
}

func (s *stage) disturbCalls(fate Fate) {
	n := 0
	s.calls = int(fate)
	s.fates = s.calls != int(Deliver) || s.events != int(Tell)
	s.Network.SetFate(func(c Call) Fate {
		if c.Method != "Request" && c.Method != "Close" {
			return Deliver
		}
		if n++; n%5 != 0 {
			return Deliver
		}
		return fate
	})
}

func (s *stage) disturbEvents(fate EventFate) {
	n := 0
	s.events = int(fate)
	s.fates = s.calls != int(Deliver) || s.events != int(Tell)
	s.Network.SetEventFate(func(Told) EventFate {
		if n++; n%3 != 0 {
			return Tell
		}
		return fate
	})
}

// end lets all be well again and checks that it is, and that nothing is left at last.
func (s *stage) end() {
	s.t.step = "when all is well"
	clear(s.frozen)
	clear(s.cut)
	s.applyCuts()
	s.disturbCalls(Deliver)
	s.disturbEvents(Tell)
	s.startAll()
	Pass(2 * TokenLifetime)
	s.check()
	for name, w := range s.wires {
		if tries, _, err := w.Status(); tries != 0 || err != nil || !Up(w) {
			s.t.Errorf("the wire of %s is not up: %d tries, %v", name, tries, err)
		}
		if !s.flows(name, w) {
			s.t.Errorf("nothing flows on the wire of %s", name)
		}
	}
	s.checkOrphans()
	for _, name := range slices.Sorted(maps.Keys(s.wires)) {
		s.close(name)
	}
	Pass(time.Second)
	s.CheckEmpty()
}

// hopAt is a hop with what it shows.
type hopAt struct {
	name    string
	monitor *hop.Monitor
	views   []*hop.View
}

func (s *stage) hops() (hops []hopAt) {
	add := func(name string, m *hop.Monitor) {
		hops = append(hops, hopAt{name, m, m.Visible(ID("observer"))})
	}
	for _, n := range s.nodes {
		if n.Manager != nil {
			add(n.Manager.name, n.Manager.Monitor())
		}
		for _, f := range n.forwarders {
			add(f.name, f.Monitor())
		}
		for _, e := range n.endpoints {
			add(e.name, e.Server.Monitor())
		}
	}
	return hops
}

// check checks what must be so at any time: no two clients have an address in common,
// no hop has two connections of one wire at the same place of its path, nor one that
// has expired.
func (s *stage) check() {
	owner := make(map[string]string)
	for name, w := range s.wires {
		if !Up(w) {
			continue
		}
		for _, a := range w.Addrs() {
			if other := owner[a.String()]; other != "" {
				s.t.Errorf("%s and %s both have %v", other, name, a)
			}
			owner[a.String()] = name
		}
	}
	now := time.Now()
	for _, h := range s.hops() {
		seen := make(map[string]string)
		for _, v := range h.views {
			segments, at := v.Conn().GetPath().GetPathSegments(), int(v.Conn().GetPath().GetIndex())
			key := fmt.Sprintf("%s at %d", v.FirstID(), at)
			if id := seen[key]; id != "" {
				s.t.Errorf("%s has %s twice, as %s and %s", h.name, key, id, v.Conn().GetId())
			}
			seen[key] = v.Conn().GetId()
			if end := segments[at-1].GetExpires().AsTime(); now.After(end.Add(time.Second)) {
				s.t.Errorf("%s has %s, which ended %v ago", h.name, key, now.Sub(end))
			}
		}
	}
}

// flows reports whether packets get from one end of a client's wire to the other.
func (s *stage) flows(name string, w *client.Wire) bool {
	return len(w.Addrs()) > 0 && s.carries(memecho.Path{NetNS: s.Space(name), From: w.Addrs()[0], To: w.PeerAddrs()[0]})
}

// checkOrphans checks that each hop knows what the paths of the wires name, and
// nothing else.
func (s *stage) checkOrphans() {
	want := make(map[string]bool) // "hop id"
	for _, w := range s.wires {
		v := View(w)
		for i := range v.IDs[1:] {
			want[v.Names[i+1]+" "+v.IDs[i+1]] = true
		}
	}
	have := make(map[string]bool)
	for _, h := range s.hops() {
		for _, v := range h.views {
			have[h.name+" "+v.Conn().GetId()] = true
		}
	}
	if !reflect.DeepEqual(want, have) {
		s.t.Errorf("hops have %v, the wires need %v", slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(want)))
	}
}

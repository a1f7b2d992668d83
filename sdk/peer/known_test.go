// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/path"
)

// The oldest goes first, what is wanted never.
func TestTrim(t *testing.T) {
	k := newKnown()
	for i := range 10 {
		k.set(fmt.Sprint(i), i == 4)
	}
	k.delete("7")
	k.delete("7")
	k.set("2", true) // heard of again
	wanted := func(id string) bool { return id == "0" || id == "4" }
	k.trim(6, wanted)
	for i, want := range map[int]string{0: "up", 1: "", 2: "down", 3: "", 4: "down", 5: "", 6: "up", 7: "", 8: "up", 9: "up"} {
		var got string
		if down, ok := k.get(fmt.Sprint(i)); down {
			got = "down"
		} else if ok {
			got = "up"
		}
		if got != want {
			t.Errorf("%d is %q, want %q", i, got, want)
		}
	}
	k.trim(0, wanted)
	if k.order.Len() != 2 || len(k.byID) != 2 {
		t.Errorf("%d and %d are left of two wanted", k.order.Len(), len(k.byID))
	}
}

// A peer that makes up ever more connections costs no more memory, and what is
// subscribed to is known all the same.
func TestFloodOfConnections(t *testing.T) {
	m := &monitor{ignore: func(string, string) {}, name: ownName, log: quiet, subs: make(map[string][]*subscription), wake: make(chan struct{}, 1)}
	var l listener
	s := &subscription{id: "mine", f: l.hear, since: time.Now()}
	m.add(s)
	m.dispatch(initial(connection("mine", networkservice.State_DOWN)))
	for batch := range 3 {
		var conns []*networkservice.Connection
		for i := range spare {
			conns = append(conns, up(fmt.Sprint(batch, "-", i)))
		}
		m.dispatch(update(conns...))
	}
	if n := len(m.known.byID); n != spare+1 {
		t.Errorf("%d connections are known", n)
	}
	if down, ok := m.known.get("mine"); !down || !ok {
		t.Error("the own connection is forgotten")
	}
}

// Whatever a peer tells: a subscriber hears of its own connection only, once for
// each time that it is told of.
func FuzzDispatch(f *testing.F) {
	add := func(first, second *networkservice.ConnectionEvent) {
		var raw [2][]byte
		for i, e := range []*networkservice.ConnectionEvent{first, second} {
			var err error
			if raw[i], err = proto.Marshal(e); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(raw[0], raw[1])
	}
	outside := up("1")
	outside.Path.Index = 1 << 31
	add(initial(), update(up("1"), connection("2", networkservice.State_DOWN)))
	add(initial(up("1"), up("2")), remove(up("1")))
	add(update(up("1")), initial(twice("1", 2), twice("1", 5), twice("2", 1)))
	add(remove(up("3")), update(outside, &networkservice.Connection{}, up(strings.Repeat("1", path.MaxID+1))))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		m := &monitor{ignore: func(string, string) {}, name: ownName, log: quiet, subs: make(map[string][]*subscription), wake: make(chan struct{}, 1)}
		ids := []string{"1", "2", "2nd-1"}
		told := make(map[string][]Event)
		for _, id := range ids {
			m.add(&subscription{id: id, f: func(e Event) { told[id] = append(told[id], e) }, since: time.Now()})
		}
		for _, raw := range [][]byte{first, second} {
			e := new(networkservice.ConnectionEvent)
			if proto.Unmarshal(raw, e) != nil {
				return
			}
			clear(told)
			m.dispatch(e)
			about := make(map[string]int)
			for _, c := range e.GetConnections() {
				about[ownID(c, ownName)]++
			}
			for _, id := range ids {
				if len(told[id]) != about[id] {
					t.Errorf("%s was told %v of %v", id, told[id], e)
				}
				for _, x := range told[id] {
					if ownID(x.Conn, ownName) != id || (x.Kind == Down) != (e.GetType() == networkservice.ConnectionEventType_DELETE) {
						t.Errorf("%s was told %v of %v", id, x, e)
					}
				}
			}
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"

	"github.com/openvwire/nsm/nsmgr"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
)

// noticed is how long it takes at most until a part calls its peer, for which it uses
// the SVID that it has then.
const noticed = 3 * time.Second

// watched is a hop that an observer follows by way of a socket.
type watched struct {
	socket   *socket
	monitor  *hop.Monitor
	observer *Stranger
	peer     *peer.Peer
}

func newWatched(m *Mesh) *watched {
	w := &watched{monitor: hop.NewMonitor(hop.Strict{Observers: []string{ID("observer")}}), observer: m.Stranger("observer")}
	w.socket = m.Stranger("next").overTLS(func(r grpc.ServiceRegistrar) { rpc.RegisterMonitorConnection(r, w.monitor) })
	pool := peer.NewPool(peer.PoolConfig{Name: "observer", Logger: m.log, Dial: func(string) (grpc.ClientConnInterface, io.Closer, error) {
		cc := w.observer.dialTLS(w.socket)
		return cc, cc, nil
	}})
	m.t.Cleanup(pool.Close)
	w.peer = pool.Get("next")
	m.t.Cleanup(w.peer.Release)
	return w
}

// publish has the hop tell that a connection of the observer's is in a state.
func (w *watched) publish(id string, state networkservice.State) {
	w.monitor.Publish(&networkservice.Connection{
		Id: "next-" + id, State: state,
		Path: &networkservice.Path{Index: 1, PathSegments: []*networkservice.PathSegment{{Name: "observer", Id: id}, {Name: "next", Id: "next-" + id}}},
	})
}

// diary is what one subscriber has heard.
type diary struct {
	mu     sync.Mutex
	events []string
}

func (d *diary) hear(e peer.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, strings.TrimSpace(e.Kind.String()+" "+e.Conn.GetState().String()))
}

// expect compares what was heard since the last time; what is said twice in a row is
// said once.
func (d *diary) expect(t *testing.T, what string, want ...string) {
	t.Helper()
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if got := slices.Compact(d.events); !slices.Equal(got, want) {
		t.Errorf("%s: heard %q, want %q", what, got, want)
	}
	d.events = nil
}

// However often an SVID is renewed, there is one connection to a peer, and who watches
// it notices nothing.
func TestOneConnectionAfterRotation(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		w := newWatched(m)
		w.publish("1", networkservice.State_UP)
		w.publish("2", networkservice.State_UP)
		var one, two diary
		defer w.peer.Subscribe("1", one.hear)()
		defer w.peer.Subscribe("2", two.hear)()
		one.expect(t, "at first", "update UP")
		for i := range 5 {
			w.observer.Rotate()
			Pass(noticed)
			if open, ever := w.socket.connections(); open != 1 || ever != i+2 {
				t.Errorf("after %d rotations %d connections are open, of %d", i+1, open, ever)
			}
			one.expect(t, "after a rotation", "update UP")
			w.publish("1", networkservice.State_DOWN)
			one.expect(t, "on the new connection", "update DOWN")
			w.publish("1", networkservice.State_UP)
			one.expect(t, "on the new connection", "update UP")
		}
		two.expect(t, "of the other one", "update UP")
		Pass(time.Hour)
		one.expect(t, "while nothing happens")
		if open, ever := w.socket.connections(); open != 1 || ever != 6 {
			t.Errorf("%d connections are open, of %d", open, ever)
		}
	})
}

// While no connection can be made with the new SVID the old one tells what happens.
func TestRotationWhileNobodyCanConnect(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		w := newWatched(m)
		w.publish("1", networkservice.State_UP)
		w.publish("2", networkservice.State_UP)
		var one, two diary
		defer w.peer.Subscribe("1", one.hear)()
		defer w.peer.Subscribe("2", two.hear)()
		one.expect(t, "at first", "update UP")
		two.expect(t, "at first", "update UP")
		w.socket.shut()
		w.observer.Rotate()
		// The peer is asked whether it lives before it is held for dead, by way of the new
		// connection.
		Pass(noticed - time.Second)
		w.publish("1", networkservice.State_DOWN)
		one.expect(t, "by the old connection", "update DOWN")
		w.socket.reopen()
		w.monitor.Delete("next-2")
		w.publish("1", networkservice.State_UP)
		Pass(noticed)
		one.expect(t, "by the new connection", "update UP")
		two.expect(t, "of what has ended meanwhile", "down UP")
		if open, _ := w.socket.connections(); open != 1 {
			t.Errorf("%d connections are open", open)
		}
	})
}

// What happens while streams change over is heard, if only the latest of it.
func TestNothingIsLostInRotation(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		w := newWatched(m)
		const wires = 20
		diaries := make([]diary, wires)
		for i := range diaries {
			w.publish(strconv.Itoa(i), networkservice.State_UP)
			defer w.peer.Subscribe(strconv.Itoa(i), diaries[i].hear)()
		}
		Pass(noticed)
		for i := range diaries {
			diaries[i].expect(t, "at first", "update UP")
			w.observer.Rotate()
			changes := make(chan struct{})
			go func() {
				defer close(changes)
				for j := range diaries {
					if j == i {
						w.monitor.Delete("next-" + strconv.Itoa(j))
					} else if j > i {
						w.publish(strconv.Itoa(j), networkservice.State_DOWN)
					}
				}
			}()
			_ = w.peer.Conn().Invoke(t.Context(), "/grpc.health.v1.Health/Check", &networkservice.Connection{}, &networkservice.Connection{})
			<-changes
			Pass(noticed)
			for j := range diaries[i:] {
				d := &diaries[i+j]
				d.mu.Lock()
				events := d.events
				d.events = nil
				d.mu.Unlock()
				switch last := events[len(events)-1]; {
				case slices.ContainsFunc(events, func(e string) bool { return strings.HasPrefix(e, "lost") }):
					t.Errorf("rotation %d: wire %d heard %q", i, i+j, events)
				case j == 0 && !strings.HasPrefix(last, "down"), j > 0 && last != "update DOWN":
					t.Errorf("rotation %d: wire %d heard %q", i, i+j, events)
				}
			}
			for j := range diaries[i+1:] {
				w.publish(strconv.Itoa(i+1+j), networkservice.State_UP)
			}
		}
	})
}

// A manager has one connection to the registry, whose watches go over to the next one.
func TestRotationOfManager(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		socket := m.registry.overTLS(m.registry.server.Register)
		p := m.newPart("manager-a")
		defer p.peers.Close()
		cc := p.dialTLS(socket)
		defer cc.Close()
		manager, err := nsmgr.New(nsmgr.Config{
			Name: p.name, URL: "tcp://manager-a:5001", Tokens: p.tokens, Policy: p.policy, Peers: p.peers, Sockets: p.sockets,
			Registry: cc, Logger: p.log,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer manager.Stop()
		p.listen("tcp://manager-a:5001", manager.Register)
		defer p.hangUp()
		Settle()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		watch, err := api.NewNetworkServiceRegistryClient(p.dial(p.url)).Find(ctx, &api.NetworkServiceQuery{NetworkService: &api.NetworkService{}, Watch: true})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			p.Rotate()
			if _, err := api.NewNetworkServiceRegistryClient(cc).Find(t.Context(), &api.NetworkServiceQuery{NetworkService: &api.NetworkService{}}); err != nil {
				t.Fatal(err)
			}
			Pass(time.Second)
			if open, ever := socket.connections(); open != 1 || ever != i+2 {
				t.Errorf("after %d rotations %d connections are open, of %d", i+1, open, ever)
			}
			name := "service-" + strconv.Itoa(i)
			if _, err := api.NewNetworkServiceRegistryClient(m.Stranger("somebody").dial(RegistryURL)).Register(
				regpath.Path{}.ToOutgoing(t.Context()), &api.NetworkService{Name: name, Payload: "IP"}); err != nil {
				t.Fatal(err)
			}
			if got, err := watch.Recv(); err != nil || got.GetNetworkService().GetName() != name {
				t.Errorf("after %d rotations the manager tells of %v, %v", i+1, got, err)
			}
		}
		if strings.Contains(m.logs.String(), "registry watch broke") {
			t.Error("the log says that watches broke")
		}
	})
}

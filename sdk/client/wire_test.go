// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const life = 10 * time.Minute // of what the manager answers

// everybody may see everything: in these tests nobody has a token.
type everybody struct{ hop.Strict }

func (everybody) IsObserver(string) bool { return true }

// manager answers as a manager does, or as it is told to.
type manager struct {
	monitor   *hop.Monitor
	endpoints *endpointRegistry

	mu     sync.Mutex
	fail   error                            // of each Request; guarded by mu
	change func(*networkservice.Connection) // what becomes of each answer; guarded by mu
	slow   time.Duration                    // what a Request on the same path takes; guarded by mu
	asked  []ask                            // guarded by mu
	closed []string
}

// ask is one Request, as it matters to the client's decisions.
type ask struct {
	at       time.Time
	reselect bool
	endpoint string // asked for
	name     string // of the interface, as preferred
	segments int    // of the path
	service  string
	metrics  map[string]string // of the client's segment
}

func (m *manager) Request(ctx context.Context, req *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := req.GetConnection()
	m.asked = append(m.asked, ask{
		time.Now(), c.GetState() == networkservice.State_RESELECT_REQUESTED, c.GetNetworkServiceEndpointName(),
		req.GetMechanismPreferences()[0].GetParameters()["name"], len(c.GetPath().GetPathSegments()), c.GetNetworkService(), c.GetPath().GetPathSegments()[0].GetMetrics(),
	})
	if c.GetState() != networkservice.State_RESELECT_REQUESTED && m.slow > 0 {
		slow := time.After(m.slow)
		m.mu.Unlock()
		select {
		case <-slow:
		case <-ctx.Done():
		}
		m.mu.Lock()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	if m.fail != nil {
		return nil, m.fail
	}
	end := timestamppb.New(time.Now().Add(life))
	c = proto.CloneOf(c)
	c.Path.PathSegments = append(c.Path.PathSegments[:1], &networkservice.PathSegment{Name: "manager", Id: "m-" + c.GetId(), Expires: end})
	c.Path.PathSegments[0].Expires = end
	c.NetworkServiceEndpointName = "one"
	c.Mechanism = proto.CloneOf(req.GetMechanismPreferences()[0])
	if c.Mechanism.Parameters["name"] == "" {
		c.Mechanism.Parameters["name"] = "made-up"
	}
	c.Context = &networkservice.ConnectionContext{IpContext: &networkservice.IPContext{
		SrcIpAddrs: []string{"10.60.0.1/32", "fd00::1/128"}, DstIpAddrs: []string{"10.60.0.0/32", "fd00::/128"},
	}}
	if m.change != nil {
		m.change(c)
	}
	own := proto.CloneOf(c)
	own.Id, own.Path.Index, own.State = "m-"+c.GetId(), 1, networkservice.State_UP
	m.monitor.Publish(own)
	return c, nil
}

func (m *manager) Close(_ context.Context, c *networkservice.Connection) (*emptypb.Empty, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = append(m.closed, c.GetId())
	m.monitor.Delete("m-" + c.GetId())
	return &emptypb.Empty{}, nil
}

func (m *manager) answer(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// delay has each Request on the same path take so long.
func (m *manager) delay(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slow = d
}

// amend has f change each answer from now on.
func (m *manager) amend(f func(*networkservice.Connection)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.change = f
}

// tell has the manager say that the connection has a state.
func (m *manager) tell(id string, state networkservice.State) {
	m.monitor.Amend("m-"+id, func(c *networkservice.Connection) bool { c.State = state; return true })
}

// take returns what was asked since the last time, and how much later than at.
func (m *manager) take() []ask {
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.asked
	m.asked = nil
	return out
}

func (m *manager) closes() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.closed)
}

// newManager serves a manager and returns a client of it.
func newManager(t testing.TB, change ...func(*Config)) (*manager, *Client) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	m := &manager{monitor: hop.NewMonitor(everybody{}), endpoints: newEndpointRegistry()}
	l := rpc.NewLocal(rpc.LocalOptions{Logger: log})
	rpc.RegisterNetworkService(l, m)
	rpc.RegisterMonitorConnection(l, m.monitor)
	regpath.RegisterEndpoints(l, m.endpoints)
	pool := peer.NewPool(peer.PoolConfig{Name: "web", Logger: log, Dial: func(string) (grpc.ClientConnInterface, io.Closer, error) {
		return l.Dial(rpc.LocalCaller{}), nil, nil
	}})
	config := Config{
		Name: "web", Peers: pool, Logger: log,
		Verify: func(path.Path, *x509.Certificate, time.Time) error { return nil },
	}
	for _, f := range change {
		f(&config)
	}
	c, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		pool.Close()
		l.Close()
	})
	return m, c
}

func connect(t *testing.T, c *Client) *Wire {
	t.Helper()
	w, err := c.Request(t.Context(), Request{Service: "db"})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// What the manager tells of a wire decides what is asked of it, and at once.
func TestWhatEventsLeadTo(t *testing.T) {
	for _, tt := range []struct {
		name     string
		event    func(*manager)
		asks     int
		reselect bool
	}{
		{"another refresh, of somebody else", func(m *manager) { m.tell("web-0", networkservice.State_UP) }, 0, false},
		{"the path is down", func(m *manager) { m.tell("web-0", networkservice.State_DOWN) }, 1, false},
		{"closed by a hop", func(m *manager) { m.monitor.Delete("m-web-0") }, 1, false},
		{"come again", func(m *manager) { m.tell("web-0", networkservice.State_REFRESH_REQUESTED) }, 1, false},
		{"go elsewhere", func(m *manager) { m.tell("web-0", networkservice.State_RESELECT_REQUESTED) }, 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, c := newManager(t)
				w := connect(t, c)
				m.take()
				tt.event(m)
				asked := m.take()
				if len(asked) != tt.asks {
					t.Fatalf("asked %v", asked)
				}
				if tt.asks > 0 && (asked[0].reselect != tt.reselect || time.Since(asked[0].at) != 0) {
					t.Errorf("asked %v", asked)
				}
				if tt.reselect && asked[0].endpoint != "" || !tt.reselect && tt.asks > 0 && asked[0].endpoint != "one" {
					t.Errorf("asked for endpoint %q", asked[0].endpoint)
				}
				if w.Connection().GetState() != networkservice.State_UP {
					t.Errorf("the wire is %v", w.Connection().GetState())
				}
			})
		})
	}
}

// What the manager tells of a wire before the wire listens, is heard as well: here
// it is down already when its path is verified.
func TestDownBeforeItListens(t *testing.T) {
	for _, others := range []int{0, 1} { // with others there is a stream already
		t.Run(fmt.Sprintf("%d others", others), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tell func()
				m, c := newManager(t, func(c *Config) {
					c.Verify = func(path.Path, *x509.Certificate, time.Time) error { tell(); return nil }
				})
				tell = func() {}
				for range others {
					connect(t, c)
				}
				tell = func() {
					m.tell(fmt.Sprintf("web-%d", others), networkservice.State_DOWN)
					synctest.Wait()
					tell = func() {}
				}
				w := connect(t, c)
				pass(2 * time.Second)
				if asked := m.take()[others+1:]; len(asked) != 1 || asked[0].reselect {
					t.Errorf("asked %+v, want the same path once", asked)
				}
				if s := w.Connection().GetState(); s != networkservice.State_UP {
					t.Errorf("then the wire is %v", s)
				}
			})
		})
	}
}

// A wire is refreshed at a fifth of its life, a tenth of that earlier by chance.
func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newManager(t)
		connect(t, c)
		m.take()
		start := time.Now()
		for range 10 {
			time.Sleep(2 * time.Minute)
			for _, a := range m.take() {
				if d := a.at.Sub(start); d < 108*time.Second || d > 120*time.Second || a.reselect || a.endpoint != "one" || a.name != "made-up" {
					t.Errorf("after %v: %+v", d, a)
				}
				start = a.at
			}
		}
	})
}

// What fails is tried again, on the same path first and never faster than the
// back-off allows; Status says what is going on.
func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newManager(t)
		w := connect(t, c)
		_, changed, err := w.Status()
		if err != nil {
			t.Errorf("status %v of a wire that is up", err)
		}
		m.take()
		m.answer(nserr.ForwarderGone.Errorf("no forwarder"))
		m.tell("web-0", networkservice.State_DOWN)
		synctest.Wait()
		select {
		case <-changed:
		default:
			t.Error("the change is not told")
		}
		if tries, _, err := w.Status(); tries != 1 || !errors.Is(err, nserr.ForwarderGone) {
			t.Errorf("%d tries, %v", tries, err)
		}
		if s := w.Connection().GetState(); s != networkservice.State_DOWN {
			t.Errorf("the wire is %v", s)
		}
		time.Sleep(time.Minute)
		asked := m.take()
		if len(asked) < 10 || len(asked) > 50 {
			t.Errorf("asked %d times in a minute", len(asked))
		}
		if asked[0].reselect || asked[1].reselect || !slices.ContainsFunc(asked, func(a ask) bool { return a.reselect }) {
			t.Errorf("asked %+v: the same path first, then another one", asked)
		}
		m.answer(nil)
		time.Sleep(6 * time.Second)
		if asked := m.take(); len(asked) != 1 || asked[0].reselect {
			t.Errorf("when all is well again: %+v, want the old path", asked)
		}
		if tries, _, err := w.Status(); tries != 0 || err != nil || w.Connection().GetState() != networkservice.State_UP {
			t.Errorf("%d tries, %v, %v", tries, err, w.Connection().GetState())
		}
	})
}

// Connect with Retry waits for what may come, and not for what will not.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newManager(t)
		m.answer(nserr.NoEndpoint.Errorf("none yet"))
		if _, err := c.Request(t.Context(), Request{Service: "db"}); !errors.Is(err, nserr.NoEndpoint) {
			t.Errorf("without Retry: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.Request(ctx, Request{Service: "db", Retry: true}); !errors.Is(err, nserr.NoEndpoint) {
			t.Errorf("in vain: %v", err)
		}
		m.answer(nserr.NameTaken.Errorf("by another"))
		m.take()
		if _, err := c.Request(t.Context(), Request{Service: "db", Retry: true}); !errors.Is(err, nserr.NameTaken) || len(m.take()) != 1 {
			t.Errorf("what does not pass: %v", err)
		}
		m.answer(nserr.NoEndpoint.Errorf("none yet"))
		go func() {
			time.Sleep(time.Minute)
			m.answer(nil)
			m.endpoints.register("one", "db")
		}()
		start := time.Now()
		if _, err := c.Request(t.Context(), Request{Service: "db", Retry: true}); err != nil || time.Since(start) > 61*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// Close tells the manager once; Leave does not, and nothing is asked afterwards.
func TestCloseAndLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newManager(t)
		closed, left := connect(t, c), connect(t, c)
		var closing sync.WaitGroup
		for range 3 {
			closing.Go(func() {
				if err := closed.Close(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		closing.Wait()
		if got := m.closes(); !slices.Equal(got, []string{"web-0"}) {
			t.Errorf("closed %v", got)
		}
		left.Leave()
		left.Leave()
		if err := left.Close(t.Context()); err != nil {
			t.Error(err)
		}
		m.take()
		time.Sleep(time.Hour)
		if asked := m.take(); len(asked) != 0 {
			t.Errorf("asked %v", asked)
		}
		if got := m.closes(); len(got) != 1 {
			t.Errorf("closed %v", got)
		}
	})
}

// Wires of one client have ids of their own; a closed client makes no more.
func TestClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newManager(t)
		one, two := connect(t, c), connect(t, c)
		if one.ID() != "web-0" || two.ID() != "web-1" {
			t.Errorf("ids %s and %s", one.ID(), two.ID())
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if got := m.closes(); len(got) != 2 {
			t.Errorf("closed %v", got)
		}
		if _, err := c.Request(t.Context(), Request{Service: "db"}); !errors.Is(err, nserr.Stopping) {
			t.Errorf("a closed client: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/peer"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

func spiffe(name string) string { return "spiffe://test/" + name }

// tokenOf returns a token of somebody, "" of nobody.
func tokenOf(t *testing.T, name string) string {
	t.Helper()
	if name == "" {
		return ""
	}
	id := spiffeid.RequireFromString(spiffe(name))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{id.URL()}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	raw, _, err := token.NewGenerator(&x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}, time.Minute)(nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// connection has a path of segments "name/id/identity" and stands at index.
func connection(t *testing.T, index int, segments ...string) *networkservice.Connection {
	t.Helper()
	c := &networkservice.Connection{NetworkService: "db", Path: &networkservice.Path{Index: uint32(index)}}
	for _, s := range segments {
		part := strings.Split(s, "/")
		c.Path.PathSegments = append(c.Path.PathSegments, &networkservice.PathSegment{Name: part[0], Id: part[1], Token: tokenOf(t, part[2])})
	}
	c.Id = c.Path.PathSegments[index].Id
	return c
}

func TestFind(t *testing.T) {
	m := NewMonitor(Strict{Observers: []string{spiffe("observer")}})
	for _, c := range []*networkservice.Connection{
		connection(t, 1, "web/w-1/web", "mgr/m1/mgr", "fwd/f1/fwd", "db/e1/db"),
		connection(t, 1, "web/w-11/web", "mgr/m2/mgr", "fwd/f2/fwd", "db/e2/db"),
		connection(t, 1, "other/o-1/other", "mgr/m3/mgr", "fwd/f3/fwd", "db/e3/db"),
		// Two clients that count alike, and one that calls itself as somebody else's connection is called.
		connection(t, 1, "web/same/web", "mgr/m4/mgr", "fwd/f4/fwd", "db/e4/db"),
		connection(t, 1, "other/same/other", "mgr/m5/mgr", "fwd/f5/fwd", "db/e5/db"),
		connection(t, 1, "other/m1/other", "mgr/m6/mgr", "fwd/f6/fwd", "db/e6/db"),
		// A chain, which passes twice.
		connection(t, 4, "chain/c-1/chain", "mgr/m7/mgr", "fwd/f7/fwd", "mid/e7/mid", "mgr/m8/mgr", "fwd/f8/fwd", "db/e8/db"),
		connection(t, 1, "chain/c-1/chain", "mgr/m7/mgr", "fwd/f7/fwd", "mid/e7/mid", "mgr/m8/mgr", "fwd/f8/fwd", "db/e8/db"),
	} {
		m.Publish(c)
	}
	for _, tt := range []struct {
		who, id string
		want    string // own id of the connection; "" = unknown or not unique
		says    string // not unique: which it could be
	}{
		{"web", "w-1", "m1", ""}, // not w-11, which begins so
		{"web", "w-11", "m2", ""},
		{"web", "w-", "", "the ids of 2 wires begin with \"w-\": w-1, w-11"}, // two
		{"web", "m2", "m2", ""},
		{"web", "m", "", ""}, // only first ids may be abbreviated
		{"web", "", "", ""},
		{"web", "x", "", ""},
		{"web", "o-1", "", ""}, // somebody else's
		{"web", "m3", "", ""},
		{"stranger", "w-1", "", ""},
		{"", "w-1", "", ""},
		{"other", "o", "m3", ""},
		{"web", "same", "m4", ""}, // the one that it can see
		{"other", "same", "m5", ""},
		{"observer", "same", "", "2 wires have the id \"same\", of different clients; here they are called m4, m5"},
		{"observer", "m5", "m5", ""},
		{"observer", "o-", "m3", ""},
		{"web", "m1", "m1", ""},
		{"other", "m1", "m6", ""},
		{"observer", "m1", "m1", ""}, // the hop's own ids come first
		{"chain", "c", "m7", ""},     // where it passes first
		{"chain", "m8", "m8", ""},
		{"mid", "c-1", "m7", ""},
	} {
		who := tt.who
		if who != "" {
			who = spiffe(who)
		}
		v, err := m.Find(who, tt.id)
		switch {
		case tt.want == "" && err == nil:
			t.Errorf("Find(%s, %q) found %s", tt.who, tt.id, v.Conn().GetId())
		case tt.want == "" && tt.says == "" && tt.id != "" && !errors.Is(err, nserr.UnknownWire):
			t.Errorf("Find(%s, %q): %v, want UnknownWire", tt.who, tt.id, err)
		case tt.says != "" && (!errors.Is(err, nserr.BadRequest) || !strings.Contains(err.Error(), tt.says)):
			t.Errorf("Find(%s, %q): %v, want %s", tt.who, tt.id, err, tt.says)
		case tt.want != "" && (err != nil || v.Conn().GetId() != tt.want):
			t.Errorf("Find(%s, %q): %v, want %s", tt.who, tt.id, err, tt.want)
		}
	}
}

func TestViewKnowsSinceWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMonitor(nil)
		start := time.Now()
		m.Publish(connection(t, 1, "web/w-1/web", "mgr/m1/mgr"))
		time.Sleep(time.Minute)
		m.Publish(connection(t, 1, "web/w-1/web", "mgr/m1/mgr"))
		m.Down("m1")
		v, ok := m.Get("m1")
		if !ok || !v.Since.Equal(start) || v.Conn().GetState() != networkservice.State_DOWN {
			t.Errorf("%v since %v, want %v", v.Conn(), v.Since, start)
		}
		m.Delete("m1")
		m.Down("m1")
		if _, ok := m.Get("m1"); ok {
			t.Error("an event from behind has revived a closed connection")
		}
		m.Publish(connection(t, 1, "web/w-1/web", "mgr/m1/mgr"))
		if v, _ := m.Get("m1"); !v.Since.Equal(start.Add(time.Minute)) {
			t.Errorf("opened again at %v", v.Since)
		}
	})
}

// Identities stay with their segments when the path behind this hop changes.
func TestIdentities(t *testing.T) {
	m := NewMonitor(nil)
	m.Publish(connection(t, 1, "web/w-1/web", "mgr/m1/mgr", "fwd/f1/", "db/e1/db"))
	identities := func() []string {
		v, _ := m.Get("m1")
		for _, s := range v.Conn().GetPath().GetPathSegments() {
			if s.Token != "" {
				t.Errorf("watchers see the token of %s", s.Name)
			}
		}
		return v.Identities()
	}
	if want := []string{spiffe("web"), spiffe("mgr"), "", spiffe("db")}; !slices.Equal(identities(), want) {
		t.Errorf("identities %q, want %q", identities(), want)
	}
	if v := m.Visible(""); len(v) != 0 {
		t.Errorf("who has no identity sees %v", v)
	}
	m.Amend("m1", func(c *networkservice.Connection) bool {
		c.Path.PathSegments[3] = &networkservice.PathSegment{Name: "db-2", Id: "e9"}
		c.Path.PathSegments = append(c.Path.PathSegments, &networkservice.PathSegment{Name: "x", Id: "e10"})
		return true
	})
	if want := []string{spiffe("web"), spiffe("mgr"), "", "", ""}; !slices.Equal(identities(), want) {
		t.Errorf("after a re-route identities %q, want %q", identities(), want)
	}
	if v := m.Visible(spiffe("db")); len(v) != 0 {
		t.Errorf("who is not on the path any more sees %v", v)
	}
}

// Which of the things that the next hop may tell are about the connection as it is.
func TestMisfit(t *testing.T) {
	end := time.Unix(2000, 0)
	own := connection(t, 1, "web/w/", "fwd/f/", "mgr/m/", "db/e/")
	for _, s := range own.Path.PathSegments {
		s.Expires = timestamppb.New(end)
	}
	type segments = []*networkservice.PathSegment
	for _, tt := range []struct {
		name   string
		change func(c *networkservice.Connection, s segments)
		want   string
	}{
		{"as it is", func(*networkservice.Connection, segments) {}, ""},
		{"in the words of this hop", func(c *networkservice.Connection, _ segments) { c.Path.Index = 1 }, ""},
		{"a later token", func(_ *networkservice.Connection, s segments) { s[2].Expires = timestamppb.New(end.Add(1)) }, ""},
		{"no word of tokens", func(_ *networkservice.Connection, s segments) { s[2].Expires = nil }, ""},
		{"an older token of a hop further on", func(_ *networkservice.Connection, s segments) { s[3].Expires = timestamppb.New(end.Add(-1)) }, ""},
		{"another way behind it", func(c *networkservice.Connection, s segments) { s[3].Id, s[3].Name = "x", "x" }, ""},
		{"another next hop", func(_ *networkservice.Connection, s segments) {
			s[2].Id, s[2].Expires = "x", timestamppb.New(end.Add(-1))
		}, ""},
		{"an older token", func(_ *networkservice.Connection, s segments) { s[2].Expires = timestamppb.New(end.Add(-1)) }, late},
		{"another connection of this hop", func(_ *networkservice.Connection, s segments) { s[1].Id = "x" }, "it is of another connection"},
		{"a path that does not come here", func(c *networkservice.Connection, s segments) { c.Path.PathSegments = s[:1] }, "it is of another connection"},
		{"no path", func(c *networkservice.Connection, _ segments) { c.Path = nil }, "it is of another connection"},
		{"in the words of the endpoint", func(c *networkservice.Connection, _ segments) { c.Path.Index = 3 }, "it is of another hop"},
		{"a segment without an id", func(_ *networkservice.Connection, s segments) { s[3].Id = "" }, "it is not well-formed"},
		{"a context that nobody could have", func(c *networkservice.Connection, _ segments) {
			c.Context = &networkservice.ConnectionContext{MTU: 1}
		}, "it is not well-formed"},
		{"many DNS configs", func(c *networkservice.Connection, _ segments) { c.Context = withDNS(maxDNS+1, 0, 0).Context }, "it is not well-formed"},
		{"many metrics", func(_ *networkservice.Connection, s segments) { s[3].Metrics = labels(path.MaxMetrics+1, 1) }, "it is not well-formed"},
	} {
		event := proto.CloneOf(own)
		event.Path.Index = 2
		tt.change(event, event.Path.PathSegments)
		if got := misfit(own, event); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// What the next hop tells does not undo what this hop has limited.
func TestTakeOverKeepsTheMTU(t *testing.T) {
	own := connection(t, 1, "web/w-1/web", "fwd/f1/fwd", "db/e1/db")
	event := connection(t, 2, "web/w-1/web", "fwd/f1/fwd", "db/e1/db")
	for _, tt := range []struct{ own, told, want uint32 }{
		{1440, 0, 1440}, {1440, 9000, 1440}, {1440, 1280, 1280}, {0, 1280, 1280}, {0, 0, 0},
	} {
		own.Context = &networkservice.ConnectionContext{MTU: tt.own}
		event.Context = &networkservice.ConnectionContext{MTU: tt.told, IpContext: &networkservice.IPContext{SrcIpAddrs: []string{"10.0.0.1/32"}}}
		takeOver(own, event)
		if got := own.GetContext(); got.GetMTU() != tt.want || len(got.GetIpContext().GetSrcIpAddrs()) != 1 {
			t.Errorf("limited to %d, told %d: %v, want %d", tt.own, tt.told, got, tt.want)
		}
	}
	own.Context, event.Context = &networkservice.ConnectionContext{MTU: 1440}, nil
	if takeOver(own, event); own.GetContext().GetMTU() != 1440 {
		t.Errorf("told of no context: %v", own.GetContext())
	}
}

// A refresh makes every hop tell its neighbour the same again, with later tokens only.
func TestAsTold(t *testing.T) {
	own := connection(t, 1, "web/w-1/web", "fwd/f1/fwd", "db/e1/db")
	own.State, own.Context = networkservice.State_UP, &networkservice.ConnectionContext{MTU: 1440}
	for _, tt := range []struct {
		name   string
		change func(*networkservice.Connection, *networkservice.PathSegment)
		want   bool
	}{
		{"nothing", func(*networkservice.Connection, *networkservice.PathSegment) {}, true},
		{"a later token", func(_ *networkservice.Connection, s *networkservice.PathSegment) { s.Expires = timestamppb.Now() }, true},
		{"a larger MTU", func(c *networkservice.Connection, _ *networkservice.PathSegment) { c.Context.MTU = 1500 }, true},
		{"a smaller MTU", func(c *networkservice.Connection, _ *networkservice.PathSegment) { c.Context.MTU = 1280 }, false},
		{"another state", func(c *networkservice.Connection, _ *networkservice.PathSegment) { c.State = networkservice.State_DOWN }, false},
		{"another hop", func(_ *networkservice.Connection, s *networkservice.PathSegment) { s.Id = "x" }, false},
		{"something that the hop says of itself", func(_ *networkservice.Connection, s *networkservice.PathSegment) {
			s.Metrics = map[string]string{"a": "b"}
		}, false},
		{"one hop more", func(c *networkservice.Connection, s *networkservice.PathSegment) {
			c.Path.PathSegments = append(c.Path.PathSegments, s)
		}, false},
	} {
		event := proto.CloneOf(own)
		event.Path.Index = 2
		tt.change(event, event.Path.PathSegments[2])
		if got := asTold(own, event); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
		if got := takeOver(proto.CloneOf(own), event); got == tt.want {
			t.Errorf("%s: taken over: %v", tt.name, got)
		}
	}
}

// events is a stream to a watcher.
type events struct {
	grpc.ServerStream
	ctx  context.Context
	sent chan *networkservice.ConnectionEvent
}

func (e events) Context() context.Context { return e.ctx }

func (e events) Send(event *networkservice.ConnectionEvent) error {
	e.sent <- event
	return nil
}

// open is a policy that shows everything to everybody.
type open struct{ Strict }

func (open) IsObserver(string) bool { return true }

// A watcher that asks for it is spared what changes nothing but tokens, and nothing
// else; one that does not ask gets a sign of life with each refresh.
func TestChangesOnly(t *testing.T) {
	steps := []struct {
		name    string
		do      func(m *Monitor, c *networkservice.Connection)
		changes bool // told to a watcher of changes only
	}{
		{"the first", func(m *Monitor, c *networkservice.Connection) { m.Publish(rpc.Clone(c)) }, true},
		{"a refresh", func(m *Monitor, c *networkservice.Connection) {
			c.Path.PathSegments[2].Expires, c.Path.PathSegments[2].Token = timestamppb.Now(), tokenOf(t, "db")
			m.Publish(rpc.Clone(c))
		}, false},
		{"another identity", func(m *Monitor, c *networkservice.Connection) {
			c.Path.PathSegments[2].Token = tokenOf(t, "other")
			m.Publish(rpc.Clone(c))
		}, true},
		{"another state", func(m *Monitor, c *networkservice.Connection) { m.Down(c.GetId()) }, true},
		{"a refresh after it", func(m *Monitor, c *networkservice.Connection) { m.Publish(rpc.Clone(c)) }, true},
		{"an address", func(m *Monitor, c *networkservice.Connection) {
			c.Context = &networkservice.ConnectionContext{IpContext: &networkservice.IPContext{SrcIpAddrs: []string{"10.0.0.1/32"}}}
			m.Publish(rpc.Clone(c))
		}, true},
		{"a parameter", func(m *Monitor, c *networkservice.Connection) {
			c.Mechanism = &networkservice.Mechanism{Parameters: map[string]string{"a": "b"}}
			m.Publish(rpc.Clone(c))
		}, true},
		{"a label", func(m *Monitor, c *networkservice.Connection) {
			c.Labels = map[string]string{"a": "b"}
			m.Publish(rpc.Clone(c))
		}, true},
		{"a metric", func(m *Monitor, c *networkservice.Connection) { SetMetric(c, "a", "b"); m.Publish(rpc.Clone(c)) }, true},
		{"another way", func(m *Monitor, c *networkservice.Connection) {
			c.Path.PathSegments[2].Id = "e2"
			m.Publish(rpc.Clone(c))
		}, true},
		{"the end", func(m *Monitor, c *networkservice.Connection) { m.Delete(c.GetId()) }, true},
		{"the same again", func(m *Monitor, c *networkservice.Connection) { m.Publish(rpc.Clone(c)) }, true},
	}
	for _, sparing := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if sparing {
				ctx = metadata.NewIncomingContext(ctx, metadata.Pairs(peer.ChangesOnly, "1"))
			}
			m, c := NewMonitor(open{}), connection(t, 1, "web/w-1/web", "fwd/f1/fwd", "db/e1/db")
			c.State = networkservice.State_UP
			stream := events{ctx: ctx, sent: make(chan *networkservice.ConnectionEvent, len(steps)+1)}
			go func() { _ = m.MonitorConnections(&networkservice.MonitorScopeSelector{}, stream) }()
			synctest.Wait()
			<-stream.sent // the first state
			for _, step := range steps {
				step.do(m, c)
				synctest.Wait()
				if got, want := len(stream.sent), step.changes || !sparing; got > 1 || (got == 1) != want {
					t.Errorf("sparing %v: %s: %d events", sparing, step.name, got)
				}
				for len(stream.sent) > 0 {
					<-stream.sent
				}
			}
		})
	}
}

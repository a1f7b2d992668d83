// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/openvwire/nsm/sdk/gate"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// party is somebody with an SVID.
type party struct {
	id   string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newParty(t testing.TB, name string) *party {
	t.Helper()
	id := spiffeid.RequireFromString(spiffe(name))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), URIs: []*url.URL{id.URL()}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &party{id: id.String(), cert: cert, key: key}
}

// GetX509SVID makes a party an x509svid.Source.
func (p *party) GetX509SVID() (*x509svid.SVID, error) {
	return &x509svid.SVID{ID: spiffeid.RequireFromString(p.id), Certificates: []*x509.Certificate{p.cert}, PrivateKey: p.key}, nil
}

// says returns a token of the party for somebody.
func (p *party) says(t testing.TB, subject, audience string, expires time.Time) string {
	t.Helper()
	claims := jwt.RegisteredClaims{Subject: subject, Audience: jwt.ClaimStrings{audience}, ExpiresAt: jwt.NewNumericDate(expires)}
	raw, err := jwt.NewWithClaims(jwt.SigningMethodES256, claims).SignedString(p.key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// calling is the context in which a handler is called by the party with a token.
// rpc.Local makes it, since what is in it is rpc's business.
func (p *party) calling(t testing.TB, raw string, expires time.Time) (ctx context.Context) {
	t.Helper()
	l := rpc.NewLocal(rpc.LocalOptions{})
	defer l.Close()
	rpc.RegisterNetworkService(l, catcher{func(c context.Context) { ctx = context.WithoutCancel(c) }})
	who := func() rpc.Identity { return rpc.Identity{ID: p.id, Cert: p.cert} }
	tokens := token.Generator(nil)
	if raw != "" {
		tokens = func(*x509.Certificate) (string, time.Time, error) { return raw, expires, nil }
	}
	_, err := networkservice.NewNetworkServiceClient(l.Dial(rpc.LocalCaller{Identity: who, Tokens: tokens})).Request(t.Context(), &networkservice.NetworkServiceRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return ctx
}

type catcher struct{ caught func(context.Context) }

func (c catcher) Request(ctx context.Context, _ *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	c.caught(ctx)
	return &networkservice.Connection{}, nil
}

func (catcher) Close(context.Context, *networkservice.Connection) (*emptypb.Empty, error) {
	return nil, nil
}

func first(id string) *networkservice.Connection {
	return &networkservice.Connection{Id: id, NetworkService: "db", Path: &networkservice.Path{
		PathSegments: []*networkservice.PathSegment{{Name: "web", Id: id}},
	}}
}

// Ids are what they have always been: after an upgrade of this hop, or another way to
// compute them, a refresh is of the connection that it was of before.
func TestIDsStay(t *testing.T) {
	for _, b := range []Binding{
		{}, {Owner: "spiffe://example.org/web", Caller: "spiffe://example.org/forwarder-a"},
		{Owner: "a \"b\"", Caller: "ä\x00\xff" + strings.Repeat("long", 300)},
	} {
		prev := path.Segment{Name: "forwarder \\a", ID: "5d9f"}
		what := fmt.Sprintf("%q %q %q %q %q", "manager", b.Owner, b.Caller, prev.Name, prev.ID)
		want := uuid.NewHash(sha256.New(), uuid.Nil, []byte(what), 8).String()
		if got := b.id("manager", prev); got != want {
			t.Errorf("%q is %s, was %s", what, got, want)
		}
	}
}

// The id of a connection follows from whose it is, and from nothing else.
func TestIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web, other, self := newParty(t, "web"), newParty(t, "other"), newParty(t, "manager")
		end := time.Now().Add(time.Hour)
		h := Hop{Name: "manager", Tokens: token.NewGenerator(self, time.Hour), Monitor: NewMonitor(nil)}
		admit := func(p *party, c *networkservice.Connection) (*Call, error) {
			return h.Admit(p.calling(t, p.says(t, p.id, self.id, end), end), c)
		}
		must := func(p *party, c *networkservice.Connection) *Call {
			t.Helper()
			call, err := admit(p, c)
			if err != nil {
				t.Fatal(err)
			}
			return call
		}
		call := must(web, first("w-0"))
		id := call.Conn.GetId()
		if again := must(web, first("w-0")); again.Conn.GetId() != id {
			t.Errorf("sent again: %s, want %s", again.Conn.GetId(), id)
		}
		for what, got := range map[string]*Call{
			"somebody else's": must(other, first("w-0")),
			"another":         must(web, first("w-1")),
		} {
			if got.Conn.GetId() == id {
				t.Errorf("%s connection has the same id", what)
			}
		}

		// A refresh keeps the path; the reply is in the caller's terms.
		before := proto.CloneOf(call.Conn)
		reply := call.Reply(call.Conn)
		if !proto.Equal(call.Conn, before) {
			t.Errorf("the reply changed what the hop keeps: %v, was %v", call.Conn, before)
		}
		if reply.GetId() != "w-0" || reply.GetPath().GetIndex() != 0 || len(reply.GetPath().GetPathSegments()) != 2 {
			t.Errorf("reply %v", reply)
		}
		reply.Path.PathSegments = append(reply.Path.PathSegments, &networkservice.PathSegment{Name: "forwarder", Id: "f"})
		refresh := must(web, proto.CloneOf(reply))
		if refresh.Conn.GetId() != id || len(refresh.Conn.GetPath().GetPathSegments()) != 3 {
			t.Errorf("refresh %v", refresh.Conn)
		}

		// Somebody else's id is refused while the connection is known here, and means
		// nothing afterwards; what is behind it goes with it.
		h.Monitor.Publish(call.Conn)
		if _, err := admit(other, proto.CloneOf(reply)); !errors.Is(err, nserr.WrongOwner) {
			t.Errorf("with the id of somebody else's connection: %v", err)
		}
		h.Monitor.Delete(id)
		if got := must(other, proto.CloneOf(reply)); got.Conn.GetId() == id || len(got.Conn.GetPath().GetPathSegments()) != 2 {
			t.Errorf("with the id of nobody's connection: %v", got.Conn)
		}
	})
}

// A connection lives as long as the previous hop's token, less the time for the
// call, whatever expiry is claimed beside the token.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web, self := newParty(t, "web"), newParty(t, "manager")
		h := Hop{Name: "manager", Tokens: token.NewGenerator(self, time.Hour), Monitor: NewMonitor(nil)}
		for _, tt := range []struct {
			name           string
			token, claimed time.Duration
			deadline       time.Duration // 0 = none
			want           time.Duration // 0 = refused
		}{
			{"as the token says", 10 * time.Minute, 10 * time.Minute, 0, 10 * time.Minute},
			{"less, since the peer's certificate ends", 10 * time.Minute, 5 * time.Minute, 0, 5 * time.Minute},
			{"more is claimed", 10 * time.Minute, 1000 * time.Hour, 0, 10 * time.Minute},
			{"time for the call", 10 * time.Minute, 10 * time.Minute, 15 * time.Second, 10*time.Minute - 15*time.Second},
			{"no more than a third of its life", time.Minute, time.Minute, time.Hour, 40 * time.Second},
			{"expired", -time.Second, time.Minute, 0, 0},
			{"claimed to be expired", time.Minute, -time.Second, 0, 0},
		} {
			now := time.Now()
			ctx := web.calling(t, web.says(t, web.id, self.id, now.Add(tt.token)), now.Add(tt.claimed))
			if tt.deadline > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, tt.deadline)
				defer cancel()
			}
			call, err := h.Admit(ctx, first("w"))
			if tt.want == 0 {
				if !errors.Is(err, nserr.TokenExpired) {
					t.Errorf("%s: %v", tt.name, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			if got := call.Expiry(ctx).Sub(now); got != tt.want {
				t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
			}
		}
	})
}

// Failures of several hops have one reason if that is the request's.
func TestCommonCause(t *testing.T) {
	excluded, exhausted, down := nserr.AddressesExcluded.Errorf("a"), nserr.AddressesExhausted.Errorf("b"), nserr.PeerDown.Errorf("c")
	for _, tt := range []struct {
		name string
		errs []error
		want *nserr.Reason
	}{
		{"none", nil, nil},
		{"one", []error{excluded}, nserr.AddressesExcluded},
		{"the same", []error{excluded, excluded}, nserr.AddressesExcluded},
		{"different ones", []error{excluded, exhausted}, nil},
		{"nobody was there", []error{down, down}, nil},
		{"unknown", []error{errors.New("x"), errors.New("x")}, nil},
	} {
		got := commonCause(tt.errs)
		if got == nil != (tt.want == nil) || got != nil && got.Reason != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// Whatever a peer sends with a Request, the hop refuses it with a reason or knows
// its own place; what it would send on, the next hop's answer and an event of it
// are judged without harm as well.
func FuzzAdmit(f *testing.F) {
	web, self := newParty(f, "web"), newParty(f, "manager")
	end := time.Now().Add(time.Hour)
	good := web.says(f, web.id, self.id, end)
	marshal := func(c *networkservice.Connection) []byte {
		raw, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		return raw
	}
	answer := first("w")
	answer.Path.PathSegments = append(answer.Path.PathSegments,
		&networkservice.PathSegment{Name: "manager", Id: "m", Token: good}, &networkservice.PathSegment{Name: "forwarder", Id: "f"})
	f.Add(marshal(first("w")), good, marshal(answer))
	f.Add(marshal(answer), good, marshal(first("w")))
	f.Add([]byte{}, "", []byte{})
	f.Add(marshal(&networkservice.Connection{Path: &networkservice.Path{Index: 1 << 31}}), "a.b.c", marshal(first("x")))
	h := Hop{Name: "manager", Tokens: token.NewGenerator(self, time.Hour), Monitor: NewMonitor(nil)}
	f.Fuzz(func(t *testing.T, request []byte, raw string, answer []byte) {
		sent, got := new(networkservice.Connection), new(networkservice.Connection)
		if proto.Unmarshal(request, sent) != nil || proto.Unmarshal(answer, got) != nil {
			return
		}
		call, err := h.Admit(web.calling(t, raw, end), sent)
		if err != nil {
			if nserr.From(err).Reason == nserr.Internal {
				t.Errorf("no reason: %v", err)
			}
			return
		}
		segment := call.Conn.GetCurrentPathSegment()
		if segment.GetName() != h.Name || segment.GetId() != call.Conn.GetId() || segment.GetToken() == "" || call.Binding.Caller != web.id {
			t.Errorf("admitted as %v", call.Conn)
		}
		if err := checkReply(call.Conn, got); err != nil && nserr.From(err).Reason != nserr.BadAnswer {
			t.Errorf("answer: %v", err)
		}
		own := proto.CloneOf(call.Conn)
		if misfit(own, got) == "" && takeOver(own, got) {
			if own.GetId() != call.Conn.GetId() || own.GetPath().GetIndex() != call.Conn.GetPath().GetIndex() || PathOf(own).Validate() != nil {
				t.Errorf("an event made %v of %v", own, call.Conn)
			}
			for _, s := range own.GetPath().GetPathSegments() {
				if s.GetToken() != "" {
					t.Error("an event brought a token")
				}
			}
		}
		if reply := call.Reply(proto.CloneOf(call.Conn)); reply.GetPath().GetIndex()+1 != call.Conn.GetPath().GetIndex() {
			t.Errorf("reply %v", reply)
		}
	})
}

// A gate is told that a Request is a refresh only if it is of a connection that is the
// caller's, and that it has passed a hop only if who may say so does.
func TestVisit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web, other, self := newParty(t, "web"), newParty(t, "other"), newParty(t, "manager")
		end := time.Now().Add(time.Hour)
		h := Hop{Name: "manager", Tokens: token.NewGenerator(self, time.Hour), Monitor: NewMonitor(nil)}
		ctx := func(p *party) context.Context { return p.calling(t, p.says(t, p.id, self.id, end), end) }
		call, err := h.Admit(ctx(web), first("w-0"))
		if err != nil {
			t.Fatal(err)
		}
		h.Monitor.Publish(call.Conn)
		refresh := call.Reply(proto.CloneOf(call.Conn))
		id := call.Binding.id(h.Name, path.Segment{Name: "web", ID: "w-0"})

		// through is the connection of somebody as a hop of other's name sends it on.
		through := func(before ...*networkservice.PathSegment) *networkservice.Connection {
			return &networkservice.Connection{Id: "o", Path: &networkservice.Path{
				Index: uint32(len(before)), PathSegments: append(before, &networkservice.PathSegment{Name: "other", Id: "o"}),
			}}
		}
		webs := web.says(t, web.id, other.id, end)
		nobody := func(string) bool { return false }
		everybody := func(string) bool { return true }
		for _, tt := range []struct {
			name   string
			by     *party
			conn   *networkservice.Connection
			relays func(string) bool
			class  gate.Class
			of     string
		}{
			{"a refresh", web, refresh, nobody, gate.Refresh, id},
			{"one after the client has forgotten", web, first("w-0"), nobody, gate.Refresh, id},
			{"another connection", web, first("w-1"), nobody, gate.Fresh, ""},
			{"somebody else's refresh", other, refresh, everybody, gate.Fresh, ""},
			{"on behalf of another", other, through(&networkservice.PathSegment{Name: "web", Id: "w-0", Token: webs}), nobody, gate.Fresh, ""},
			{"and may do so", other, through(&networkservice.PathSegment{Name: "web", Id: "w-0", Token: webs}), everybody, gate.Transit, ""},
			{"everybody may do so", other, through(&networkservice.PathSegment{Name: "web", Id: "w-0", Token: webs}), nil, gate.Transit, ""},
			{"as the first", other, first("w-0"), everybody, gate.Fresh, ""},
			{"by way of a pass-through endpoint", other, through(
				&networkservice.PathSegment{Name: "web", Id: "w-0", Token: webs}, &networkservice.PathSegment{Name: "manager", Id: id}), nobody, gate.Transit, ""},
			{"on behalf of nobody, with somebody's id", other, through(
				&networkservice.PathSegment{Name: "web", Id: "w-0"}, &networkservice.PathSegment{Name: "manager", Id: id}), nobody, gate.Fresh, ""},
			{"nonsense", web, &networkservice.Connection{Path: &networkservice.Path{Index: 7}}, everybody, gate.Fresh, ""},
			{"nothing", web, nil, everybody, gate.Fresh, ""},
		} {
			before := proto.CloneOf(tt.conn)
			got := h.Visit(ctx(tt.by), tt.conn, tt.relays)
			if want := (gate.Visit{Class: tt.class, Of: tt.of}); got != want {
				t.Errorf("%s: %+v, want %+v", tt.name, got, want)
			}
			if !proto.Equal(before, tt.conn) {
				t.Errorf("%s: the connection has changed", tt.name)
			}
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package endpoint

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/ipam"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newPool(t *testing.T, cidr string) *ipam.Pool {
	t.Helper()
	groups, err := ipam.ParseGroups(cidr)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := ipam.New(groups)
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

func withIP(id string, ip *networkservice.IPContext) *Request {
	return &Request{Connection: &networkservice.Connection{Id: id, Context: &networkservice.ConnectionContext{IpContext: ip}}}
}

func route(prefix string) *networkservice.Route { return &networkservice.Route{Prefix: prefix} }

func TestAddresses(t *testing.T) {
	type ip = networkservice.IPContext
	for _, tt := range []struct {
		name   string
		cidr   string
		policy AddressPolicy
		in     *ip
		want   *ip
		err    error
	}{
		{"the lowest two, with routes to each other", "10.0.0.0/24", Strict, nil, &ip{
			DstIpAddrs: []string{"10.0.0.0/32"}, SrcIpAddrs: []string{"10.0.0.1/32"},
			SrcRoutes: []*networkservice.Route{route("10.0.0.0/32")}, DstRoutes: []*networkservice.Route{route("10.0.0.1/32")},
		}, nil},
		{"dual stack", "10.0.0.0/24,fd00::/64", Strict, &ip{}, &ip{
			DstIpAddrs: []string{"10.0.0.0/32", "fd00::/128"}, SrcIpAddrs: []string{"10.0.0.1/32", "fd00::1/128"},
			SrcRoutes: []*networkservice.Route{route("10.0.0.0/32"), route("fd00::/128")}, DstRoutes: []*networkservice.Route{route("10.0.0.1/32"), route("fd00::1/128")},
		}, nil},
		{"those of an earlier life", "10.0.0.0/24", Strict, &ip{
			DstIpAddrs: []string{"10.0.0.8/32"}, SrcIpAddrs: []string{"10.0.0.9/32"},
			SrcRoutes: []*networkservice.Route{route("10.0.0.8/32")}, DstRoutes: []*networkservice.Route{route("10.0.0.9/32")},
		}, &ip{
			DstIpAddrs: []string{"10.0.0.8/32"}, SrcIpAddrs: []string{"10.0.0.9/32"},
			SrcRoutes: []*networkservice.Route{route("10.0.0.8/32")}, DstRoutes: []*networkservice.Route{route("10.0.0.9/32")},
		}, nil},
		{"strict: those of another endpoint go", "10.0.0.0/24", Strict, &ip{
			DstIpAddrs: []string{"10.9.0.8/32"}, SrcIpAddrs: []string{"10.9.0.9/32"}, SrcRoutes: []*networkservice.Route{route("10.9.0.8/32")},
		}, &ip{
			DstIpAddrs: []string{"10.0.0.0/32"}, SrcIpAddrs: []string{"10.0.0.1/32"},
			SrcRoutes: []*networkservice.Route{route("10.0.0.0/32")}, DstRoutes: []*networkservice.Route{route("10.0.0.1/32")},
		}, nil},
		{"polite: they stay", "10.0.0.0/24", Polite, &ip{
			DstIpAddrs: []string{"10.9.0.8/32"}, SrcIpAddrs: []string{"10.9.0.9/32"}, SrcRoutes: []*networkservice.Route{route("10.9.0.8/32")},
		}, &ip{
			DstIpAddrs: []string{"10.0.0.0/32", "10.9.0.8/32"}, SrcIpAddrs: []string{"10.0.0.1/32", "10.9.0.9/32"},
			SrcRoutes: []*networkservice.Route{route("10.9.0.8/32"), route("10.0.0.0/32")}, DstRoutes: []*networkservice.Route{route("10.0.0.1/32")},
		}, nil},
		{"around what is excluded", "10.0.0.0/24", Strict, &ip{ExcludedPrefixes: []string{"10.0.0.0/30"}}, &ip{
			ExcludedPrefixes: []string{"10.0.0.0/30"},
			DstIpAddrs:       []string{"10.0.0.4/32"}, SrcIpAddrs: []string{"10.0.0.5/32"},
			SrcRoutes: []*networkservice.Route{route("10.0.0.4/32")}, DstRoutes: []*networkservice.Route{route("10.0.0.5/32")},
		}, nil},
		{"all is excluded", "10.0.0.0/24", Strict, &ip{ExcludedPrefixes: []string{"0.0.0.0/0"}}, nil, nserr.AddressesExcluded},
		{"no address", "10.0.0.0/24", Strict, &ip{SrcIpAddrs: []string{"x"}}, nil, nserr.BadContext},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pool := newPool(t, tt.cidr)
			h := Chain(Addresses(pool, tt.policy))
			r := withIP("1", tt.in)
			err := h.Request(t.Context(), r)
			if tt.err != nil {
				if !errors.Is(err, tt.err) || len(pool.Leases()) != 0 {
					t.Errorf("%v, %d leases", err, len(pool.Leases()))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			equal := cmp.Comparer(proto.Equal)
			if diff := cmp.Diff(tt.want, r.Connection.GetContext().GetIpContext(), equal); diff != "" {
				t.Error(diff)
			}
			again := &Request{Connection: proto.CloneOf(r.Connection), Known: true}
			if err := h.Request(t.Context(), again); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(r.Connection, again.Connection, equal); diff != "" {
				t.Errorf("a refresh changes it:\n%s", diff)
			}
			h.Close(t.Context(), r.Connection)
			if n := len(pool.Leases()); n != 0 {
				t.Errorf("%d leases after Close", n)
			}
		})
	}
}

// The first is asked first, and what it gave is taken back whoever refuses.
func TestChain(t *testing.T) {
	var calls []string
	note := func(name string, fail error) Middleware {
		return func(next Handler) Handler {
			return Funcs{
				OnRequest: func(ctx context.Context, r *Request) error {
					calls = append(calls, name)
					return errors.Join(fail, next.Request(ctx, r))
				},
				OnClose: func(ctx context.Context, c *networkservice.Connection) {
					calls = append(calls, "close "+name)
					next.Close(ctx, c)
				},
			}
		}
	}
	h := Chain(note("a", nil), note("b", nil))
	if err := h.Request(t.Context(), &Request{}); err != nil {
		t.Error(err)
	}
	h.Close(t.Context(), nil)
	if want := []string{"a", "b", "close a", "close b"}; !slices.Equal(calls, want) {
		t.Errorf("called %v, want %v", calls, want)
	}
}

func TestMTU(t *testing.T) {
	for _, tt := range []struct{ asked, want uint32 }{{0, 1400}, {9000, 1400}, {1400, 1400}, {1300, 1300}} {
		r := &Request{Connection: &networkservice.Connection{Context: &networkservice.ConnectionContext{MTU: tt.asked}}}
		if err := Chain(MTU(1400)).Request(t.Context(), r); err != nil || r.Connection.GetContext().GetMTU() != tt.want {
			t.Errorf("asked %d: %d, %v", tt.asked, r.Connection.GetContext().GetMTU(), err)
		}
	}
}

// anybody is a policy for tests without identities.
type anybody struct{}

func (anybody) Admit(rpc.Caller, path.Path, time.Time) error { return nil }
func (anybody) IsObserver(string) bool                       { return true }

var _ hop.Policy = anybody{}

// A refused first Request takes back what handlers before the refusing one have
// given; a refused refresh leaves it.
func TestRefusedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := newPool(t, "10.0.0.0/24")
		var refuse error
		gate := func(next Handler) Handler {
			return Funcs{OnRequest: func(ctx context.Context, r *Request) error { return errors.Join(refuse, next.Request(ctx, r)) }, OnClose: next.Close}
		}
		log := slog.New(slog.DiscardHandler)
		end := time.Now().Add(10 * time.Minute)
		tokens := func(*x509.Certificate) (string, time.Time, error) { return "own", end, nil }
		s := New("db-1", Chain(Addresses(pool, Strict), gate), tokens, anybody{}, log)
		defer s.Stop()
		l := rpc.NewLocal(rpc.LocalOptions{Logger: log})
		s.Register(l)
		defer l.Close()
		client := networkservice.NewNetworkServiceClient(l.Dial(rpc.LocalCaller{}))
		first := func() *networkservice.NetworkServiceRequest {
			return &networkservice.NetworkServiceRequest{Connection: &networkservice.Connection{
				Id: "f", NetworkService: "db",
				Path: &networkservice.Path{PathSegments: []*networkservice.PathSegment{{Name: "forwarder", Id: "f", Token: "t", Expires: timestamppb.New(end)}}},
			}}
		}
		expect := func(what string, err error, want *nserr.Reason, conns int) {
			t.Helper()
			if want == nil && err != nil || want != nil && !errors.Is(err, want) {
				t.Errorf("%s: %v", what, err)
			}
			if s.Len() != conns || len(pool.Leases()) != conns {
				t.Errorf("%s: %d connections and %d leases, want %d", what, s.Len(), len(pool.Leases()), conns)
			}
		}
		refuse = nserr.NotAllowed.Errorf("no")
		_, err := client.Request(t.Context(), first())
		expect("refused", err, nserr.NotAllowed, 0)

		refuse = nil
		got, err := client.Request(t.Context(), first())
		expect("taken", err, nil, 1)
		if segments := got.GetPath().GetPathSegments(); len(segments) != 2 || segments[1].GetName() != "db-1" || got.GetState() != networkservice.State_UP {
			t.Errorf("answer %v", got)
		}

		refuse = nserr.NotAllowed.Errorf("no")
		_, err = client.Request(t.Context(), &networkservice.NetworkServiceRequest{Connection: proto.CloneOf(got)})
		expect("refresh refused", err, nserr.NotAllowed, 1)

		_, err = client.Close(t.Context(), proto.CloneOf(got))
		expect("closed", err, nil, 0)
		_, err = client.Close(t.Context(), proto.CloneOf(got))
		expect("closed twice", err, nil, 0)

		refuse = nil
		_, err = client.Request(t.Context(), first())
		expect("taken again", err, nil, 1)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		expect("expired", nil, nil, 0)
	})
}

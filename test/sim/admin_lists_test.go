// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/proto"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Nodes are what has registered with one manager.
func TestAdminNodesAndEndpoints(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b, bare := m.Node("a"), m.Node("b"), m.BareNode("c")
		a.Serve(Service{Name: "db", Labels: map[string]string{"role": "primary"}})
		b.Serve(Service{Name: "db", Labels: map[string]string{"role": "replica"}})
		b.StartForwarder("forwarder-b2", map[string]string{"fast": "yes"})
		Settle()
		who := m.As(t, "operator", a)

		names := func(n *Node, f *adminv1.Filter) (names []string) {
			s, err := m.As(t, "operator", n).Nodes(t.Context(), &adminv1.NodesRequest{Filter: f})
			for _, e := range all(t, s, err) {
				n := e.GetNode()
				names = append(names, n.GetName())
				if n.GetLocal() != (n.GetVersion() != nil) || n.GetLocal() != (n.GetStarted() != nil) || n.GetLocal() != (n.GetManager() != "") {
					t.Errorf("node %v", n)
				}
			}
			return names
		}
		for _, tt := range []struct {
			at   *Node
			f    *adminv1.Filter
			want []string
		}{
			{a, nil, []string{"a", "b"}},
			{b, nil, []string{"b", "a"}},
			{bare, nil, []string{"c", "a", "b"}},
			{a, &adminv1.Filter{Name: "b"}, []string{"b"}},
			{a, &adminv1.Filter{Name: "c"}, nil},
			{a, &adminv1.Filter{Labels: map[string]string{"nodeName": "b"}}, []string{"b"}},
			{a, &adminv1.Filter{Labels: map[string]string{"fast": "yes"}}, nil}, // only one of its forwarders is
		} {
			if got := names(tt.at, tt.f); !slices.Equal(got, tt.want) {
				t.Errorf("nodes seen from %s with %v: %v, want %v", tt.at.Name, tt.f, got, tt.want)
			}
		}

		endpoints := func(r *adminv1.EndpointsRequest) (names []string) {
			s, err := who.Endpoints(t.Context(), r)
			for _, e := range all(t, s, err) {
				names = append(names, e.GetEndpoint().GetName()+"@"+e.GetEndpoint().GetNode())
				if local := e.GetEndpoint().GetNode() == "a"; local == strings.HasPrefix(e.GetEndpoint().GetUrl(), "tcp://") {
					t.Errorf("endpoint %v", e.GetEndpoint())
				}
			}
			slices.Sort(names)
			return names
		}
		for _, tt := range []struct {
			r    *adminv1.EndpointsRequest
			want []string
		}{
			{&adminv1.EndpointsRequest{}, []string{"db-a@a", "db-b@b", "forwarder-a@a", "forwarder-b2@b", "forwarder-b@b"}},
			{&adminv1.EndpointsRequest{Service: "db"}, []string{"db-a@a", "db-b@b"}},
			{&adminv1.EndpointsRequest{Filter: &adminv1.Filter{Labels: map[string]string{"role": "replica"}}}, []string{"db-b@b"}},
			{&adminv1.EndpointsRequest{Filter: &adminv1.Filter{Name: "db-a"}}, []string{"db-a@a"}},
			{&adminv1.EndpointsRequest{Filter: &adminv1.Filter{Name: "db"}}, nil},
		} {
			if got := endpoints(tt.r); !slices.Equal(got, tt.want) {
				t.Errorf("endpoints with %v: %v, want %v", tt.r, got, tt.want)
			}
		}

		watch, err := who.Nodes(t.Context(), &adminv1.NodesRequest{Filter: &adminv1.Filter{Watch: true}})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := watch.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		bare.StartForwarder("forwarder-c", nil)
		synctest.Wait()
		e, err := watch.Recv()
		if err != nil || e.GetType() != adminv1.EventType_EVENT_TYPE_ADDED || e.GetNode().GetName() != "c" {
			t.Errorf("%v, %v", e, err)
		}
	})
}

// Services are changed in the caller's name.
func TestAdminServices(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a, b := m.Node("a"), m.Node("b")
		owner, other := m.As(t, "owner", a), m.As(t, "other", b)
		apply := func(who admin, s *adminv1.Service) (string, error) {
			r, err := who.ApplyService(t.Context(), &adminv1.ApplyServiceRequest{Service: s})
			synctest.Wait()
			return strings.TrimPrefix(r.GetResult().String(), "RESULT_"), err
		}
		db := &adminv1.Service{Name: "db", Payload: "ETHERNET", Matches: []*adminv1.Match{{
			SourceSelector: map[string]string{"app": "web"}, Fallthrough: true,
			Routes:   []*adminv1.Destination{{DestinationSelector: map[string]string{"role": "primary"}, Weight: 3}},
			Metadata: &adminv1.Metadata{Labels: map[string]string{"fast": "yes"}},
		}}}
		changed := proto.CloneOf(db)
		changed.Matches[0].Fallthrough = false
		for _, tt := range []struct {
			who     admin
			service *adminv1.Service
			want    string
			err     error
		}{
			{owner, db, "CREATED", nil},
			{owner, db, "UNCHANGED", nil},
			{owner, changed, "CONFIGURED", nil},
			{other, db, "", nserr.NameOwned},
			{other, changed, "", nserr.NameOwned},
			{other, &adminv1.Service{Name: "plain"}, "CREATED", nil},
			{other, &adminv1.Service{Name: "plain", Payload: "IP"}, "UNCHANGED", nil},
			{other, nil, "", nserr.BadService},
			{other, &adminv1.Service{Name: "x", Payload: "SMOKE"}, "", nserr.BadService},
		} {
			if got, err := apply(tt.who, tt.service); !errors.Is(err, tt.err) || err == nil && got != tt.want {
				t.Errorf("apply %v: %s, %v; want %s, %v", tt.service, got, err, tt.want, tt.err)
			}
		}

		services := func(f *adminv1.Filter) (out []*adminv1.Service) {
			s, err := other.Services(t.Context(), &adminv1.ServicesRequest{Filter: f})
			for _, e := range all(t, s, err) {
				out = append(out, e.GetService())
			}
			return out
		}
		if got := services(&adminv1.Filter{Labels: map[string]string{"fast": "yes"}}); len(got) != 1 {
			t.Errorf("services by label: %v", got)
		} else if got[0].GetPathIds()[0] != ID("owner") || !proto.Equal(got[0].GetMatches()[0], changed.GetMatches()[0]) {
			t.Errorf("at the other node: %v", got[0])
		}
		a.Serve(Service{Name: "plain"})
		if got := services(&adminv1.Filter{Name: "plain"}); len(got) != 1 || got[0].GetEndpoints() != 1 || got[0].GetPayload() != "IP" {
			t.Errorf("services by name: %v", got)
		}

		remove := func(who admin, name string) error {
			_, err := who.DeleteService(t.Context(), &adminv1.DeleteServiceRequest{Name: name})
			synctest.Wait()
			return err
		}
		if err := remove(other, "db"); !errors.Is(err, nserr.NameOwned) {
			t.Errorf("somebody else's: %v", err)
		}
		if err := remove(owner, "db"); err != nil {
			t.Error(err)
		}
		if err := remove(owner, "db"); !errors.Is(err, nserr.UnknownService) {
			t.Errorf("deleted twice: %v", err)
		}
		if got := services(nil); len(got) != 1 {
			t.Errorf("left: %v", got)
		}
	})
}

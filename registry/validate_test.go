// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/sdk/match"
	"github.com/openvwire/nsm/sdk/nserr"
)

func manyLabels(n int) map[string]string {
	labels := make(map[string]string)
	for i := range n {
		labels[fmt.Sprint(i)] = "x"
	}
	return labels
}

// longLabels are few enough and short enough each, and too large together.
func longLabels() map[string]string {
	labels := make(map[string]string)
	for i := range registry.MaxObject / registry.MaxLabel {
		labels[fmt.Sprintf("%04d", i)] = strings.Repeat("v", registry.MaxLabel-4)
	}
	return labels
}

func manyNames(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprint(i))
	}
	return names
}

func withLabels(labels map[string]string) *api.NetworkServiceEndpoint {
	nse := endpoint("e", "s")
	nse.NetworkServiceLabels = map[string]*api.NetworkServiceLabels{"s": {Labels: labels}}
	return nse
}

// withServices offers some services and has labels for as many others.
func withServices(offered, labelled int) *api.NetworkServiceEndpoint {
	nse := endpoint("e", manyNames(offered)...)
	nse.NetworkServiceLabels = make(map[string]*api.NetworkServiceLabels)
	for _, name := range manyNames(labelled) {
		nse.NetworkServiceLabels["other-"+name] = &api.NetworkServiceLabels{}
	}
	return nse
}

func withURL(url string) *api.NetworkServiceEndpoint {
	nse := endpoint("e", "s")
	nse.Url = url
	return nse
}

func withMatch(m *api.Match) *api.NetworkService {
	return &api.NetworkService{Name: "s", Matches: []*api.Match{m}}
}

var long = strings.Repeat("n", registry.MaxName)

func TestBadEndpoints(t *testing.T) {
	f := newFixture(t)
	c := f.as(f.authority.issue(t, "nse"))
	noTime := &timestamppb.Timestamp{Nanos: -1}
	for _, tt := range []struct {
		name string
		nse  *api.NetworkServiceEndpoint
		says string // "" is in order
	}{
		{"good", endpoint(long, long), ""},
		{"as many labels as allowed", withLabels(manyLabels(registry.MaxLabels)), ""},
		{"a Unix socket", withURL("unix:///run/nse.sock"), ""},
		{"a descriptor", withURL("inode://4/123"), ""},
		{"without a scheme proper", withURL("registry:5002"), ""},
		{"nothing", &api.NetworkServiceEndpoint{}, "no name"},
		{"no name", endpoint("", "s"), "no name"},
		{"no service", endpoint("e"), "no network service"},
		{"no URL", withURL(""), "no URL"},
		{"an unnamed service", endpoint("e", "s", ""), "without a name"},
		{"a URL that is none", withURL("http://[::1"), "missing ']'"},
		{"a relative URL", withURL("/run/nse.sock"), "no scheme"},
		{"a long URL", withURL("tcp://" + strings.Repeat("a", registry.MaxURL)), "bytes"},
		{"a long name", endpoint(long+"n", "s"), "longer than 253"},
		{"a long service name", endpoint("e", long+"n"), "longer than 253"},
		{"a control character", endpoint("e\x1b[2J", "s"), "control characters"},
		{"a control character in a service", endpoint("e", "s\n"), "control characters"},
		{"as many services as allowed", withServices(registry.MaxServices, registry.MaxServices), ""},
		{"too many services", withServices(registry.MaxServices+1, 0), "257 network services, at most 256"},
		{"labels for too many services", withServices(1, registry.MaxServices+1), "257 network services, at most 256"},
		{"too many labels", withLabels(manyLabels(registry.MaxLabels + 1)), "labels"},
		{"a long label", withLabels(map[string]string{"k": strings.Repeat("v", registry.MaxLabel)}), "longer than 4096"},
		{"too large in all", withLabels(longLabels()), "bytes"},
		{"no expiry", &api.NetworkServiceEndpoint{Name: "e", NetworkServiceNames: []string{"s"}, Url: "tcp://h", ExpirationTime: noTime}, "not a time"},
		{"no initial time", &api.NetworkServiceEndpoint{Name: "e", NetworkServiceNames: []string{"s"}, Url: "tcp://h", InitialRegistrationTime: noTime}, "not a time"},
	} {
		_, err := c.endpoints.Register(t.Context(), tt.nse)
		if refused(t, tt.name, err, nserr.BadEndpoint, tt.says) {
			if left := f.stored(t); left != nil {
				t.Errorf("%s: left %v", tt.name, left)
			}
		} else if _, err := c.endpoints.Unregister(t.Context(), tt.nse); err != nil {
			t.Errorf("%s: Unregister: %v", tt.name, err)
		}
	}
}

func TestBadServices(t *testing.T) {
	f := newFixture(t)
	c := f.as(f.authority.issue(t, "admin"))
	many := make([]*api.Match, registry.MaxMatches+1)
	for i := range many {
		many[i] = &api.Match{}
	}
	routes := make([]*api.Destination, registry.MaxMatches+1)
	for i := range routes {
		routes[i] = &api.Destination{}
	}
	destination := func(value string) *api.Match {
		return &api.Match{Routes: []*api.Destination{{DestinationSelector: map[string]string{"k": value}}}}
	}
	for _, tt := range []struct {
		name string
		ns   *api.NetworkService
		says string
	}{
		{"good", &api.NetworkService{Name: long, Payload: "ETHERNET"}, ""},
		{"templates", withMatch(destination(`{{.nodeName}}-{{index . "x"}}`)), ""},
		{"no template", withMatch(destination(`{nodeName}`)), ""},
		{"no name", &api.NetworkService{Payload: "IP"}, "no name"},
		{"another payload", &api.NetworkService{Name: "s", Payload: "ATM"}, `payload "ATM"`},
		{"a lower-case payload", &api.NetworkService{Name: "s", Payload: "ip"}, `payload "ip"`},
		{"a long name", &api.NetworkService{Name: long + "n"}, "longer than 253"},
		{"a control character", &api.NetworkService{Name: "s\x00"}, "control characters"},
		{"a malformed destination template", withMatch(destination(`{{.nodeName`)), `template of label "k"`},
		{"a malformed source template", withMatch(&api.Match{SourceSelector: map[string]string{"k": "{{nofunc}}"}}), `template of label "k"`},
		{"too many matches", &api.NetworkService{Name: "s", Matches: many}, "matches"},
		{"too many routes", withMatch(&api.Match{Routes: routes}), "routes"},
		{"too large in all", withMatch(&api.Match{SourceSelector: longLabels()}), "bytes"},
		{"too many labels", withMatch(&api.Match{SourceSelector: manyLabels(600), Metadata: &api.Metadata{Labels: manyLabels(600)}}), "labels"},
	} {
		_, err := c.services.Register(t.Context(), tt.ns)
		if refused(t, tt.name, err, nserr.BadService, tt.says) {
			if left := f.stored(t); left != nil {
				t.Errorf("%s: left %v", tt.name, left)
			}
		} else if _, err := c.services.Unregister(t.Context(), tt.ns); err != nil {
			t.Errorf("%s: Unregister: %v", tt.name, err)
		}
	}
}

func TestBadQueries(t *testing.T) {
	f := newFixture(t)
	c := f.as(f.authority.issue(t, "client"))
	for _, following := range []bool{false, true} {
		endpoints, err := c.endpoints.Find(t.Context(), &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: withLabels(manyLabels(100_000)), Watch: following})
		if err == nil {
			_, err = endpoints.Recv()
		}
		refused(t, "a huge filter", err, nserr.BadEndpoint, "labels")
		services, err := c.services.Find(t.Context(), &api.NetworkServiceQuery{NetworkService: &api.NetworkService{Name: long + "n"}, Watch: following})
		if err == nil {
			_, err = services.Recv()
		}
		refused(t, "a long name", err, nserr.BadService, "longer than 253")
	}
}

// refused checks err against what it should say, "" for no error.
func refused(t *testing.T, name string, err error, want *nserr.Reason, says string) bool {
	t.Helper()
	switch {
	case says == "" && err != nil:
		t.Errorf("%s: %v", name, err)
	case says != "" && (!errors.Is(err, want) || status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), says)):
		t.Errorf("%s: %v, want %s that says %q", name, err, want.Code, says)
	}
	return says != ""
}

// Whatever bytes a peer registers as an endpoint: it is refused with a reason and
// nothing is left, or what is stored is found by its own name and services, has an
// end, and can be unregistered.
func FuzzRegisterEndpoint(f *testing.F) {
	fix := newFixture(f)
	c := fix.as(fix.authority.issue(f, "nse"))
	seed(f, endpoint("e", "s"), withURL("inode://4/123"), withURL("http://[::1"), withURL("a:%zz"), endpoint("e\x00", ""), &api.NetworkServiceEndpoint{},
		withLabels(map[string]string{"nodeName": "{{"}), &api.NetworkServiceEndpoint{
			Name: "e", NetworkServiceNames: []string{"s", "s"}, Url: "tcp://h", PathIds: []string{"spiffe://test/other"},
			NetworkServiceLabels: map[string]*api.NetworkServiceLabels{"s": {}, "other": {Labels: map[string]string{"": ""}}},
			ExpirationTime:       &timestamppb.Timestamp{Seconds: 1 << 40}, InitialRegistrationTime: &timestamppb.Timestamp{Seconds: -1, Nanos: 1},
		})
	f.Fuzz(func(t *testing.T, raw []byte) {
		nse := new(api.NetworkServiceEndpoint)
		if proto.Unmarshal(raw, nse) != nil {
			return
		}
		start := time.Now()
		got, err := c.endpoints.Register(t.Context(), nse)
		if err != nil {
			if !errors.Is(err, nserr.BadEndpoint) || fix.stored(t) != nil {
				t.Errorf("%v, and there are %v", err, fix.stored(t))
			}
			return
		}
		if left := got.GetExpirationTime().AsTime().Sub(start); left < -time.Second || left > time.Minute+time.Second {
			t.Errorf("registered for %v", left)
		}
		if initial := got.GetInitialRegistrationTime(); !initial.IsValid() || initial.AsTime().After(time.Now()) {
			t.Errorf("registered at %v", initial)
		}
		if got.GetPathIds()[0] != "spiffe://test/nse" {
			t.Errorf("owned by %v", got.GetPathIds())
		}
		for _, query := range []*api.NetworkServiceEndpoint{
			{Name: nse.GetName()}, {NetworkServiceNames: nse.GetNetworkServiceNames(), NetworkServiceLabels: nse.GetNetworkServiceLabels()},
		} {
			stream, err := c.endpoints.Find(t.Context(), &api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: query})
			if found := receive(t, stream, err); len(found) != 1 || !proto.Equal(found[0].GetNetworkServiceEndpoint(), got) {
				t.Errorf("%v finds %v, want %v", query, found, got)
			}
		}
		if _, err := c.endpoints.Unregister(t.Context(), got); err != nil || fix.stored(t) != nil {
			t.Errorf("unregistered: %v, and there are %v", err, fix.stored(t))
		}
	})
}

// The same of services; what passes has templates that parse, whoever uses them.
func FuzzRegisterService(f *testing.F) {
	fix := newFixture(f)
	c := fix.as(fix.authority.issue(f, "admin"))
	destination := func(value string) *api.NetworkService {
		return withMatch(&api.Match{Routes: []*api.Destination{{DestinationSelector: map[string]string{"k": value}, Weight: 1 << 31}}})
	}
	seed(f, &api.NetworkService{}, &api.NetworkService{Name: "s", Payload: "ETHERNET", PathIds: []string{"x"}}, &api.NetworkService{Name: "s", Payload: "ip"},
		withMatch(&api.Match{}), withMatch(&api.Match{SourceSelector: map[string]string{"k": "{{.k}}"}, Metadata: &api.Metadata{}, Fallthrough: true}),
		destination("{{.nodeName}}"), destination(`{{index . "a"}}`), destination("{{"), destination(`{{define "x"}}{{template "x" .}}{{end}}`),
		destination("{{range .}}{{end}}"), destination(strings.Repeat("{{if .}}", 64)), destination("{{"+strings.Repeat("(", 1000)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		ns := new(api.NetworkService)
		if proto.Unmarshal(raw, ns) != nil {
			return
		}
		got, err := c.services.Register(t.Context(), ns)
		if err != nil {
			if !errors.Is(err, nserr.BadService) || fix.stored(t) != nil {
				t.Errorf("%v, and there are %v", err, fix.stored(t))
			}
			return
		}
		if got.GetPayload() != "IP" && got.GetPayload() != "ETHERNET" || got.GetPathIds()[0] != "spiffe://test/admin" {
			t.Errorf("registered as %v", got)
		}
		for _, m := range got.GetMatches() {
			for _, r := range m.GetRoutes() {
				labels := r.GetDestinationSelector()
				match.Contains(labels, labels, m.GetSourceSelector()) // a manager does this with each Request
			}
		}
		stream, err := c.services.Find(t.Context(), &api.NetworkServiceQuery{NetworkService: &api.NetworkService{Name: ns.GetName(), Matches: ns.GetMatches()}})
		if found := receive(t, stream, err); len(found) != 1 || !proto.Equal(found[0].GetNetworkService(), got) {
			t.Errorf("%v is found as %v", got, found)
		}
		if _, err := c.services.Unregister(t.Context(), got); err != nil || fix.stored(t) != nil {
			t.Errorf("unregistered: %v, and there are %v", err, fix.stored(t))
		}
	})
}

// seed adds messages as a peer would send them.
func seed(f *testing.F, messages ...proto.Message) {
	for _, m := range messages {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
}

// SPDX-License-Identifier: Apache-2.0

package storetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/openvwire/nsm/sdk/query"
)

func (s suite) testUpdate(t *testing.T) {
	store := s.endpoints(t)
	ctx := t.Context()
	type nse = *api.NetworkServiceEndpoint

	first, second := endpoint("a", "s"), endpoint("a", "s", "t")
	for _, step := range []struct {
		name     string
		old, new nse
		err      error
	}{
		{"removing nothing", nil, nil, nil},
		{"creating", nil, first, nil},
		{"replacing", first, second, nil},
		{"an error", second, first, errors.New("not now")},
		{"removing", second, nil, nil},
		{"creating again", nil, first, nil},
	} {
		got, err := store.Update(ctx, "a", func(old nse) (nse, error) {
			if d := diff(step.old, old); d != "" {
				t.Errorf("%s: present object (-want +got):\n%s", step.name, d)
			}
			return step.new, step.err
		})
		want, stored := step.new, map[string]nse{"a": step.new}
		if step.err != nil {
			want, stored = nil, map[string]nse{"a": step.old}
		} else if step.new == nil {
			stored = map[string]nse{}
		}
		if err != step.err {
			t.Errorf("%s: Update = %v, want %v", step.name, err, step.err)
		}
		if d := diff(want, got); d != "" {
			t.Errorf("%s: Update (-want +got):\n%s", step.name, d)
		}
		if d := diff(stored, found(t, store, nil)); d != "" {
			t.Errorf("%s: stored (-want +got):\n%s", step.name, d)
		}
	}
}

func (s suite) testFind(t *testing.T) {
	stores := s.open(t, t.TempDir())
	defer stores.close(t)
	labels := func(service string, kv ...string) map[string]*api.NetworkServiceLabels {
		l := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			l[kv[i]] = kv[i+1]
		}
		return map[string]*api.NetworkServiceLabels{service: {Labels: l}}
	}
	at := &timestamppb.Timestamp{Seconds: 4e9, Nanos: 1}
	put(t, stores.Endpoints, &api.NetworkServiceEndpoint{Name: "a", Url: "tcp://10.0.0.1:5001", NetworkServiceNames: []string{"x"},
		NetworkServiceLabels: labels("x", "app", "web", "zone", "1"), ExpirationTime: at})
	put(t, stores.Endpoints, &api.NetworkServiceEndpoint{Name: "ab", Url: "tcp://10.0.0.1:5002", NetworkServiceNames: []string{"x", "y"},
		NetworkServiceLabels: labels("y", "app", "web")})
	put(t, stores.Endpoints, &api.NetworkServiceEndpoint{Name: "c", Url: "unix:///c", NetworkServiceNames: []string{"y"}})
	put(t, stores.Endpoints, &api.NetworkServiceEndpoint{Name: "d", Url: "unix:///d", NetworkServiceLabels: labels("z", "app", "")})

	for _, tt := range []struct {
		name     string
		template *api.NetworkServiceEndpoint
		want     string
	}{
		{"no template", nil, "a ab c d"},
		{"an empty template", &api.NetworkServiceEndpoint{}, "a ab c d"},
		{"the name is exact", &api.NetworkServiceEndpoint{Name: "a"}, "a"},
		{"an unknown name", &api.NetworkServiceEndpoint{Name: "b"}, ""},
		{"the URL is a substring", &api.NetworkServiceEndpoint{Url: "10.0.0.1"}, "a ab"},
		{"name and URL", &api.NetworkServiceEndpoint{Name: "a", Url: "5002"}, ""},
		{"a service", &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"x"}}, "a ab"},
		{"services are a subset", &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"y", "x"}}, "ab"},
		{"an unknown service", &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"x", "n"}}, ""},
		{"labels are a subset", &api.NetworkServiceEndpoint{NetworkServiceLabels: labels("x", "app", "web")}, "a"},
		{"labels of two are more", &api.NetworkServiceEndpoint{NetworkServiceLabels: labels("x", "app", "web", "zone", "2")}, ""},
		{"labels belong to a service", &api.NetworkServiceEndpoint{NetworkServiceNames: []string{"x"}, NetworkServiceLabels: labels("y", "app", "web")}, "ab"},
		{"an empty label is not a missing one", &api.NetworkServiceEndpoint{NetworkServiceLabels: labels("z", "app", "")}, "d"},
		{"a missing label is not an empty one", &api.NetworkServiceEndpoint{NetworkServiceLabels: labels("z", "zone", "")}, ""},
		{"no labels, but of that service", &api.NetworkServiceEndpoint{NetworkServiceLabels: labels("y")}, "ab"},
		{"the expiry to the second", &api.NetworkServiceEndpoint{ExpirationTime: &timestamppb.Timestamp{Seconds: 4e9}}, "a"},
		{"another expiry", &api.NetworkServiceEndpoint{ExpirationTime: &timestamppb.Timestamp{Seconds: 4e9 + 1}}, ""},
		{"path ids do not count", &api.NetworkServiceEndpoint{Name: "c", PathIds: []string{"spiffe://n/x"}}, "c"},
	} {
		if got := strings.Join(names(found(t, stores.Endpoints, tt.template)), " "); got != tt.want {
			t.Errorf("%s: found %q, want %q", tt.name, got, tt.want)
		}
	}

	matches := []*api.Match{{SourceSelector: map[string]string{"a": "b"}}, {Fallthrough: true}}
	for _, ns := range []*api.NetworkService{{Name: "a", Payload: "IP"}, {Name: "ab", Payload: "ETHERNET", Matches: matches}} {
		if _, err := stores.Services.Update(t.Context(), ns.Name, func(*api.NetworkService) (*api.NetworkService, error) { return ns, nil }); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name     string
		template *api.NetworkService
		want     string
	}{
		{"no template", nil, "a ab"},
		{"the name is exact", &api.NetworkService{Name: "a"}, "a"},
		{"the payload is exact", &api.NetworkService{Payload: "ETHERNET"}, "ab"},
		{"both", &api.NetworkService{Name: "a", Payload: "ETHERNET"}, ""},
		{"equal matches", &api.NetworkService{Matches: proto.CloneOf(&api.NetworkService{Matches: matches}).Matches}, "ab"},
		{"fewer matches", &api.NetworkService{Matches: matches[:1]}, ""},
		{"other matches", &api.NetworkService{Matches: []*api.Match{{}, {Fallthrough: true}}}, ""},
	} {
		if got := strings.Join(names(found(t, stores.Services, tt.template)), " "); got != tt.want {
			t.Errorf("services, %s: found %q, want %q", tt.name, got, tt.want)
		}
	}
}

func (s suite) testCancel(t *testing.T) {
	s.bubble(t, func(t *testing.T) {
		store := s.endpoints(t)
		put(t, store, endpoint("a", "s"))
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(gone)
		for _, err := range store.Find(ctx, nil) {
			if !errors.Is(err, gone) {
				t.Errorf("Find = %v, want the cause", err)
			}
		}
		if w, err := store.Watch(ctx, nil); err == nil {
			w.Close()
			t.Error("Watch opens under a cancelled context")
		}
		v := watchEndpoints(t, store, nil)
		defer v.w.Close()
		v.next()
		ctx, cancel = context.WithCancelCause(t.Context())
		result := make(chan error)
		go func() {
			_, err := v.w.Next(ctx)
			result <- err
		}()
		cancel(gone)
		if err := <-result; !errors.Is(err, gone) {
			t.Errorf("Next = %v, want the cause", err)
		}
		put(t, store, endpoint("b", "s"))
		if v.next(); v.state["b"] == nil {
			t.Errorf("a cancelled Next has lost something: %v", names(v.state))
		}
	})
}

func (s suite) testConcurrentUpdates(t *testing.T) {
	store := s.endpoints(t)
	const workers, rounds = 8, 25
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range rounds {
				_, err := store.Update(t.Context(), "counter", func(old *api.NetworkServiceEndpoint) (*api.NetworkServiceEndpoint, error) {
					n, _ := strconv.Atoi(old.GetUrl())
					return &api.NetworkServiceEndpoint{Name: "counter", Url: strconv.Itoa(n + 1)}, nil
				})
				if err != nil {
					t.Errorf("Update: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got, want := found(t, store, nil)["counter"].GetUrl(), strconv.Itoa(workers*rounds); got != want {
		t.Errorf("%s updates have been counted, want %s", got, want)
	}
}

// testModel does at random what a registry does and compares with a map: what
// is found by every template, and what watchers of every template believe.
func (s suite) testModel(t *testing.T) {
	templates := []*api.NetworkServiceEndpoint{
		nil,
		{Name: "e1"},
		{NetworkServiceNames: []string{"s1"}},
		{NetworkServiceNames: []string{"s2", "s1"}},
		{Url: ":7"},
		{NetworkServiceLabels: map[string]*api.NetworkServiceLabels{"s1": {Labels: map[string]string{"k": "v"}}}},
	}
	states := t.TempDir()
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		state := filepath.Join(states, strconv.Itoa(run))
		if err := os.Mkdir(state, 0o700); err != nil {
			rt.Fatal(err)
		}
		stores := s.open(t, state)
		defer func() { stores.close(t) }()
		model := make(map[string]*api.NetworkServiceEndpoint)
		last := make(map[string]*api.NetworkServiceEndpoint) // also of what is gone
		marks := int64(0)
		type follower struct {
			*view
			template *api.NetworkServiceEndpoint
		}
		var followers []follower
		defer func() {
			for _, f := range followers {
				f.w.Close()
			}
		}()
		name := rapid.SampledFrom([]string{"e1", "e2", "e3", "e4"})
		matching := func(template *api.NetworkServiceEndpoint) map[string]*api.NetworkServiceEndpoint {
			m := make(map[string]*api.NetworkServiceEndpoint)
			for k, v := range model {
				if query.Match(template, v) {
					m[k] = v
				}
			}
			return m
		}
		actions := map[string]func(*rapid.T){
			"put": func(rt *rapid.T) {
				nse := endpoint(name.Draw(rt, "name"), rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"s1", "s2"}), 0, 2, rapid.ID).Draw(rt, "services")...)
				nse.Url = url(rapid.IntRange(6, 8).Draw(rt, "port"))
				if rapid.Bool().Draw(rt, "labelled") {
					nse.NetworkServiceLabels = map[string]*api.NetworkServiceLabels{"s1": {Labels: map[string]string{"k": "v"}}}
				}
				model[nse.Name], last[nse.Name] = nse, nse
				put(t, stores.Endpoints, nse)
			},
			"remove": func(rt *rapid.T) {
				n := name.Draw(rt, "name")
				delete(model, n)
				remove(t, stores.Endpoints, n)
			},
			"watch": func(rt *rapid.T) {
				template := rapid.SampledFrom(templates).Draw(rt, "template")
				f := follower{watchEndpoints(t, stores.Endpoints, template), template}
				f.next()
				if d := diffEndpoints(matching(template), f.state); d != "" {
					rt.Fatalf("snapshot of %v (-want +got):\n%s", template, d)
				}
				followers = append(followers, f)
			},
			"catch up": func(*rapid.T) {
				marks++
				marker := &api.NetworkServiceEndpoint{ // matches every template
					Name: "e1", Url: ":7", NetworkServiceNames: []string{"s1", "s2"}, NetworkServiceLabels: templates[5].NetworkServiceLabels,
					InitialRegistrationTime: &timestamppb.Timestamp{Seconds: marks},
				}
				model["e1"], last["e1"] = marker, marker
				put(t, stores.Endpoints, marker)
				for _, f := range followers {
					f.until("the marker", func() bool { return proto.Equal(f.state["e1"], marker) })
					for n, v := range f.state {
						if model[n] == nil && query.Match(f.template, last[n]) {
							rt.Fatalf("watcher of %v believes in %v", f.template, v)
						}
					}
					for n, v := range matching(f.template) {
						if d := diff(v, f.state[n]); !proto.Equal(v, f.state[n]) {
							rt.Fatalf("watcher of %v (-want +got):\n%s", f.template, d)
						}
					}
				}
			},
			"": func(rt *rapid.T) {
				for _, template := range templates {
					if d := diffEndpoints(matching(template), found(t, stores.Endpoints, template)); d != "" {
						rt.Fatalf("Find(%v) (-want +got):\n%s", template, d)
					}
				}
			},
		}
		if s.Durable {
			actions["restart"] = func(*rapid.T) {
				for _, f := range followers {
					f.w.Close()
				}
				followers = nil
				stores.close(t)
				stores = s.open(t, state)
			}
		}
		rt.Repeat(actions)
	})
}

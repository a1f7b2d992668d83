// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	api "github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/sdk/nserr"
)

// unregistered keeps parts from registering with anybody, until the result is called.
func (m *Mesh) unregistered(names ...string) (end func()) {
	m.Network.SetFate(func(c Call) Fate {
		for _, name := range names {
			if c.Method == "Register" && c.From == name {
				return Refuse
			}
		}
		return Deliver
	})
	return func() { m.Network.SetFate(nil) }
}

// A manager that has just started knows that it does not know yet: it waits for the
// endpoints and forwarders of its node to register again, and does not say that they
// are gone.
func TestYoungManager(t *testing.T) {
	for _, tt := range []struct {
		name    string
		late    string // who registers late
		across  bool
		restart func(r *rig)
	}{
		{"endpoint, far manager and forwarder restarted", "db-b", true, func(r *rig) {
			r.b.Forwarder().Stop()
			r.b.StopManager()
			r.b.StartManager()
			r.b.StartForwarder("forwarder-b", map[string]string{"p2p": "true"})
		}},
		{"far forwarder", "forwarder-b", true, func(r *rig) { r.b.StopManager(); r.b.StartManager() }},
		{"endpoint of the own node", "db-a", false, func(r *rig) {
			r.a.Forwarder().Stop()
			r.a.StopManager()
			r.a.StartManager()
			r.a.StartForwarder("forwarder-a", map[string]string{"p2p": "true"})
		}},
		{"own forwarder", "forwarder-a", false, func(r *rig) { r.a.StopManager(); r.a.StartManager() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				r := &rig{Mesh: m, a: m.Node("a")}
				if r.b = r.a; tt.across {
					r.b = m.Node("b")
				}
				r.e = r.b.Serve(Service{Name: "db"})
				web := m.Raw("web")
				req := web.Message("db")
				got, err := web.Request(r.a.ManagerURL(), req)
				if err != nil {
					t.Fatal(err)
				}
				Settle()
				steps := r.steps()
				ready := m.unregistered(tt.late)
				tt.restart(r)
				done := make(chan struct{})
				var again *networkservice.Connection
				start := time.Now()
				go func() {
					defer close(done)
					again, err = web.Request(r.a.ManagerURL(), Again(req, got))
				}()
				Pass(time.Second)
				ready()
				<-done
				if err != nil {
					t.Fatalf("after %v: %v", time.Since(start), err)
				}
				if took := time.Since(start); took > 3*time.Second {
					t.Errorf("took %v", took)
				}
				if diff := cmp.Diff(got.GetMechanism().GetParameters(), again.GetMechanism().GetParameters()); diff != "" || r.steps() != steps {
					t.Errorf("%d steps, the wire has changed:\n%s", r.steps()-steps, diff)
				}
				if err := web.Close(r.a.ManagerURL(), again); err != nil {
					t.Error(err)
				}
				m.CheckEmpty()
			})
		})
	}
}

// An endpoint that does not come back is gone, when the manager is old enough to
// tell; what never was there is not waited for.
func TestYoungManagerDoesNotWaitForEver(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		e := a.Serve(Service{Name: "db"})
		a.Forwarder().Stop()
		a.StopManager()
		e.Vanish()
		a.StartManager()
		a.StartForwarder("forwarder-a", map[string]string{"p2p": "true"})
		for _, tt := range []struct {
			endpoint, service string
			want              *nserr.Reason
			most              time.Duration
		}{
			{"", "nothing", nserr.UnknownService, 0},
			{"nobody", "db", nserr.UnknownEndpoint, 0},
			{"db-a", "db", nserr.UnknownEndpoint, 5 * time.Second},
			{"db-a", "db", nserr.UnknownEndpoint, 0}, // it is not young any more
			{"", "db", nserr.NoEndpoint, 0},
		} {
			web := m.Raw("web")
			req := web.Message(tt.service)
			req.Connection.NetworkServiceEndpointName = tt.endpoint
			start := time.Now()
			_, err := web.Request(a.ManagerURL(), req)
			if !errors.Is(err, tt.want) {
				t.Errorf("%s %s: %v, want %s", tt.service, tt.endpoint, err, tt.want.Code)
			}
			if took := time.Since(start); took > tt.most || tt.most > 0 && took == 0 {
				t.Errorf("%s %s: took %v, want up to %v", tt.service, tt.endpoint, took, tt.most)
			}
		}
		m.CheckEmpty()
	})
}

// Without the registry nobody can tell that a service or an endpoint does not exist.
func TestYoungManagerWithoutRegistry(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		a.Serve(Service{Name: "db"})
		a.StopManager()
		m.StopRegistry()
		a.StartManager()
		Pass(10 * time.Second) // the forwarder has registered
		web := m.Raw("web")
		if _, err := web.Request(a.ManagerURL(), web.Message("db")); !errors.Is(err, nserr.PeerDown) {
			t.Errorf("%v, want %s", err, nserr.PeerDown.Code)
		}
		// Whoever changes or looks for something hears whose silence it is.
		s := m.Stranger("operator")
		_, err := api.NewNetworkServiceRegistryClient(s.Dial(a.ManagerURL())).Register(t.Context(), &api.NetworkService{Name: "new"})
		if !errors.Is(err, nserr.PeerDown) || !strings.Contains(err.Error(), "the domain's registry does not answer") {
			t.Errorf("register: %v", err)
		}
		stream, err := api.NewNetworkServiceEndpointRegistryClient(s.Dial(a.ManagerURL())).Find(t.Context(),
			&api.NetworkServiceEndpointQuery{NetworkServiceEndpoint: &api.NetworkServiceEndpoint{Name: "nobody"}})
		if err == nil {
			_, err = stream.Recv()
		}
		if !errors.Is(err, nserr.PeerDown) || !strings.Contains(err.Error(), "the domain's registry does not answer") {
			t.Errorf("find: %v", err)
		}
		m.StartRegistry()
	})
}

// A Request waits for the forwarder of its node that has died, as long as one takes to
// be started again, unless there is another one.
func TestRequestWaitsForForwarder(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		a.Serve(Service{Name: "db"})
		web := m.Raw("web")
		req := web.Message("db")
		for _, tt := range []struct {
			name  string
			after time.Duration // until it is there again
			took  time.Duration
			want  *nserr.Reason
		}{
			{"is there", 0, 0, nil},
			{"is back in time", 3 * time.Second, 3 * time.Second, nil},
			{"is back too late", 5 * time.Second, 4 * time.Second, nserr.ForwardersFailed},
		} {
			if tt.after > 0 {
				a.Forwarder().Stop()
			}
			start, done := time.Now(), make(chan struct{})
			var got *networkservice.Connection
			var err error
			var took time.Duration
			go func() {
				defer close(done)
				got, err = web.Request(a.ManagerURL(), req)
				took = time.Since(start)
			}()
			if tt.after > 0 {
				Pass(tt.after)
				a.StartForwarder("forwarder-a", map[string]string{"p2p": "true"})
			}
			<-done
			if took < tt.took || took > tt.took+100*time.Millisecond || tt.want == nil && err != nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%s: took %v, %v", tt.name, took, err)
			}
			if err == nil {
				if err := web.Close(a.ManagerURL(), got); err != nil {
					t.Error(err)
				}
			}
		}
		got, err := web.Request(a.ManagerURL(), req)
		if err != nil {
			t.Fatal(err)
		}
		a.StartForwarder("forwarder-2", map[string]string{"p2p": "true"})
		a.Forwarder().Stop()
		start := time.Now()
		if _, err := web.Request(a.ManagerURL(), Again(req, got)); err == nil || time.Since(start) > 0 {
			t.Errorf("with another forwarder a refresh took %v: %v", time.Since(start), err)
		}
	})
}

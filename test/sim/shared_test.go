// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/proto"
)

// What a manager and a forwarder of one process say to each other they share, so neither
// changes it: not while a wire is made, refreshed and healed, and not when it is closed.
func TestSharedIsNotChanged(t *testing.T) {
	for _, payload := range []string{"IP", "ETHERNET"} {
		for across, name := range map[bool]string{false: "one node", true: "two nodes"} {
			t.Run(payload+", "+name, func(t *testing.T) {
				Run(t, func(t *testing.T, m *Mesh) {
					var shared sharedParts
					m.Network.SetShared(shared.note)
					r := newRig(m, payload, across)
					prefix := netip.MustParsePrefix("10.96.0.0/12")
					r.a.Excluded = func() []netip.Prefix { return []netip.Prefix{prefix} }
					Pass(5 * time.Minute)
					r.a.Forwarder().Restart()
					Pass(5 * time.Minute)
					r.e.Stop() // and the wire to another endpoint
					at := r.a
					if across {
						at = r.b
					}
					at.Serve(Service{Name: "db", Endpoint: "other", Payload: payload, CIDR: "10.61.0.0/24"})
					Pass(5 * time.Minute)
					if got := r.w.Connection().GetNetworkServiceEndpointName(); !Up(r.w) || got != "other" {
						t.Errorf("up: %v, at endpoint %q", Up(r.w), got)
					}
					r.c.Close(r.w)
					Settle()
					shared.check(t)
				})
			})
		}
	}
}

// sharedParts are what messages have referred to, and what that was like then.
type sharedParts struct {
	mu    sync.Mutex
	parts []proto.Message // guarded by mu
	then  []proto.Message // guarded by mu
}

func (s *sharedParts) note(m proto.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := m.(*networkservice.NetworkServiceRequest); ok {
		s.addLocked(&networkservice.NetworkServiceRequest{MechanismPreferences: r.GetMechanismPreferences()})
		m = r.GetConnection()
	}
	c, ok := m.(*networkservice.Connection)
	if !ok {
		return
	}
	if c.GetMechanism() != nil {
		s.addLocked(c.GetMechanism())
	}
	if c.GetContext() != nil {
		s.addLocked(c.GetContext())
	}
	for _, segment := range c.GetPath().GetPathSegments() {
		s.addLocked(segment)
	}
	// The map and the slice are those of c: what is put into them is seen here.
	s.addLocked(&networkservice.Connection{Labels: c.GetLabels(), Path: &networkservice.Path{PathSegments: c.GetPath().GetPathSegments()}})
}

func (s *sharedParts) addLocked(m proto.Message) {
	s.parts, s.then = append(s.parts, m), append(s.then, proto.Clone(m))
}

func (s *sharedParts) check(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.parts) < 100 {
		t.Errorf("%d things were shared", len(s.parts))
	}
	for i, m := range s.parts {
		if !proto.Equal(m, s.then[i]) {
			t.Errorf("what was shared has changed:\n%v\nwas\n%v", m, s.then[i])
		}
	}
}

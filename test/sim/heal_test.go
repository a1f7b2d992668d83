// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"testing"
	"time"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
)

// A wire that nobody could refresh or replace for all of its life has an end, and
// leaves nothing. A new one takes its place as soon as that can be had.
func TestWireThatExpires(t *testing.T) {
	for _, part := range []struct {
		name     string
		down, up func(*rig)
		within   time.Duration
	}{
		{"manager", func(r *rig) { r.a.StopManager() }, func(r *rig) { r.a.StartManager() }, 5 * time.Second},
		{"forwarder", func(r *rig) { r.a.Forwarder().Stop() }, func(r *rig) { r.a.StartForwarder("forwarder-a", map[string]string{"p2p": "true"}) }, 31 * time.Second},
		{"endpoint", func(r *rig) { r.e.Vanish() }, func(r *rig) { r.e = r.b.Serve(Service{Name: "db", CIDR: "10.60.0.0/24"}) }, 100 * time.Millisecond},
	} {
		t.Run(part.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				r := newRig(m, "IP", true)
				part.down(r)
				Pass(TokenLifetime + time.Minute)
				if n := len(r.w.Connection().GetPath().GetPathSegments()); Up(r.w) || n != 1 {
					t.Errorf("still up, or a path: %v", r.w.Connection())
				}
				part.up(r)
				came := time.Now()
				for !Up(r.w) {
					_, changed, _ := r.w.Status()
					select {
					case <-changed:
					case <-time.After(time.Minute):
						t.Fatal("no new wire")
					}
				}
				if took := time.Since(came); took > part.within {
					t.Errorf("a new wire after %v", took)
				}
				Settle()
				if r.w.Interface() != "nsm-1" || r.w.Connection().GetNetworkServiceEndpointName() != "db-b" {
					t.Errorf("the new wire is %v", r.w.Connection())
				}
				r.c.Close(r.w)
				Pass(TokenLifetime) // of what was left of the old wire
				m.CheckEmpty()
			})
		})
	}
}

// An operator sees how often it was tried to heal a wire that is down, and why that
// fails; of one that is up again nothing is left of that.
func TestAttemptsAreShown(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", true)
		show := func() *adminv1.WireSummary {
			t.Helper()
			stream, err := m.Admin(t, r.c.part, r.a).Wires(t.Context(), &adminv1.WiresRequest{})
			if err != nil {
				t.Fatal(err)
			}
			event, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			return event.GetWire()
		}
		if w := show(); w.GetAttempts() != 0 || w.GetLastError() != "" {
			t.Errorf("a wire that is up: %v", w)
		}
		r.e.Stop()
		Pass(2 * time.Minute)
		tries, _, err := r.w.Status()
		w := show()
		if n := int(w.GetAttempts()); n < tries-1 || n == 0 || w.GetLastError() != nserr.From(err).Reason.Code || w.GetState() != adminv1.WireState_WIRE_STATE_DOWN {
			t.Errorf("shown are %v, the client has tried %d times: %v", w, tries, err)
		}
		r.b.Serve(Service{Name: "db", CIDR: "10.61.0.0/24"})
		Pass(time.Second)
		if w := show(); w.GetAttempts() != 0 || w.GetLastError() != "" || w.GetState() != adminv1.WireState_WIRE_STATE_UP {
			t.Errorf("a wire that is up again: %v", w)
		}
		r.c.Close(r.w)
		m.CheckEmpty()
	})
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"testing"
	"time"
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

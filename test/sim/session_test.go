// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"testing"
	"time"

	"github.com/openvwire/nsm/sdk/mechanism"
)

// A wire that has to go another way, and finds only the one that it has, begins there
// with a new key if its WireGuard session has not been renewed in time: as when the
// node's clock was set back, and the peer takes what it says for an old recording. A
// session that may be alive is left alone.
func TestOutlivedSession(t *testing.T) {
	for _, tt := range []struct {
		name   string
		age    time.Duration // of the session; 0: there has never been one
		newKey bool
	}{
		{name: "never one"},
		{name: "young", age: time.Minute},
		{name: "about to be renewed", age: 179 * time.Second},
		{name: "outlived", age: 3*time.Minute + time.Second, newKey: true},
		{name: "from the future", age: -time.Hour, newKey: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				r := newRig(m, "IP", true)
				before := r.a.Kernel.WireGuards()
				if tt.age != 0 {
					r.a.Kernel.SetHandshake(time.Now().Add(-tt.age))
				}
				askedToMove(r.e)
				Pass(time.Second)
				near, far := r.a.Kernel.WireGuards(), r.b.Kernel.WireGuards()
				if len(before) != 1 || len(near) != 1 || len(far) != 1 {
					t.Fatalf("%d, %d and %d devices", len(before), len(near), len(far))
				}
				if changed := near[0].PrivateKey != before[0].PrivateKey; changed != tt.newKey {
					t.Errorf("new key: %v, want %v", changed, tt.newKey)
				}
				if near[0].Port != before[0].Port {
					t.Errorf("port %d, was %d", near[0].Port, before[0].Port)
				}
				if mechanism.Key(far[0].PeerKey) != mechanism.Key(near[0].PrivateKey).Public() {
					t.Error("the far end has another key of its peer")
				}
				if !Up(r.w) {
					t.Errorf("wire is %v", r.w.Connection().GetState())
				}
				r.c.Close(r.w)
				m.CheckEmpty()
			})
		})
	}
}

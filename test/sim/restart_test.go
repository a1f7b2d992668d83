// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/openvwire/nsm/sdk/client"
)

// rig is a mesh with one wire of some shape.
type rig struct {
	*Mesh
	a, b *Node // b is a on one node
	e    *Endpoint
	c    *Client
	w    *client.Wire
}

func newRig(m *Mesh, payload string, across bool) *rig {
	r := &rig{Mesh: m, a: m.Node("a")}
	if r.b = r.a; across {
		r.b = m.Node("b")
	}
	r.e = r.b.Serve(Service{Name: "db", Payload: payload, CIDR: "10.60.0.0/24,fd00:60::/64"})
	r.c = r.a.Client("web")
	r.w = r.c.Connect("kernel://db/nsm-1")
	return r
}

// work is what all kernels were asked to change.
func (r *rig) steps() int64 { return r.a.Kernel.Steps.Load() + r.b.Kernel.Steps.Load() }

// Any part may restart and know nothing any more: the wire is the same to the
// last parameter afterwards, and no kernel was touched. A restart takes no time,
// or so long that the client asks for another path.
func TestRestarts(t *testing.T) {
	parts := []struct {
		name  string
		down  func(*rig)
		up    func(*rig)
		apart bool // makes a difference across nodes only

		// gone parts look like a dead path to a client that does not know whether
		// packets flow. What it has built anew in the meantime is the same again.
		gone bool
	}{
		{name: "registry", down: func(r *rig) { r.StopRegistry() }, up: func(r *rig) { r.StartRegistry() }},
		{name: "manager", down: func(r *rig) { r.a.StopManager() }, up: func(r *rig) { r.a.StartManager() }},
		{name: "forwarder", down: func(r *rig) { r.a.Forwarder().Stop() }, up: func(r *rig) { r.a.StartForwarder("forwarder-a", map[string]string{"p2p": "true"}) }},
		{name: "far manager", apart: true, gone: true, down: func(r *rig) { r.b.StopManager() }, up: func(r *rig) { r.b.StartManager() }},
		{name: "far forwarder", apart: true, gone: true, down: func(r *rig) { r.b.Forwarder().Stop() }, up: func(r *rig) { r.b.StartForwarder("forwarder-b", map[string]string{"p2p": "true"}) }},
		{name: "endpoint", gone: true, down: func(r *rig) { r.e.Vanish() }, up: func(r *rig) {
			r.e = r.b.Serve(Service{Name: "db", Payload: r.e.service.Payload, CIDR: "10.60.0.0/24,fd00:60::/64"})
		}},
	}
	for _, shape := range shapes {
		if shape.payload == "ETHERNET" && !shape.across {
			continue // as IP, but for the kernel
		}
		for _, part := range parts {
			if part.apart && !shape.across {
				continue
			}
			for _, away := range []time.Duration{0, 20 * time.Second} {
				t.Run(fmt.Sprintf("%s/%s away for %v", shape.name, part.name, away), func(t *testing.T) {
					Run(t, func(t *testing.T, m *Mesh) {
						m.Userspace = shape.tunnel
						r := newRig(m, shape.payload, shape.across)
						before, steps := View(r.w), r.steps()
						part.down(r)
						Pass(away)
						part.up(r)
						Pass(5 * time.Minute)
						if diff := cmp.Diff(before, View(r.w)); diff != "" {
							t.Errorf("the wire has changed (-before +after):\n%s", diff)
						}
						if now := r.steps(); now != steps && !(part.gone && away > 0) {
							t.Errorf("the kernels were changed in %d steps", now-steps)
						}
						if tries, _, err := r.w.Status(); err != nil || tries != 0 || !Up(r.w) {
							t.Errorf("the wire is not up: %v, %d tries", err, tries)
						}
						r.c.Close(r.w)
						m.CheckEmpty()
					})
				})
			}
		}
	}
}

// Identities rotate while a wire lives: other keys, the same names.
func TestRotation(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", true)
		before, steps := View(r.w), r.steps()
		for _, p := range []*part{r.c.part, r.a.Manager.part, r.a.Forwarder().part, r.b.Manager.part, r.b.Forwarder().part, r.e.part, m.registry.part} {
			p.Rotate()
			Pass(3 * time.Minute)
			if tries, _, err := r.w.Status(); err != nil || tries != 0 || !Up(r.w) {
				t.Errorf("after the rotation of %s: %d tries, %v", p.name, tries, err)
			}
		}
		if diff := cmp.Diff(before, View(r.w)); diff != "" || r.steps() != steps {
			t.Errorf("the wire has changed in %d steps (-before +after):\n%s", r.steps()-steps, diff)
		}
		r.c.Close(r.w)
		m.CheckEmpty()
	})
}

// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/openvwire/nsm/forwarder/plan"
)

// reconciled has a forwarder compare its wires with the kernel until the test ends.
func (f *Forwarder) reconciled(t *testing.T, every time.Duration) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { f.KeepReconciled(ctx, every) })
	t.Cleanup(func() { cancel(); running.Wait() })
}

// deleteLink is `ip link del`.
func (n *Node) deleteLink(space, name string) {
	n.mesh.t.Helper()
	if err := n.Kernel.Execute([]plan.Step{plan.DelLink{Link: plan.Link{NetNS: n.mesh.SpaceKey(space), Name: name}}}); err != nil {
		n.mesh.t.Fatal(err)
	}
}

// desired is what a node's forwarder wants of its only wire.
func (n *Node) desired(t *testing.T) plan.Wire {
	t.Helper()
	all := n.Forwarder().Monitor().Visible(ID("observer"))
	if len(all) != 1 {
		t.Fatalf("%d wires", len(all))
	}
	w, ok, err := n.Forwarder().Desired(t.Context(), all[0].Conn().GetId())
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	return w
}

// leftover is a wire in the kernel that bears a forwarder's name, of which it knows
// nothing.
func (n *Node) leftover(t *testing.T, id, space string) plan.Wire {
	t.Helper()
	w := plan.Wire{
		ID: id, Owner: "forwarder-" + n.Name, Kind: plan.KindVXLAN, Payload: plan.Ethernet,
		VXLAN: &plan.VXLAN{VNI: 4711, Local: n.TunnelIP, Remote: netip.MustParseAddr("192.0.2.99"), Port: 4789},
		Ends:  []plan.End{{NetNS: n.mesh.SpaceKey(space), Name: "left-1", Side: plan.Client}},
	}
	if _, err := n.Kernel.Apply(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	return w
}

// What somebody else has damaged is repaired, and what it was is said once.
func TestReconcile(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				m.Userspace = shape.tunnel
				r := newRig(m, shape.payload, shape.across)
				r.a.Forwarder().reconciled(t, 20*time.Second)
				links := r.a.Kernel.Links()
				for n := range 3 {
					r.a.deleteLink("web", "nsm-1")
					Pass(time.Minute)
					if now := r.a.Kernel.Links(); now != links {
						t.Errorf("%d links, want %d", now, links)
					}
					if said := m.logged("WARN", "wire repaired"); said != n+1 {
						t.Errorf("said %d times, want %d", said, n+1)
					}
				}
				if m.logged("WARN", "link add")+m.logged("WARN", "# wireguard-holder: make") == 0 {
					t.Error("not said what was missing")
				}
				r.c.Close(r.w)
				m.CheckEmpty()
			})
		})
	}
}

// A round in which nothing is wrong looks at all wires at once, and works on none.
func TestLooksAreShared(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		const wires, rounds = 8, 10
		a := m.Node("a")
		a.Serve(Service{Name: "db"})
		web := a.Client("web")
		for i := range wires {
			web.Connect(fmt.Sprint("kernel://db/nsm-", i))
		}
		before := a.Kernel.Work()
		a.Forwarder().reconciled(t, time.Second)
		Pass(rounds * time.Second)
		// A look, and what the MTU of the underlay is.
		if asked := a.Kernel.Work() - before; asked < rounds || asked > 2*(rounds+1) {
			t.Errorf("the kernel was asked %d times in %d rounds", asked, rounds)
		}
		a.deleteLink("web", "nsm-3")
		Pass(time.Second)
		if now := a.Kernel.Links(); now != 2*wires {
			t.Errorf("%d links, want %d", now, 2*wires)
		}
	})
}

// Who wants another path hears no packets. If it gets the same again what stands is
// compared with the kernel at once, not only when its turn of being looked at comes.
func TestReselectRepairs(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				m.Userspace = shape.tunnel
				r := newRig(m, shape.payload, shape.across)
				links := r.a.Kernel.Links()
				r.a.deleteLink("web", "nsm-1")
				askedToMove(r.e)
				Pass(time.Second)
				if now := r.a.Kernel.Links(); now != links {
					t.Errorf("%d links, want %d", now, links)
				}
			})
		})
	}
}

// Damage that comes back at once, and one that cannot be repaired, are not said with
// every round.
func TestReconcileSaysItOnce(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", false)
		r.a.Forwarder().reconciled(t, 20*time.Second)
		for range 30 {
			r.a.deleteLink("web", "nsm-1")
			Pass(20 * time.Second)
		}
		if n := m.logged("WARN", "wire repaired"); n < 1 || n > 3 {
			t.Errorf("said %d times", n)
		}
		Pass(time.Minute)
		r.a.deleteLink("web", "nsm-1")
		r.a.Kernel.AddLink(m.SpaceKey("web"), "nsm-1") // somebody else's
		Pass(10 * time.Minute)
		if n := m.logged("WARN", "wire not repaired"); n != 1 {
			t.Errorf("said %d times", n)
		}
		r.a.Kernel.RemoveLink(m.SpaceKey("web"), "nsm-1")
		Pass(time.Minute)
		if _, err := r.a.Kernel.Observe(t.Context(), r.a.desired(t)); err != nil || r.a.Kernel.Links() != 2 {
			t.Errorf("%d links, %v", r.a.Kernel.Links(), err)
		}
		r.c.Close(r.w)
		m.CheckEmpty()
	})
}

// A Request that hangs does not keep other wires from being repaired.
func TestReconcileIsNotHeldUp(t *testing.T) {
	for name, repair := range map[string]func(context.Context, *Forwarder){
		"at once":      func(ctx context.Context, f *Forwarder) { f.Reconcile(ctx) },
		"now and then": func(ctx context.Context, f *Forwarder) { f.KeepReconciled(ctx, 500*time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				a := m.Node("a")
				a.Serve(Service{Name: "db"})
				stuck := a.Serve(Service{Name: "stuck", CIDR: "10.61.0.0/24"})
				web := a.Client("web")
				web.Connect("kernel://db/nsm-1")
				m.silent(LoseRequest, stuck.url)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				var trying sync.WaitGroup
				var others []*Client // one of which comes before the wire to be repaired
				for i := range 5 {
					others = append(others, a.Client(fmt.Sprint("other-", i)))
					m.Space(others[i].name)
				}
				for _, other := range others {
					trying.Go(func() { _, _ = other.Try(ctx, "kernel://stuck/nsm-1") })
				}
				Settle()
				a.deleteLink("web", "nsm-1")
				trying.Go(func() { repair(ctx, a.Forwarder()) })
				Pass(time.Second)
				if a.Kernel.Links() != 2 {
					t.Error("not repaired while the other Request hangs")
				}
				trying.Wait()
				m.silent(Deliver)
			})
		})
	}
}

// Links that bear a forwarder's name and belong to no wire of its are removed, once
// the time is over in which they may be claimed.
func TestPrune(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		r := newRig(m, "IP", true)
		f := r.a.Forwarder()
		f.reconciled(t, 20*time.Second)
		r.a.leftover(t, "nobody", "left")
		live := r.a.desired(t)
		Pass(TokenLifetime - time.Minute)
		if n := r.a.Kernel.Links(); n != 2 {
			t.Errorf("%d links while it may be claimed", n)
		}
		Pass(10 * time.Minute)
		if n := r.a.Kernel.Links(); n != 1 {
			t.Errorf("%d links", n)
		}
		// Another end of a wire that lives.
		stray := r.a.leftover(t, live.ID, "left")
		Pass(10 * time.Minute)
		if o, err := r.a.Kernel.Observe(t.Context(), stray); err != nil || o.Ends[0].Found {
			t.Errorf("an end of a live wire is left where it has none: %v", err)
		}
		if n := m.logged("WARN", stray.Tag(plan.Client).String()); n != 1 {
			t.Errorf("said %d times", n)
		}
		// One of another forwarder, and one of nobody.
		foreign := r.a.leftover(t, "nobody", "left")
		foreign.Owner, foreign.ID = "forwarder-z", "z"
		foreign.Ends[0].Name, foreign.VXLAN = "z-1", &plan.VXLAN{VNI: 4712, Local: r.a.TunnelIP, Remote: foreign.VXLAN.Remote, Port: 4789}
		if _, err := r.a.Kernel.Apply(t.Context(), foreign); err != nil {
			t.Fatal(err)
		}
		r.a.Kernel.AddLink(m.SpaceKey("left"), "eth0")
		before := View(r.w)
		Pass(10 * time.Minute)
		if n := r.a.Kernel.Links(); n != 3 {
			t.Errorf("%d links, want those of the wire and of strangers", n)
		}
		if !Up(r.w) || before.Src != View(r.w).Src || f.Usage().Wires != 1 {
			t.Errorf("the wire has suffered: %v", r.w.Connection())
		}
		r.c.Close(r.w)
	})
}

// What a Request is about to claim is not pruned under its hands.
func TestPruneLeavesWhatIsWorkedOn(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		e := a.Serve(Service{Name: "db"})
		web := a.Client("web")
		w := web.Connect("kernel://db/nsm-1")
		Pass(TokenLifetime + time.Minute)
		m.silent(LoseRequest, e.url)
		a.leftover(t, a.desired(t).ID, "left")
		m.Network.Forget()
		for m.Network.CallsTo(e.url, "Request") == 0 {
			Pass(time.Second)
		}
		a.Forwarder().Prune(t.Context())
		if n := a.Kernel.Links(); n != 3 {
			t.Errorf("%d links during a Request", n)
		}
		m.silent(Deliver)
		Pass(time.Minute)
		a.Forwarder().Prune(t.Context())
		if n := a.Kernel.Links(); n != 2 {
			t.Errorf("%d links after it", n)
		}
		web.Close(w)
		m.CheckEmpty()
	})
}

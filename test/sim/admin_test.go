// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/forwarder/plan"
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// admin is a manager's admin API, seen by somebody. Every answer is checked for
// what none may hold.
type admin struct {
	adminv1.AdminClient
	t *testing.T
}

// Admin returns the admin API of a node's manager for a part of the mesh.
func (m *Mesh) Admin(t *testing.T, p *part, n *Node) admin {
	return admin{adminv1.NewAdminClient(&inspected{p.dial(n.ManagerURL()), m, t}), t}
}

// As returns the admin API for somebody who has no part in the mesh.
func (m *Mesh) As(t *testing.T, name string, n *Node) admin {
	return m.Admin(t, m.Stranger(name).part, n)
}

// inspected fails the test when an answer holds a secret.
type inspected struct {
	grpc.ClientConnInterface
	mesh *Mesh
	t    *testing.T
}

func (i *inspected) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	err := i.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	i.inspect(reply.(proto.Message))
	return err
}

func (i *inspected) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := i.ClientConnInterface.NewStream(ctx, desc, method, opts...)
	return &inspectedStream{s, i}, err
}

type inspectedStream struct {
	grpc.ClientStream
	by *inspected
}

func (s *inspectedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	s.by.inspect(m.(proto.Message))
	return err
}

// inspect looks for tokens, which all begin alike, and for the private keys of
// all WireGuard devices, in whatever form.
func (i *inspected) inspect(m proto.Message) {
	i.t.Helper()
	text, err := protojson.Marshal(m)
	if err != nil {
		i.t.Fatal(err)
	}
	wire, err := proto.Marshal(m)
	if err != nil {
		i.t.Fatal(err)
	}
	secrets := []string{base64.RawURLEncoding.EncodeToString([]byte(`{"alg"`))[:8]}
	for _, key := range i.mesh.privateKeys() {
		secrets = append(secrets, string(key[:]), hex.EncodeToString(key[:]), base64.StdEncoding.EncodeToString(key[:])[:40])
	}
	for _, s := range secrets {
		if bytes.Contains(text, []byte(s)) || bytes.Contains(wire, []byte(s)) {
			i.t.Errorf("%T holds a secret: %s", m, text)
		}
	}
}

// privateKeys returns those of all wires that forwarders have made.
func (m *Mesh) privateKeys() (keys [][32]byte) {
	for _, n := range m.nodes {
		for _, f := range n.forwarders {
			for _, v := range f.Monitor().Visible(ID("observer")) {
				w, ok, err := f.Desired(context.Background(), v.Conn().GetId())
				if err == nil && ok && w.WireGuard != nil {
					keys = append(keys, w.WireGuard.PrivateKey)
				}
				if err == nil && ok && w.Tunnel != nil {
					keys = append(keys, w.Tunnel.Own.PrivateKey)
				}
			}
		}
	}
	return keys
}

// all reads a list to its end.
func all[E any](t *testing.T, s grpc.ServerStreamingClient[E], err error) (events []*E) {
	t.Helper()
	for err == nil {
		var e *E
		if e, err = s.Recv(); err == nil {
			events = append(events, e)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return events
}

func (a admin) wires(r *adminv1.WiresRequest) (wires []*adminv1.WireSummary) {
	a.t.Helper()
	s, err := a.Wires(a.t.Context(), r)
	for _, e := range all(a.t, s, err) {
		wires = append(wires, e.GetWire())
	}
	return wires
}

func (a admin) describe(id string) *adminv1.WireDescription {
	a.t.Helper()
	d, err := a.DescribeWire(a.t.Context(), &adminv1.DescribeWireRequest{Id: id})
	if err != nil {
		a.t.Fatal(err)
	}
	return d
}

// A caller sees the wires that it is part of, an observer all, others none.
func TestAdminShowsWiresToThoseOnThem(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		a.Serve(Service{Name: "db"})
		alice, bob := a.Client("alice"), a.Client("bob")
		wire := alice.Connect("kernel://db/nsm-1?app=web&tier=1")
		bob.Connect("kernel://db/nsm-1?app=web&tier=2")

		for _, tt := range []struct {
			who  admin
			want []string // clients
		}{
			{m.Admin(t, alice.part, a), []string{"alice"}},
			{m.Admin(t, bob.part, a), []string{"bob"}},
			{m.As(t, "observer", a), []string{"alice", "bob"}},
			{m.As(t, "stranger", a), nil},
		} {
			var got []string
			for _, w := range tt.who.wires(&adminv1.WiresRequest{}) {
				got = append(got, w.GetClient().GetName())
			}
			slices.Sort(got)
			if !slices.Equal(got, tt.want) {
				t.Errorf("sees wires of %v, want %v", got, tt.want)
			}
			s, err := tt.who.Nodes(t.Context(), &adminv1.NodesRequest{})
			if n := all(t, s, err)[0].GetNode().GetWires(); int(n) != len(tt.want) {
				t.Errorf("the node says %d wires to who sees %d", n, len(tt.want))
			}
			_, err = tt.who.DescribeWire(t.Context(), &adminv1.DescribeWireRequest{Id: wire.ID()})
			if mine := slices.Contains(tt.want, "alice"); mine != (err == nil) || !mine && !errors.Is(err, nserr.UnknownWire) {
				t.Errorf("describe as one who sees %v: %v", tt.want, err)
			}
		}

		// The forwarder tells nobody else, either.
		f := adminv1.NewAdminClient(m.Stranger("curious").Dial(a.Forwarder().url))
		if _, err := f.DescribeWire(t.Context(), &adminv1.DescribeWireRequest{Id: wire.ID()}); !errors.Is(err, nserr.UnknownWire) {
			t.Errorf("the forwarder tells a stranger: %v", err)
		}

		// Who cannot say who it is gets nothing.
		nobody := adminv1.NewAdminClient(a.Manager.local.Dial(rpc.LocalCaller{}))
		if _, err := nobody.Version(t.Context(), &adminv1.VersionRequest{}); !errors.Is(err, nserr.NoIdentity) {
			t.Errorf("without identity: %v", err)
		}

		observer := m.As(t, "observer", a)
		for _, tt := range []struct {
			req  *adminv1.WiresRequest
			want int
		}{
			{&adminv1.WiresRequest{Filter: &adminv1.Filter{Labels: map[string]string{"app": "web"}}}, 2},
			{&adminv1.WiresRequest{Filter: &adminv1.Filter{Labels: map[string]string{"app": "web", "tier": "2"}}}, 1},
			{&adminv1.WiresRequest{Filter: &adminv1.Filter{Labels: map[string]string{"app": ""}}}, 0},
			{&adminv1.WiresRequest{Filter: &adminv1.Filter{Name: "alice"}}, 1}, // the beginning of its id
			{&adminv1.WiresRequest{Filter: &adminv1.Filter{Name: "alice", Labels: map[string]string{"tier": "2"}}}, 0},
			{&adminv1.WiresRequest{Service: "db"}, 2},
			{&adminv1.WiresRequest{Service: "dc"}, 0},
		} {
			if got := observer.wires(tt.req); len(got) != tt.want {
				t.Errorf("%v: %d wires, want %d", tt.req, len(got), tt.want)
			}
		}
		for _, id := range []string{"zz", "a-", "alice-9"} {
			s, err := observer.Wires(t.Context(), &adminv1.WiresRequest{Filter: &adminv1.Filter{Name: id}})
			if err == nil {
				_, err = s.Recv()
			}
			if !errors.Is(err, nserr.UnknownWire) {
				t.Errorf("wire %q: %v", id, err)
			}
		}
	})
}

// A wire across nodes is told hop by hop, by those whom it passes.
func TestAdminDescribesAcrossNodes(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				m.Userspace = shape.tunnel
				a := m.Node("a")
				at := a
				if shape.across {
					at = m.Node("b")
				}
				at.Serve(Service{Name: "db", Payload: shape.payload, CIDR: shape.cidr})
				c := a.Client("web")
				w := c.Connect("kernel://db/nsm-1?app=web")
				d := m.Admin(t, c.part, a).describe(w.ID()[:4])

				s := d.GetSummary()
				if s.GetId() != w.ID() || s.GetService() != "db" || s.GetPayload() != shape.payload || s.GetState() != adminv1.WireState_WIRE_STATE_UP {
					t.Errorf("summary %v", s)
				}
				if s.GetClient().GetName() != "web" || s.GetClient().GetNode() != "a" || s.GetClient().GetInterface() != "nsm-1" || s.GetClient().GetMechanism() != "KERNEL" {
					t.Errorf("client %v", s.GetClient())
				}
				if s.GetEndpoint().GetName() != "db-"+at.Name || s.GetEndpoint().GetNode() != at.Name || s.GetEndpoint().GetInterface() == "" {
					t.Errorf("endpoint %v", s.GetEndpoint())
				}
				if !s.GetEstablished().AsTime().Equal(time.Now()) || !s.GetExpires().AsTime().After(time.Now()) {
					t.Errorf("established %v, expires %v, now %v", s.GetEstablished().AsTime(), s.GetExpires().AsTime(), time.Now())
				}

				roles := []adminv1.Role{adminv1.Role_ROLE_CLIENT, adminv1.Role_ROLE_MANAGER, adminv1.Role_ROLE_FORWARDER}
				names := []string{"web", "manager-a", "forwarder-a"}
				if shape.across {
					roles = append(roles, adminv1.Role_ROLE_MANAGER, adminv1.Role_ROLE_FORWARDER)
					names = append(names, "manager-b", "forwarder-b")
				}
				roles, names = append(roles, adminv1.Role_ROLE_ENDPOINT), append(names, "db-"+at.Name)
				if len(d.GetHops()) != len(names) {
					t.Fatalf("hops %v", d.GetHops())
				}
				for i, h := range d.GetHops() {
					node := "a"
					if i > 2 {
						node = at.Name
					}
					daemon := i > 0 && i < len(names)-1
					if h.GetName() != names[i] || h.GetRole() != roles[i] || h.GetNode() != node || h.GetSpiffeId() != ID(names[i]) || h.GetVersion() != nil != daemon {
						t.Errorf("hop %d: %v", i, h)
					}
				}

				var legs []string
				for _, l := range d.GetLegs() {
					legs = append(legs, l.GetFrom()+" "+l.GetType()+" "+l.GetTo())
				}
				want := []string{"web KERNEL forwarder-a", "forwarder-a KERNEL db-a"}
				kernels := []string{"forwarder-a"}
				if shape.across {
					want = []string{"web KERNEL forwarder-a", "forwarder-a " + shape.shown + " forwarder-b", "forwarder-b KERNEL db-b"}
					kernels = append(kernels, "forwarder-b")
					if s.GetEndpoint().GetMechanism() != shape.shown {
						t.Errorf("endpoint's mechanism %q", s.GetEndpoint().GetMechanism())
					}
				}
				if !slices.Equal(legs, want) {
					t.Errorf("legs %q, want %q", legs, want)
				}
				encrypted := shape.across && shape.shown != "VXLAN"
				for i, k := range d.GetKernel() {
					if k.GetForwarder() != kernels[i] || k.GetNode() != strings.TrimPrefix(kernels[i], "forwarder-") || k.GetError() != "" ||
						len(k.GetPlan()) == 0 || len(k.GetDrift()) != 0 || len(k.GetLinks()) != 2/len(kernels) {
						t.Errorf("kernel of %s: %v", kernels[i], k)
					}
					if g := k.GetWireguard(); (g != nil) != encrypted || g != nil && (g.GetPublicKey() == "" || g.GetEndpoint() == "") {
						t.Errorf("WireGuard of %s: %v", kernels[i], g)
					}
				}
				if n := len(m.privateKeys()); encrypted && n != 2 {
					t.Errorf("%d private keys were looked for", n)
				}
				if len(d.GetKernel()) != len(kernels) || int(d.GetContext().GetMtu()) == 0 || len(d.GetContext().GetSrcAddresses()) == 0 {
					t.Errorf("%d kernels, context %v", len(d.GetKernel()), d.GetContext())
				}

				// The far side tells of its own part.
				if shape.across {
					d := m.As(t, "observer", at).describe(w.ID())
					if len(d.GetKernel()) != 1 || len(d.GetLegs()) != 2 || d.GetSummary().GetClient().GetNode() != "a" {
						t.Errorf("from the far side: %v", d)
					}
				}
			})
		})
	}
}

// What differs in the kernel shows, with what would repair it.
func TestAdminShowsDrift(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		a.Serve(Service{Name: "db"})
		c := a.Client("web")
		w := c.Connect("kernel://db/nsm-1")
		addr := netip.PrefixFrom(w.Addrs()[0], 32)
		link := plan.Link{NetNS: m.SpaceKey("web"), Name: "nsm-1"}
		if err := a.Kernel.Execute([]plan.Step{plan.DelAddr{Link: link, Addr: addr}}); err != nil {
			t.Fatal(err)
		}
		drift := m.Admin(t, c.part, a).describe(w.ID()).GetKernel()[0].GetDrift()
		if len(drift) == 0 || !strings.Contains(strings.Join(drift, "\n"), "address add "+addr.String()+" dev nsm-1") {
			t.Errorf("drift %q", drift)
		}
		a.Kernel.DeleteNamespace(link.NetNS)
		if k := m.Admin(t, c.part, a).describe(w.ID()).GetKernel()[0]; k.GetError() == "" && len(k.GetDrift()) == 0 {
			t.Errorf("the namespace is gone: %v", k)
		}
	})
}

// Whoever does not answer is shown as such, and hides nobody else.
func TestAdminDescribesWithoutThoseWhoAreSilent(t *testing.T) {
	for _, tt := range []struct {
		name    string
		from    string // whose question is lost
		kernels int    // that can tell
	}{{"far manager", "forwarder-a", 1}, {"forwarder", "manager-a", 0}} {
		t.Run(tt.name, func(t *testing.T) {
			Run(t, func(t *testing.T, m *Mesh) {
				a, b := m.Node("a"), m.Node("b")
				b.Serve(Service{Name: "db"})
				c := a.Client("web")
				w := c.Connect("kernel://db/nsm-1")
				for _, fate := range []Fate{Refuse, LoseRequest} {
					m.Network.SetFate(func(call Call) Fate {
						if call.From == tt.from && call.Method == "DescribeWire" {
							return fate
						}
						return Deliver
					})
					ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
					defer cancel()
					d, err := m.Admin(t, c.part, a).DescribeWire(ctx, &adminv1.DescribeWireRequest{Id: w.ID()})
					if err != nil {
						t.Fatal(err)
					}
					told := 0
					for _, k := range d.GetKernel() {
						if k.GetError() == "" {
							told++
						}
					}
					if told != tt.kernels || len(d.GetKernel()) != tt.kernels+1 || len(d.GetLegs()) == 0 || len(d.GetHops()) != 6 {
						t.Errorf("%d of %d kernels have told, legs %v", told, len(d.GetKernel()), d.GetLegs())
					}
				}
			})
		})
	}
}

// A watch begins with what there is and goes on with changes.
func TestAdminWatches(t *testing.T) {
	Run(t, func(t *testing.T, m *Mesh) {
		a := m.Node("a")
		a.Serve(Service{Name: "db"})
		alice, bob := a.Client("alice"), a.Client("bob")
		w := alice.Connect("kernel://db/nsm-1")
		bob.Connect("kernel://db/nsm-1")

		s, err := m.Admin(t, alice.part, a).Wires(t.Context(), &adminv1.WiresRequest{Filter: &adminv1.Filter{Watch: true}})
		if err != nil {
			t.Fatal(err)
		}
		var types []adminv1.EventType
		next := func() *adminv1.WireEvent {
			t.Helper()
			e, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			types = append(types, e.GetType())
			if e.GetWire() != nil && e.GetWire().GetId() != w.ID() {
				t.Errorf("told of %v", e.GetWire())
			}
			return e
		}
		next()
		next()
		Pass(2 * time.Minute) // refreshed
		if e := next(); e.GetWire().GetExpires().AsTime().Before(time.Now().Add(7 * time.Minute)) {
			t.Errorf("after a refresh: %v", e.GetWire())
		}
		if want := []adminv1.EventType{1, 4, 2}; !slices.Equal(types, want) {
			t.Errorf("events %v, want %v", types, want)
		}
		alice.Close(w)
		for last := next(); last.GetType() != adminv1.EventType_EVENT_TYPE_DELETED; last = next() {
			// On the way out the hops behind may be gone first.
			if last.GetWire().GetState() != adminv1.WireState_WIRE_STATE_DOWN {
				t.Fatalf("told of %v", last)
			}
		}
	})
}

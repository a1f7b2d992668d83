// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/mechanism"
)

func marshal(f *testing.F, m proto.Message) []byte {
	f.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return raw
}

// Whatever the hops behind this one tell, and whatever connection it is about: who
// is on the path, in which roles, is not theirs to say, nor is what is known
// already.
func FuzzDescribe(f *testing.F) {
	s := newServer(f, "fwd forwarder tcp://a:5001", "fwd-b forwarder tcp://b:5001 b", "db-1 db tcp://b:5001")
	version := &adminv1.BuildVersion{Version: "v9"}
	told := marshal(f, &adminv1.WireDescription{
		Summary: &adminv1.WireSummary{Id: "lie"},
		Hops: []*adminv1.Hop{
			{Id: "web0", Node: "lie", Version: version}, {Id: "fwd2", SpiffeId: "spiffe://lie", Version: version, Metrics: map[string]string{"client_interface": "KERNEL/lie"}},
			{Id: "fwd2", Node: "again"}, {}, {Id: "x"},
		},
		Legs:   []*adminv1.WireLeg{{From: "a", To: "b"}, {}},
		Kernel: []*adminv1.KernelObjects{{Forwarder: "fwd"}, {Forwarder: "fwd-b", Node: "told"}, {}},
	})
	long := s.publish(3, "web mgr-b fwd-b mgr fwd db-1 mgr fwd db-1", func(c *networkservice.Connection) {
		c.Path.PathSegments[4].Metrics = map[string]string{"client_interface": "KERNEL/db", "server_interface": "VXLAN/"}
		c.Context = &networkservice.ConnectionContext{
			IpContext: &networkservice.IPContext{
				SrcRoutes: []*networkservice.Route{{Prefix: "0.0.0.0/0"}}, Policies: []*networkservice.PolicyRoute{{From: "10.0.0.1"}},
			},
			DnsContext: &networkservice.DNSContext{Configs: []*networkservice.DNSConfig{{DnsServerIps: []string{"10.0.0.1"}}}},
		}
	}).Conn()
	f.Add(marshal(f, s.publish(1, "web mgr fwd mgr-b fwd-b db-1").Conn()), told)
	f.Add(marshal(f, s.publish(1, "web mgr").Conn()), told)
	f.Add(marshal(f, long), told)
	f.Add(marshal(f, &networkservice.Connection{}), []byte{})
	f.Fuzz(func(t *testing.T, raw, told []byte) {
		c, behind := new(networkservice.Connection), new(adminv1.WireDescription)
		if proto.Unmarshal(raw, c) != nil || proto.Unmarshal(told, behind) != nil {
			return
		}
		if hop.Validate(c) != nil || len(c.GetPath().GetPathSegments()) == 0 || hop.PathOf(c).Validate() != nil {
			return // does not come so far
		}
		s.config.Wires.Publish(c)
		defer s.config.Wires.Delete(c.GetId())
		v, _ := s.config.Wires.Get(c.GetId())
		before, tr := s.trail(v), s.trail(v)
		d := &adminv1.WireDescription{Hops: tr.hops, Context: contextOf(v.Conn().GetContext())}
		tr.learn(d, behind)
		d.Legs = append(d.Legs, tr.leg())
		d.Summary = tr.summary()
		if _, err := proto.Marshal(d); err != nil {
			t.Errorf("cannot be told: %v", err)
		}
		for i, h := range d.GetHops() {
			old := before.hops[i]
			if h.GetName() != old.GetName() || h.GetId() != old.GetId() || h.GetRole() != old.GetRole() || h.GetSpiffeId() != old.GetSpiffeId() ||
				old.GetNode() != "" && h.GetNode() != old.GetNode() || i <= tr.own && !proto.Equal(h, old) {
				t.Errorf("%v has become %v", old, h)
			}
		}
		if len(d.GetHops()) != len(before.hops) || d.GetSummary().GetId() != c.GetPath().GetPathSegments()[0].GetId() {
			t.Errorf("%v has become %v", c, d)
		}
	})
}

// Whatever an operator applies reaches the registry as it is, and is shown so.
func FuzzApply(f *testing.F) {
	s := newServer(f)
	f.Add(marshal(f, &adminv1.Service{}))
	f.Add(marshal(f, &adminv1.Service{
		Name: "db", Payload: mechanism.PayloadEthernet, PathIds: []string{"x"}, Endpoints: 7,
		Matches: []*adminv1.Match{
			{SourceSelector: map[string]string{"app": "web"}, Routes: []*adminv1.Destination{{DestinationSelector: map[string]string{"n": "{{.n}}"}, Weight: 1 << 31}, {}}},
			{Fallthrough: true, Metadata: &adminv1.Metadata{}}, {Metadata: &adminv1.Metadata{Labels: map[string]string{"p2p": "true"}}},
		},
	}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		x := new(adminv1.Service)
		if proto.Unmarshal(raw, x) != nil {
			return
		}
		ns := registryService(x)
		shown := s.service(ns)
		again := registryService(shown)
		if ns.Payload == "" {
			ns.Payload = mechanism.PayloadIP
		}
		if !sameService(again, ns) || ns.GetName() != x.GetName() || len(ns.GetMatches()) != len(x.GetMatches()) {
			t.Errorf("%v is shown as %v", x, shown)
		}
		for _, filter := range []*adminv1.Filter{{Name: x.GetName()}, {Labels: map[string]string{}}} {
			if !selectsService(filter, ns) {
				t.Errorf("%v does not select %v", filter, ns)
			}
		}
		for i, m := range ns.GetMatches() {
			if (m.GetMetadata() == nil) != (x.GetMatches()[i].GetMetadata() == nil) {
				t.Errorf("match %d: metadata that is there is another rule than none", i)
			}
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"fmt"
	"slices"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// messages are those that are copied field by field, and one that is not.
var messages = []proto.Message{
	&networkservice.Connection{},
	&networkservice.NetworkServiceRequest{},
	&networkservice.ConnectionEvent{},
	&registry.NetworkServiceEndpoint{},
}

// A field that the API has and the copy has not would fail here: every field is set,
// of every message inside.
func TestCopiesHaveAll(t *testing.T) {
	for _, empty := range messages {
		full := proto.Clone(empty)
		fill(full.ProtoReflect())
		for name, m := range map[string]proto.Message{"full": full, "empty": empty} {
			t.Run(fmt.Sprintf("%s %s", name, m.ProtoReflect().Descriptor().Name()), func(t *testing.T) {
				got := Clone(m)
				if !proto.Equal(got, m) {
					t.Errorf("the clone differs:\n%v\nfrom\n%v", got, m)
				}
				into := proto.Clone(full)
				copyMessage(into, m)
				if !proto.Equal(into, m) {
					t.Errorf("the copy differs:\n%v\nfrom\n%v", into, m)
				}
			})
		}
	}
}

// Whoever changes a copy changes nothing else.
func TestCopiesShareNothing(t *testing.T) {
	for _, m := range messages {
		fill(m.ProtoReflect())
		before := proto.Clone(m)
		spoil(Clone(m).ProtoReflect())
		copied := m.ProtoReflect().New().Interface()
		copyMessage(copied, m)
		spoil(copied.ProtoReflect())
		if !proto.Equal(m, before) {
			t.Errorf("a change of the copy has changed the original:\n%v\nwas\n%v", m, before)
		}
	}
}

// A shallow copy has all, and may be changed as far as it says.
func TestShallow(t *testing.T) {
	for name, tt := range map[string]struct {
		copy   func(*networkservice.Connection) *networkservice.Connection
		change func(*networkservice.Path)
	}{
		"all but the path's segments": {Shallow, func(p *networkservice.Path) {
			p.PathSegments = append(slices.Clone(p.PathSegments[:1]), ShallowSegment(nil))
			p.PathSegments[0] = ShallowSegment(p.PathSegments[0])
			p.PathSegments[0].Token = ""
		}},
		"all": {ShallowButPath, func(p *networkservice.Path) {
			for _, s := range p.PathSegments {
				s.Token, s.Metrics, s.Expires = "", nil, nil
			}
			p.PathSegments = append(p.PathSegments[:1], ShallowSegment(nil))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := &networkservice.Connection{}
			fill(c.ProtoReflect())
			before, got := proto.CloneOf(c), tt.copy(c)
			if !proto.Equal(got, c) {
				t.Errorf("the copy differs:\n%v\nfrom\n%v", got, c)
			}
			got.Id, got.State, got.Context, got.Mechanism, got.Labels = "other", 0, nil, nil, nil
			got.Path.Index++
			tt.change(got.Path)
			if !proto.Equal(c, before) {
				t.Errorf("a change of the copy has changed the original:\n%v\nwas\n%v", c, before)
			}
		})
	}
	if got := ShallowButPath(nil); got != nil {
		t.Errorf("a copy of nothing is %v", got)
	}
}

func TestCloneOfNil(t *testing.T) {
	if got := Clone((*networkservice.Connection)(nil)); got != nil {
		t.Errorf("Clone(nil) = %v", got)
	}
}

// fill sets every field of m, and one that this version of the API does not know.
func fill(m protoreflect.Message) {
	m.SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 7))
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
			for _, key := range []string{"a", "b"} {
				v := m.Mutable(f).Map().NewValue()
				if f.MapValue().Message() != nil {
					fill(v.Message())
				} else {
					v = scalar(f.MapValue())
				}
				m.Mutable(f).Map().Set(protoreflect.ValueOfString(key).MapKey(), v)
			}
		case f.IsList():
			for range 2 {
				v := m.Mutable(f).List().NewElement()
				if f.Message() != nil {
					fill(v.Message())
				} else {
					v = scalar(f)
				}
				m.Mutable(f).List().Append(v)
			}
		case f.Message() != nil:
			fill(m.Mutable(f).Message())
		default:
			m.Set(f, scalar(f))
		}
	}
}

func scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(string(f.Name()))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(f.Name()))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(32)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(31)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(64)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(63)
	}
	panic("no value for a field of kind " + f.Kind().String())
}

// spoil changes everything that m refers to.
func spoil(m protoreflect.Message) {
	for i := range m.GetUnknown() {
		m.GetUnknown()[i]++
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			v.Map().Range(func(key protoreflect.MapKey, v protoreflect.Value) bool {
				if f.MapValue().Message() != nil {
					spoil(v.Message())
				}
				return true
			})
			v.Map().Clear(protoreflect.ValueOfString("a").MapKey())
		case f.IsList():
			for i := range v.List().Len() {
				if f.Message() != nil {
					spoil(v.List().Get(i).Message())
				} else {
					v.List().Set(i, protoreflect.ValueOfString("spoilt"))
				}
			}
			v.List().Truncate(1)
		case f.Message() != nil:
			spoil(v.Message())
		default:
			m.Clear(f)
		}
		return true
	})
}

var path5 = &networkservice.Connection{
	Id: "6d6d4c0e", NetworkService: "db", NetworkServiceEndpointName: "db-1", Payload: "IP",
	Mechanism: &networkservice.Mechanism{Cls: "LOCAL", Type: "KERNEL", Parameters: map[string]string{"inodeURL": "inode://4/4026532281", "name": "nsm-1"}},
	Labels:    map[string]string{"app": "web"},
	Context: &networkservice.ConnectionContext{MTU: 1500, IpContext: &networkservice.IPContext{
		SrcIpAddrs: []string{"172.16.0.3/32"}, DstIpAddrs: []string{"172.16.0.2/32"},
		SrcRoutes: []*networkservice.Route{{Prefix: "172.16.0.2/32"}}, DstRoutes: []*networkservice.Route{{Prefix: "172.16.0.3/32"}},
	}},
	Path: &networkservice.Path{Index: 1, PathSegments: []*networkservice.PathSegment{
		{Name: "client", Id: "c", Token: "token"}, {Name: "manager", Id: "m", Token: "token"}, {Name: "forwarder", Id: "f", Token: "token"},
		{Name: "manager", Id: "m2", Token: "token", Metrics: map[string]string{"server_interface": "KERNEL/nsm-1"}}, {Name: "endpoint", Id: "e", Token: "token"},
	}},
}

func BenchmarkClone(b *testing.B) {
	for name, clone := range map[string]func(*networkservice.Connection) *networkservice.Connection{
		"by reflection": proto.CloneOf[*networkservice.Connection], "written out": Clone[*networkservice.Connection],
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				clone(path5)
			}
		})
	}
}

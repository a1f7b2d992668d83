// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Whatever is different, however deep, makes a difference.
func TestEqualContexts(t *testing.T) {
	full := &networkservice.ConnectionContext{}
	fill(full.ProtoReflect())
	if !EqualContexts(full, proto.CloneOf(full)) || !EqualContexts(nil, nil) || EqualContexts(full, nil) || EqualContexts(nil, full) {
		t.Fatal("equal is not equal, or what is not is")
	}
	changes := 0
	for ; ; changes++ {
		other := proto.CloneOf(full)
		left := changes
		what := change(other.ProtoReflect(), &left)
		if what == "" {
			break
		}
		if EqualContexts(full, other) || EqualContexts(other, full) {
			t.Errorf("%s: a change is not seen", what)
		}
	}
	t.Logf("%d changes", changes)
	if changes < 40 {
		t.Errorf("%d changes are less than there are fields", changes)
	}
}

// change makes the change with number *left, counted through the message, and returns of
// what it is; "" if there are fewer.
func change(m protoreflect.Message, left *int) (what string) {
	due := func() bool { *left--; return *left < 0 }
	if due() {
		m.SetUnknown(append(m.GetUnknown(), m.GetUnknown()...))
		return string(m.Descriptor().Name()) + ", unknown fields"
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if due() {
			m.Clear(f)
			return string(f.FullName()) + ", absent"
		}
		switch {
		case f.IsMap():
			if due() {
				m.Mutable(f).Map().Clear(protoreflect.ValueOfString("a").MapKey())
				return string(f.FullName()) + ", one less"
			}
		case f.IsList():
			list := m.Mutable(f).List()
			if due() {
				list.Truncate(list.Len() - 1)
				return string(f.FullName()) + ", one less"
			}
			if f.Message() != nil {
				what = change(list.Get(list.Len()-1).Message(), left)
			} else if due() {
				list.Set(list.Len()-1, protoreflect.ValueOfString("other"))
				return string(f.FullName()) + ", another"
			}
		case f.Message() != nil:
			what = change(m.Mutable(f).Message(), left)
		}
		if what != "" {
			return what
		}
	}
	return ""
}

func BenchmarkEqualContexts(b *testing.B) {
	one, other := path5.GetContext(), proto.CloneOf(path5.GetContext())
	for name, equal := range map[string]func() bool{
		"by reflection": func() bool { return proto.Equal(one, other) },
		"written out":   func() bool { return EqualContexts(one, other) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !equal() {
					b.Fatal("they differ")
				}
			}
		})
	}
}

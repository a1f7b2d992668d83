// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"reflect"
	"testing"
)

// No part of a wire can change without Equal noticing it, those included that are added
// one day.
func TestEqual(t *testing.T) {
	full := func() (w Wire) {
		n := 0
		eachPart(reflect.ValueOf(&w).Elem(), "Wire", func(_ string, v reflect.Value) { n++; setPart(v, n) })
		return w
	}
	a := full()
	if !a.Equal(full()) || !(Wire{}).Equal(Wire{}) {
		t.Fatal("a wire is not equal to itself")
	}
	parts := 0
	eachPart(reflect.ValueOf(&a).Elem(), "Wire", func(string, reflect.Value) { parts++ })
	if parts < 40 {
		t.Errorf("a full wire has %d parts", parts)
	}
	for i := range parts {
		b, n := full(), 0
		eachPart(reflect.ValueOf(&b).Elem(), "Wire", func(name string, v reflect.Value) {
			if n++; n == i+1 {
				setPart(v, changed)
				t.Logf("changed: %s", name)
			}
		})
		if a.Equal(b) || b.Equal(a) {
			t.Errorf("a change of part %d is not noticed (see above)", i)
		}
	}
	for name, change := range map[string]func(*Wire){
		"an end less":          func(w *Wire) { w.Ends = w.Ends[:1] },
		"no VXLAN":             func(w *Wire) { w.VXLAN = nil },
		"no tunnel":            func(w *Wire) { w.Tunnel = nil },
		"a route less":         func(w *Wire) { w.Ends[0].Routes = w.Ends[0].Routes[1:] },
		"no neighbours":        func(w *Wire) { w.Ends[1].Neighbors = nil },
		"a policy without any": func(w *Wire) { w.Ends[1].Policies[0].Routes = nil },
	} {
		b := full()
		if change(&b); a.Equal(b) || b.Equal(a) {
			t.Errorf("%s: not noticed", name)
		}
	}
}

// eachPart visits what v consists of, and gives slices two elements and pointers
// something to point to where they have none.
func eachPart(v reflect.Value, name string, visit func(name string, v reflect.Value)) {
	switch v.Interface().(type) {
	case netip.Addr, netip.Prefix, netip.AddrPort:
		visit(name, v)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			eachPart(v.Field(i), name+"."+v.Type().Field(i).Name, visit)
		}
	case reflect.Slice:
		if v.Len() == 0 {
			v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		}
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			eachPart(v.Index(i), name+"[]", visit)
		}
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		eachPart(v.Elem(), name, visit)
	default:
		visit(name, v)
	}
}

// changed is a value that no part has.
const changed = 1<<16 - 1

// setPart makes v the n-th value of its kind, or another than any of those.
func setPart(v reflect.Value, n int) {
	addr := netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})
	switch v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf(addr))
		return
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.PrefixFrom(addr, 32)))
		return
	case netip.AddrPort:
		v.Set(reflect.ValueOf(netip.AddrPortFrom(addr, 1)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(string(rune('!' + n)))
	case reflect.Bool:
		v.SetBool(n != changed)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(n % 100))
		if n == changed {
			v.SetInt(120)
		}
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(n % 200))
		if n == changed {
			v.SetUint(250)
		}
	default:
		panic("a wire has something of kind " + v.Kind().String())
	}
}

// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"strings"
	"testing"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

func marshal(t *testing.T, m proto.Message) mem.BufferSlice {
	t.Helper()
	b, err := protobuf.Marshal(m)
	if err != nil {
		t.Error(err)
	}
	return b
}

// writtenOut are the messages that are encoded and decoded field by field.
var writtenOut = []proto.Message{&networkservice.Connection{}, &networkservice.NetworkServiceRequest{}}

// A field that the API has and the code has not would fail here.
func TestCodecHasAll(t *testing.T) {
	for _, empty := range writtenOut {
		later := proto.Clone(empty) // has fields that nobody knows
		fill(later.ProtoReflect())
		raw, err := proto.Marshal(later)
		if err != nil {
			t.Fatal(err)
		}
		full := proto.Clone(empty)
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, full); err != nil {
			t.Fatal(err)
		}
		for name, m := range map[string]proto.Message{"full": full, "empty": empty, "of a later version": later} {
			b, ok := encode(m)
			if !ok {
				t.Errorf("%s %T is not encoded", name, m)
				continue
			}
			got := proto.Clone(empty)
			if err := proto.Unmarshal(b.ReadOnlyData(), got); err != nil || !proto.Equal(got, m) {
				t.Errorf("%s %T is encoded as\n%v, want\n%v, %v", name, m, got, m, err)
			}
			got = proto.Clone(empty)
			if ok := decode(b.ReadOnlyData(), got); ok != (m != later) || ok && !proto.Equal(got, m) {
				t.Errorf("%s %T is decoded (%v) as\n%v, want\n%v", name, m, ok, got, m)
			}
			got = proto.Clone(full)
			if err := protobuf.Unmarshal(marshal(t, m), got); err != nil || !proto.Equal(got, m) {
				t.Errorf("%s %T arrives as\n%v, want\n%v, %v", name, m, got, m, err)
			}
		}
	}
}

func withIP(c *networkservice.IPContext) *networkservice.Connection {
	return &networkservice.Connection{Context: &networkservice.ConnectionContext{IpContext: c}}
}

// What is longer than most, at every depth, grows as it is written.
func TestCodecLong(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", usualSize/8)
	want := &networkservice.NetworkServiceRequest{Connection: proto.CloneOf(path5), MechanismPreferences: []*networkservice.Mechanism{
		{Cls: long, Parameters: map[string]string{"a": long, long: "b"}}, {Type: long},
	}}
	want.Connection.Path.PathSegments[0].Token = long
	want.Connection.Context = &networkservice.ConnectionContext{DnsContext: &networkservice.DNSContext{Configs: []*networkservice.DNSConfig{{SearchDomains: []string{long}}}}}
	for range 3 { // in what the pool has been given back
		b := marshal(t, want)
		got := new(networkservice.NetworkServiceRequest)
		if err := protobuf.Unmarshal(b, got); err != nil || !proto.Equal(got, want) {
			t.Errorf("%d bytes arrive as\n%v, %v", b.Len(), got, err)
		}
		b.Free()
	}
}

// What is not written out, or wrong, is left to protobuf.
func TestCodecLeavesTheRest(t *testing.T) {
	for name, m := range map[string]proto.Message{
		"another message": &networkservice.ConnectionEvent{},
		"none":            (*networkservice.Connection)(nil),
		"no segment":      &networkservice.Connection{Path: &networkservice.Path{PathSegments: []*networkservice.PathSegment{nil}}},
		"no preference":   &networkservice.NetworkServiceRequest{MechanismPreferences: []*networkservice.Mechanism{nil}},
		"no route":        withIP(&networkservice.IPContext{SrcRoutes: []*networkservice.Route{nil}}),
		"no neighbour":    withIP(&networkservice.IPContext{IpNeighbors: []*networkservice.IpNeighbor{nil}}),
	} {
		if _, ok := encode(m); ok {
			t.Errorf("%s is encoded", name)
		}
		marshal(t, m)
	}
	for name, c := range map[string]*networkservice.Connection{
		"in a label":    {Labels: map[string]string{"a": "\xff"}},
		"in a DNS name": {Context: &networkservice.ConnectionContext{DnsContext: &networkservice.DNSContext{Configs: []*networkservice.DNSConfig{{SearchDomains: []string{"\xff"}}}}}},
	} {
		if _, err := protobuf.Marshal(c); err == nil {
			t.Errorf("what is no text is encoded, %s", name)
		}
	}
	for name, raw := range map[string]string{
		"no text":         "\x0a\x01\xff",
		"cut short":       "\x0a\x05a",
		"no length":       "\x0a",
		"no field":        "\xff",
		"a label cut off": "\x2a\x03\x0a\x05a",
	} {
		c := new(networkservice.Connection)
		if decode([]byte(raw), c) || proto.Unmarshal([]byte(raw), c) == nil {
			t.Errorf("%s is decoded as %v", name, c)
		}
	}
}

// What is decoded, or encoded, is what protobuf makes of it.
func FuzzCodec(f *testing.F) {
	seeds := []proto.Message{path5, &networkservice.NetworkServiceRequest{Connection: path5}}
	for _, m := range writtenOut {
		full := proto.Clone(m)
		fill(full.ProtoReflect())
		seeds = append(seeds, full)
	}
	for _, m := range seeds {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte("\x1a\x00\x1a\x02\x0a\x00")) // a mechanism twice
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, empty := range writtenOut {
			want, got := proto.Clone(empty), proto.Clone(empty)
			err := proto.Unmarshal(raw, want)
			if decode(raw, got) && (err != nil || !proto.Equal(got, want)) {
				t.Errorf("decoded as\n%v, by protobuf as\n%v, %v", got, want, err)
			}
			if err != nil {
				continue
			}
			b, ok := encode(want)
			if !ok {
				t.Errorf("not encoded: %v", want)
			} else if err := proto.Unmarshal(b.ReadOnlyData(), got); err != nil || !proto.Equal(got, want) {
				t.Errorf("encoded as\n%v, %v, want\n%v", got, err, want)
			}
		}
	})
}

func BenchmarkCodec(b *testing.B) {
	raw, err := proto.Marshal(path5)
	if err != nil {
		b.Fatal(err)
	}
	for name, c := range map[string]encoding.CodecV2{"protobuf": protobuf.CodecV2, "written out": protobuf} {
		b.Run("decode/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw)}, new(networkservice.Connection))
			}
		})
		b.Run("encode/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				out, _ := c.Marshal(path5)
				out.Free()
			}
		})
	}
}

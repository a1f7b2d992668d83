// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"slices"
	"unicode/utf8"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// encode is proto.Marshal of a Request or an answer, likewise (see decode). It reports false
// if that is for protobuf to do, which also knows what is wrong.
func encode(v any) (_ mem.Buffer, ok bool) {
	var fields func(*encoder)
	switch m := v.(type) {
	case *networkservice.NetworkServiceRequest:
		fields = func(e *encoder) { encodeRequest(e, m) }
		ok = m != nil
	case *networkservice.Connection:
		fields = func(e *encoder) { encodeConnection(e, m) }
		ok = m != nil
	}
	if !ok {
		return nil, false
	}
	pool := mem.DefaultBufferPool()
	room := pool.Get(usualSize)
	e := encoder{b: (*room)[:0]}
	fields(&e)
	*room = e.b
	if e.failed {
		pool.Put(room)
		return nil, false
	}
	return mem.NewBuffer(room, pool), true
}

// usualSize is what most Requests and answers have room in.
const usualSize = 4 << 10

// encoder appends fields, by their numbers.
type encoder struct {
	b      []byte
	failed bool
}

// string is a field that is left out when it is empty, as all but elements of lists and maps are.
func (e *encoder) string(n uint64, s string) {
	if s != "" {
		e.element(n, s)
	}
}

func (e *encoder) element(n uint64, s string) {
	e.failed = e.failed || !utf8.ValidString(s)
	e.b = protowire.AppendVarint(e.b, n<<3|asBytes)
	e.b = protowire.AppendString(e.b, s)
}

func (e *encoder) strings(n uint64, all []string) {
	for _, s := range all {
		e.element(n, s)
	}
}

func (e *encoder) number(n, value uint64) {
	if value != 0 {
		e.b = protowire.AppendVarint(e.b, n<<3|asNumber)
		e.b = protowire.AppendVarint(e.b, value)
	}
}

func (e *encoder) entries(n uint64, m map[string]string) {
	for key, value := range m {
		e.message(n, func() {
			e.element(1, key)
			e.element(2, value)
		})
	}
}

// message is a field with what fields appends.
func (e *encoder) message(n uint64, fields func()) {
	e.b = protowire.AppendVarint(e.b, n<<3|asBytes)
	start := len(e.b)
	fields()
	var length [10]byte // goes before, and is known after: to move the fields takes less than to measure them first
	e.b = slices.Insert(e.b, start, protowire.AppendVarint(length[:0], uint64(len(e.b)-start))...)
}

// later are the fields that are of a later version of the API.
func (e *encoder) later(m proto.Message) {
	e.b = append(e.b, m.ProtoReflect().GetUnknown()...)
}

func encodeOne[M any](e *encoder, n uint64, m *M, fields func(*encoder, *M)) {
	if m != nil {
		e.message(n, func() { fields(e, m) })
	}
}

func encodeAll[M any](e *encoder, n uint64, all []*M, fields func(*encoder, *M)) {
	for _, m := range all {
		e.failed = e.failed || m == nil
		encodeOne(e, n, m, fields)
	}
}

// encodeRare has protobuf append the fields of a message.
func encodeRare[M any, P interface {
	*M
	proto.Message
}](e *encoder, m *M) {
	b, err := proto.MarshalOptions{}.MarshalAppend(e.b, P(m))
	if err != nil {
		e.failed = true // and there may be no bytes
		return
	}
	e.b = b
}

func encodeRequest(e *encoder, r *networkservice.NetworkServiceRequest) {
	encodeOne(e, 1, r.Connection, encodeConnection)
	encodeAll(e, 2, r.MechanismPreferences, encodeMechanism)
	e.later(r)
}

func encodeConnection(e *encoder, c *networkservice.Connection) {
	e.string(1, c.Id)
	e.string(2, c.NetworkService)
	encodeOne(e, 3, c.Mechanism, encodeMechanism)
	encodeOne(e, 4, c.Context, encodeContext)
	e.entries(5, c.Labels)
	encodeOne(e, 6, c.Path, encodePath)
	e.string(7, c.NetworkServiceEndpointName)
	e.string(8, c.Payload)
	e.number(9, uint64(c.State))
	e.later(c)
}

func encodeMechanism(e *encoder, m *networkservice.Mechanism) {
	e.string(1, m.Cls)
	e.string(2, m.Type)
	e.entries(3, m.Parameters)
	e.later(m)
}

func encodePath(e *encoder, p *networkservice.Path) {
	e.number(1, uint64(p.Index))
	encodeAll(e, 2, p.PathSegments, encodeSegment)
	e.later(p)
}

func encodeSegment(e *encoder, s *networkservice.PathSegment) {
	e.string(1, s.Name)
	e.string(2, s.Id)
	e.string(3, s.Token)
	encodeOne(e, 4, s.Expires, encodeTimestamp)
	e.entries(5, s.Metrics)
	e.later(s)
}

func encodeTimestamp(e *encoder, t *timestamppb.Timestamp) {
	e.number(1, uint64(t.Seconds))
	e.number(2, uint64(t.Nanos))
	e.later(t)
}

func encodeContext(e *encoder, c *networkservice.ConnectionContext) {
	encodeOne(e, 1, c.IpContext, encodeIPContext)
	encodeOne(e, 2, c.DnsContext, encodeRare)
	encodeOne(e, 3, c.EthernetContext, encodeRare)
	e.entries(4, c.ExtraContext)
	e.number(5, uint64(c.MTU))
	e.later(c)
}

func encodeIPContext(e *encoder, c *networkservice.IPContext) {
	e.strings(1, c.SrcIpAddrs)
	e.strings(2, c.DstIpAddrs)
	e.number(3, protowire.EncodeBool(c.SrcIpRequired))
	e.number(4, protowire.EncodeBool(c.DstIpRequired))
	encodeAll(e, 5, c.SrcRoutes, encodeRoute)
	encodeAll(e, 6, c.DstRoutes, encodeRoute)
	e.strings(7, c.ExcludedPrefixes)
	encodeAll(e, 8, c.IpNeighbors, encodeRare)
	encodeAll(e, 9, c.ExtraPrefixRequest, encodeRare)
	e.strings(10, c.ExtraPrefixes)
	encodeAll(e, 11, c.Policies, encodeRare)
	e.later(c)
}

func encodeRoute(e *encoder, r *networkservice.Route) {
	e.string(1, r.Prefix)
	e.string(2, r.NextHop)
	e.later(r)
}

// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"unicode/utf8"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// decode is proto.Unmarshal of what Requests and their answers consist of, without the
// reflection that goes through every map. It reports false when it meets anything that is
// not in most messages: a field of a later version of the API, one of another type, two
// where there is one, bytes that are no text. Then m is whatever it is, and protobuf
// has to decode, which knows what that means, or what is wrong: a peer of a later version
// makes us decode twice, at most.
func decode(b []byte, m proto.Message) bool {
	switch m := m.(type) {
	case *networkservice.NetworkServiceRequest:
		m.Reset()
		return decodeRequest(b, m)
	case *networkservice.Connection:
		m.Reset()
		return decodeConnection(b, m)
	}
	return false
}

// field is one of an encoded message.
type field struct {
	key    uint64 // which it is, and as what it is encoded
	number uint64
	data   []byte
}

const (
	asNumber = uint64(protowire.VarintType)
	asBytes  = uint64(protowire.BytesType) // a string or a message
)

func eachField(b []byte, do func(field) bool) bool {
	for len(b) > 0 {
		key, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		f := field{key: key}
		switch key & 7 {
		case asNumber:
			f.number, n = protowire.ConsumeVarint(b)
		case asBytes:
			f.data, n = protowire.ConsumeBytes(b)
		default:
			return false
		}
		if n < 0 || !do(f) {
			return false
		}
		b = b[n:]
	}
	return true
}

func (f field) string(s *string) bool {
	*s = string(f.data)
	return utf8.Valid(f.data)
}

func (f field) strings(all *[]string) bool {
	*all = append(*all, string(f.data))
	return utf8.Valid(f.data)
}

func (f field) uint32(n *uint32) bool {
	*n = uint32(f.number)
	return true
}

func (f field) bool(b *bool) bool {
	*b = protowire.DecodeBool(f.number)
	return true
}

// entry is one of a map.
func (f field) entry(m *map[string]string) bool {
	var key, value string
	ok := eachField(f.data, func(f field) bool {
		switch f.key {
		case 1<<3 | asBytes:
			return f.string(&key)
		case 2<<3 | asBytes:
			return f.string(&value)
		}
		return false
	})
	if *m == nil {
		*m = make(map[string]string)
	}
	(*m)[key] = value
	return ok
}

// one is a message that there is one of.
func one[M any](f field, m **M, decode func([]byte, *M) bool) bool {
	if *m != nil {
		return false // they would have to be merged
	}
	*m = new(M)
	return decode(f.data, *m)
}

// more is a message that there may be several of.
func more[M any](f field, all *[]*M, decode func([]byte, *M) bool) bool {
	m := new(M)
	*all = append(*all, m)
	return decode(f.data, m)
}

// rare is a message for protobuf.
func rare[M any, P interface {
	*M
	proto.Message
}](b []byte, m *M) bool {
	return proto.Unmarshal(b, P(m)) == nil
}

func decodeRequest(b []byte, r *networkservice.NetworkServiceRequest) bool {
	return eachField(b, func(f field) bool {
		switch f.key {
		case 1<<3 | asBytes:
			return one(f, &r.Connection, decodeConnection)
		case 2<<3 | asBytes:
			return more(f, &r.MechanismPreferences, decodeMechanism)
		}
		return false
	})
}

func decodeConnection(b []byte, c *networkservice.Connection) bool {
	return eachField(b, func(f field) bool {
		switch f.key {
		case 1<<3 | asBytes:
			return f.string(&c.Id)
		case 2<<3 | asBytes:
			return f.string(&c.NetworkService)
		case 3<<3 | asBytes:
			return one(f, &c.Mechanism, decodeMechanism)
		case 4<<3 | asBytes:
			return one(f, &c.Context, decodeContext)
		case 5<<3 | asBytes:
			return f.entry(&c.Labels)
		case 6<<3 | asBytes:
			return one(f, &c.Path, decodePath)
		case 7<<3 | asBytes:
			return f.string(&c.NetworkServiceEndpointName)
		case 8<<3 | asBytes:
			return f.string(&c.Payload)
		case 9<<3 | asNumber:
			c.State = networkservice.State(f.number)
			return true
		}
		return false
	})
}

func decodeMechanism(b []byte, m *networkservice.Mechanism) bool {
	return eachField(b, func(f field) bool {
		switch f.key {
		case 1<<3 | asBytes:
			return f.string(&m.Cls)
		case 2<<3 | asBytes:
			return f.string(&m.Type)
		case 3<<3 | asBytes:
			return f.entry(&m.Parameters)
		}
		return false
	})
}

func decodePath(b []byte, p *networkservice.Path) bool {
	return eachField(b, func(f field) bool {
		switch f.key {
		case 1<<3 | asNumber:
			return f.uint32(&p.Index)
		case 2<<3 | asBytes:
			if p.PathSegments == nil {
				p.PathSegments = make([]*networkservice.PathSegment, 0, 8) // across two nodes there are seven
			}
			return more(f, &p.PathSegments, decodeSegment)
		}
		return false
	})
}

func decodeSegment(b []byte, s *networkservice.PathSegment) bool {
	return eachField(b, func(f field) bool {
		switch f.key {
		case 1<<3 | asBytes:
			return f.string(&s.Name)
		case 2<<3 | asBytes:
			return f.string(&s.Id)
		case 3<<3 | asBytes:
			return f.string(&s.Token)
		case 4<<3 | asBytes:
			return one(f, &s.Expires, decodeTimestamp)
		case 5<<3 | asBytes:
			return f.entry(&s.Metrics)
		}
		return false
	})
}

func decodeTimestamp(b []byte, t *timestamppb.Timestamp) bool {
	return eachField(b, func(f field) bool {
		switch f.key {
		case 1<<3 | asNumber:
			t.Seconds = int64(f.number)
			return true
		case 2<<3 | asNumber:
			t.Nanos = int32(f.number)
			return true
		}
		return false
	})
}

func decodeContext(b []byte, c *networkservice.ConnectionContext) bool {
	return eachField(b, func(f field) bool {
		switch f.key {
		case 1<<3 | asBytes:
			return one(f, &c.IpContext, decodeIPContext)
		case 2<<3 | asBytes:
			return one(f, &c.DnsContext, rare)
		case 3<<3 | asBytes:
			return one(f, &c.EthernetContext, rare)
		case 4<<3 | asBytes:
			return f.entry(&c.ExtraContext)
		case 5<<3 | asNumber:
			return f.uint32(&c.MTU)
		}
		return false
	})
}

func decodeIPContext(b []byte, c *networkservice.IPContext) bool {
	return eachField(b, func(f field) bool {
		switch f.key {
		case 1<<3 | asBytes:
			return f.strings(&c.SrcIpAddrs)
		case 2<<3 | asBytes:
			return f.strings(&c.DstIpAddrs)
		case 3<<3 | asNumber:
			return f.bool(&c.SrcIpRequired)
		case 4<<3 | asNumber:
			return f.bool(&c.DstIpRequired)
		case 5<<3 | asBytes:
			return more(f, &c.SrcRoutes, decodeRoute)
		case 6<<3 | asBytes:
			return more(f, &c.DstRoutes, decodeRoute)
		case 7<<3 | asBytes:
			return f.strings(&c.ExcludedPrefixes)
		case 8<<3 | asBytes:
			return more(f, &c.IpNeighbors, rare)
		case 9<<3 | asBytes:
			return more(f, &c.ExtraPrefixRequest, rare)
		case 10<<3 | asBytes:
			return f.strings(&c.ExtraPrefixes)
		case 11<<3 | asBytes:
			return more(f, &c.Policies, rare)
		}
		return false
	})
}

func decodeRoute(b []byte, r *networkservice.Route) bool {
	return eachField(b, func(f field) bool {
		switch f.key {
		case 1<<3 | asBytes:
			return f.string(&r.Prefix)
		case 2<<3 | asBytes:
			return f.string(&r.NextHop)
		}
		return false
	})
}

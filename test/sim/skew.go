// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"context"
	"crypto/x509"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/registry"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/path"
	"github.com/openvwire/nsm/sdk/regpath"
	"github.com/openvwire/nsm/sdk/rpc"
	"github.com/openvwire/nsm/sdk/token"
)

// A bubble has one clock. A part whose clock differs from it by a skew is one that reads
// every time that comes to it earlier by the skew, and whose times others read later by
// as much: so messages are changed where they pass, and tokens where they are made and
// checked.

// SetClock has the clock of parts of that name, from their next start on, go ahead of the
// others by a skew, or behind them.
func (m *Mesh) SetClock(name string, skew time.Duration) { m.skews[name] = skew }

// setClock gives the part its skew.
func (p *part) setClock(skew time.Duration) {
	if p.skew = skew; skew == 0 {
		return
	}
	p.tokens = shiftTokens(token.NewGenerator(p.identity, TokenLifetime+skew), -skew)
	p.policy = clockPolicy{p.policy, skew}
}

// shiftTokens has a generator say another time than its tokens do.
func shiftTokens(g token.Generator, by time.Duration) token.Generator {
	if by == 0 {
		return g
	}
	return func(peer *x509.Certificate) (string, time.Time, error) {
		raw, expires, err := g(peer)
		return raw, expires.Add(by), err
	}
}

// clockPolicy checks tokens by another clock.
type clockPolicy struct {
	hop.Policy
	skew time.Duration
}

func (p clockPolicy) Admit(caller rpc.Caller, path path.Path, now time.Time) error {
	return p.Policy.Admit(caller, path, now.Add(p.skew))
}

// clockRegistryPolicy is the same for the registry.
type clockRegistryPolicy struct {
	registry.Policy
	skew time.Duration
}

func (p clockRegistryPolicy) Check(caller rpc.Caller, raws []string, now time.Time) error {
	return p.Policy.Check(caller, raws, now.Add(p.skew))
}

// shifted returns a copy of a message with all times moved; the message itself if by is
// nothing.
func shifted(m any, by time.Duration) any {
	if by == 0 {
		return m
	}
	c := proto.Clone(m.(proto.Message))
	shift(c.ProtoReflect(), by)
	return c
}

func shift(m protoreflect.Message, by time.Duration) {
	if t, ok := m.Interface().(*timestamppb.Timestamp); ok {
		later := timestamppb.New(t.AsTime().Add(by))
		t.Seconds, t.Nanos = later.Seconds, later.Nanos
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				shift(v.Message(), by)
				return true
			})
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				shift(v.List().Get(i).Message(), by)
			}
		case !f.IsMap() && !f.IsList() && f.Message() != nil:
			shift(v.Message(), by)
		}
		return true
	})
}

// skewed is a connection to a part whose clock is behind the caller's by a skew.
type skewed struct {
	grpc.ClientConnInterface
	by time.Duration
}

func (s skewed) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if err := s.ClientConnInterface.Invoke(ctx, method, shifted(args, s.by), reply, opts...); err != nil {
		return err
	}
	shift(reply.(proto.Message).ProtoReflect(), -s.by)
	for _, o := range opts {
		if h, ok := o.(grpc.HeaderCallOption); ok {
			if at, ok := regpath.ClockFrom(*h.HeaderAddr); ok {
				h.HeaderAddr.Set(regpath.ClockKey, at.Add(-s.by).Format(time.RFC3339Nano))
			}
		}
	}
	return nil
}

func (s skewed) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := s.ClientConnInterface.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, err
	}
	return skewedStream{stream, s.by}, nil
}

type skewedStream struct {
	grpc.ClientStream
	by time.Duration
}

func (s skewedStream) SendMsg(m any) error { return s.ClientStream.SendMsg(shifted(m, s.by)) }

func (s skewedStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	shift(m.(proto.Message).ProtoReflect(), -s.by)
	return nil
}

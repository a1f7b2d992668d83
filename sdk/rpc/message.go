// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"maps"
	"slices"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Clone is proto.CloneOf, which goes through a message by reflection: of what a refresh
// takes, copies were a tenth of the time and a third of the memory. What is in most
// connections is written out here, and the rest goes by reflection as ever.
func Clone[M proto.Message](m M) M {
	if !m.ProtoReflect().IsValid() {
		return proto.CloneOf(m)
	}
	out := m.ProtoReflect().New().Interface()
	merge(out, m)
	return out.(M)
}

// copyMessage makes dst equal to src, which is of the same type; they share nothing.
func copyMessage(dst, src proto.Message) {
	proto.Reset(dst)
	merge(dst, src)
}

// shareMessage is copyMessage, but what the connections in dst and src refer to is shared
// as with Shallow, and so are preferences.
func shareMessage(dst, src proto.Message) {
	switch src := src.(type) {
	case *networkservice.Connection:
		proto.Reset(dst)
		shallow(dst.(*networkservice.Connection), src)
	case *networkservice.NetworkServiceRequest:
		proto.Reset(dst)
		dst := dst.(*networkservice.NetworkServiceRequest)
		dst.Connection, dst.MechanismPreferences = Shallow(src.Connection), slices.Clone(src.MechanismPreferences)
		copyUnknown(dst, src)
	default:
		copyMessage(dst, src)
	}
}

// Shallow returns a copy of c that has a path of its own, and else shares all that c
// refers to: mechanism, context, labels, and the path's segments and their list. What is
// shared may be replaced in each, but not changed any more in either.
func Shallow(c *networkservice.Connection) *networkservice.Connection { return cloneWith(c, shallow) }

func shallow(dst, src *networkservice.Connection) {
	shareConnection(dst, src)
	dst.Path = cloneWith(src.Path, sharePath)
}

// ShallowButPath is Shallow, but the segments of the path may be changed: they share
// only what they refer to.
func ShallowButPath(c *networkservice.Connection) *networkservice.Connection {
	out := Shallow(c)
	if out != nil && out.Path != nil {
		out.Path.PathSegments = cloneAll(out.Path.PathSegments, shareSegment)
	}
	return out
}

// ShallowSegment returns a copy of s that shares what s refers to; an empty one of nil.
func ShallowSegment(s *networkservice.PathSegment) *networkservice.PathSegment {
	out := new(networkservice.PathSegment)
	if s != nil {
		shareSegment(out, s)
	}
	return out
}

// merge makes dst, which is empty, equal to src.
func merge(dst, src proto.Message) {
	if e, ok := src.(*Encoded); ok {
		src = e.Message
	}
	switch dst := dst.(type) {
	case *networkservice.Connection:
		copyConnection(dst, src.(*networkservice.Connection))
	case *networkservice.NetworkServiceRequest:
		copyRequest(dst, src.(*networkservice.NetworkServiceRequest))
	case *networkservice.PathSegment:
		copySegment(dst, src.(*networkservice.PathSegment))
	case *networkservice.ConnectionEvent:
		copyEvent(dst, src.(*networkservice.ConnectionEvent))
	default:
		proto.Merge(dst, src)
	}
}

// cloneWith is a copy of src, made by fill; nil of nil.
func cloneWith[M any](src *M, fill func(dst, src *M)) *M {
	if src == nil {
		return nil
	}
	dst := new(M)
	fill(dst, src)
	return dst
}

// cloneAll is cloneWith of each, all in one piece of memory.
func cloneAll[M any](src []*M, fill func(dst, src *M)) []*M {
	if src == nil {
		return nil
	}
	all, dst := make([]M, len(src)), make([]*M, len(src))
	for i, m := range src {
		if m != nil {
			dst[i] = &all[i]
			fill(dst[i], m)
		}
	}
	return dst
}

func copyRequest(dst, src *networkservice.NetworkServiceRequest) {
	dst.Connection = cloneWith(src.Connection, copyConnection)
	dst.MechanismPreferences = cloneAll(src.MechanismPreferences, copyMechanism)
	copyUnknown(dst, src)
}

func copyEvent(dst, src *networkservice.ConnectionEvent) {
	dst.Type = src.Type
	if src.Connections != nil {
		dst.Connections = make(map[string]*networkservice.Connection, len(src.Connections))
		for id, c := range src.Connections {
			dst.Connections[id] = cloneWith(c, copyConnection)
		}
	}
	copyUnknown(dst, src)
}

func shareConnection(dst, src *networkservice.Connection) {
	dst.Id = src.Id
	dst.NetworkService = src.NetworkService
	dst.Mechanism = src.Mechanism
	dst.Context = src.Context
	dst.Labels = src.Labels
	dst.Path = src.Path
	dst.NetworkServiceEndpointName = src.NetworkServiceEndpointName
	dst.Payload = src.Payload
	dst.State = src.State
	copyUnknown(dst, src)
}

func copyConnection(dst, src *networkservice.Connection) {
	shareConnection(dst, src)
	dst.Mechanism = cloneWith(src.Mechanism, copyMechanism)
	dst.Context = cloneWith(src.Context, copyContext)
	dst.Labels = maps.Clone(src.Labels)
	dst.Path = cloneWith(src.Path, copyPath)
}

func copyContext(dst, src *networkservice.ConnectionContext) {
	dst.IpContext = cloneWith(src.IpContext, copyIPContext)
	dst.DnsContext = proto.CloneOf(src.DnsContext)
	dst.EthernetContext = proto.CloneOf(src.EthernetContext)
	dst.ExtraContext = maps.Clone(src.ExtraContext)
	dst.MTU = src.MTU
	copyUnknown(dst, src)
}

func copyIPContext(dst, src *networkservice.IPContext) {
	dst.SrcIpAddrs = slices.Clone(src.SrcIpAddrs)
	dst.DstIpAddrs = slices.Clone(src.DstIpAddrs)
	dst.SrcIpRequired = src.SrcIpRequired
	dst.DstIpRequired = src.DstIpRequired
	dst.SrcRoutes = cloneAll(src.SrcRoutes, copyRoute)
	dst.DstRoutes = cloneAll(src.DstRoutes, copyRoute)
	dst.ExcludedPrefixes = slices.Clone(src.ExcludedPrefixes)
	dst.IpNeighbors = cloneAll(src.IpNeighbors, copyNeighbour)
	dst.ExtraPrefixRequest = cloneAll(src.ExtraPrefixRequest, func(dst, src *networkservice.ExtraPrefixRequest) { proto.Merge(dst, src) })
	dst.ExtraPrefixes = slices.Clone(src.ExtraPrefixes)
	dst.Policies = cloneAll(src.Policies, func(dst, src *networkservice.PolicyRoute) { proto.Merge(dst, src) })
	copyUnknown(dst, src)
}

func copyRoute(dst, src *networkservice.Route) {
	dst.Prefix, dst.NextHop = src.Prefix, src.NextHop
	copyUnknown(dst, src)
}

func copyNeighbour(dst, src *networkservice.IpNeighbor) {
	dst.Ip, dst.HardwareAddress = src.Ip, src.HardwareAddress
	copyUnknown(dst, src)
}

func copyMechanism(dst, src *networkservice.Mechanism) {
	dst.Cls = src.Cls
	dst.Type = src.Type
	dst.Parameters = maps.Clone(src.Parameters)
	copyUnknown(dst, src)
}

func sharePath(dst, src *networkservice.Path) {
	dst.Index = src.Index
	dst.PathSegments = src.PathSegments
	copyUnknown(dst, src)
}

func copyPath(dst, src *networkservice.Path) {
	sharePath(dst, src)
	dst.PathSegments = cloneAll(src.PathSegments, copySegment)
}

func shareSegment(dst, src *networkservice.PathSegment) {
	dst.Name = src.Name
	dst.Id = src.Id
	dst.Token = src.Token
	dst.Expires = src.Expires
	dst.Metrics = src.Metrics
	copyUnknown(dst, src)
}

func copySegment(dst, src *networkservice.PathSegment) {
	shareSegment(dst, src)
	dst.Expires = cloneWith(src.Expires, copyTimestamp)
	dst.Metrics = maps.Clone(src.Metrics)
}

func copyTimestamp(dst, src *timestamppb.Timestamp) {
	dst.Seconds, dst.Nanos = src.Seconds, src.Nanos
	copyUnknown(dst, src)
}

// copyUnknown copies the fields that are of a later version of the API.
func copyUnknown(dst, src proto.Message) {
	if fields := src.ProtoReflect().GetUnknown(); len(fields) > 0 {
		dst.ProtoReflect().SetUnknown(append([]byte(nil), fields...))
	}
}

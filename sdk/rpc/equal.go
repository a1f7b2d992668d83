// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"bytes"
	"maps"
	"slices"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/proto"
)

// EqualContexts is proto.Equal of contexts, without reflection (BenchmarkEqualContexts).
func EqualContexts(a, b *networkservice.ConnectionContext) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.MTU == b.MTU && maps.Equal(a.ExtraContext, b.ExtraContext) &&
		equalIPContexts(a.IpContext, b.IpContext) &&
		equal(a.DnsContext, b.DnsContext) && equal(a.EthernetContext, b.EthernetContext) && equalUnknown(a, b)
}

func equalIPContexts(a, b *networkservice.IPContext) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.Equal(a.SrcIpAddrs, b.SrcIpAddrs) && slices.Equal(a.DstIpAddrs, b.DstIpAddrs) &&
		a.SrcIpRequired == b.SrcIpRequired && a.DstIpRequired == b.DstIpRequired &&
		slices.EqualFunc(a.SrcRoutes, b.SrcRoutes, equalRoutes) && slices.EqualFunc(a.DstRoutes, b.DstRoutes, equalRoutes) &&
		slices.Equal(a.ExcludedPrefixes, b.ExcludedPrefixes) &&
		slices.EqualFunc(a.IpNeighbors, b.IpNeighbors, equal) &&
		slices.EqualFunc(a.ExtraPrefixRequest, b.ExtraPrefixRequest, equal) &&
		slices.Equal(a.ExtraPrefixes, b.ExtraPrefixes) &&
		slices.EqualFunc(a.Policies, b.Policies, equal) && equalUnknown(a, b)
}

func equalRoutes(a, b *networkservice.Route) bool {
	return a.GetPrefix() == b.GetPrefix() && a.GetNextHop() == b.GetNextHop() && equalUnknown(a, b)
}

// equal is proto.Equal of what is rare.
func equal[M any, P interface {
	*M
	proto.Message
}](a, b P) bool {
	return a == nil && b == nil || proto.Equal(a, b)
}

func equalUnknown(a, b proto.Message) bool {
	return bytes.Equal(a.ProtoReflect().GetUnknown(), b.ProtoReflect().GetUnknown())
}

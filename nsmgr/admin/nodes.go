// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/hop"
	"github.com/openvwire/nsm/sdk/watch"
)

// Nodes lists the own node and every other that has a forwarder. The number of
// wires is as of the event; wires that come and go make none.
func (s *Server) Nodes(req *adminv1.NodesRequest, stream grpc.ServerStreamingServer[adminv1.NodeEvent]) error {
	ctx := stream.Context()
	who, err := identify(ctx)
	if err != nil {
		return err
	}
	f := req.GetFilter()
	l := newList(f, func(t adminv1.EventType, x *adminv1.Node) error {
		return stream.Send(&adminv1.NodeEvent{Type: t, Node: x})
	})
	return end(ctx, follow(ctx, s.config.Endpoints, func(initial bool, changes []watch.Change[string, *registry.NetworkServiceEndpoint]) error {
		if !initial && !slices.ContainsFunc(changes, s.changesForwarder) {
			return nil
		}
		stays := make(map[string]bool)
		for _, n := range s.nodes(who, time.Now()) {
			if f.GetName() != "" && f.GetName() != n.GetName() || !has(n.GetLabels(), f.GetLabels()) {
				continue
			}
			stays[n.GetUrl()] = true
			if err := l.show(n.GetUrl(), n); err != nil {
				return err
			}
		}
		if err := l.hideUnless(stays); err != nil || !initial {
			return err
		}
		return l.synced()
	}))
}

func (s *Server) changesForwarder(c watch.Change[string, *registry.NetworkServiceEndpoint]) bool {
	return s.isForwarder(c.Value)
}

func (s *Server) isForwarder(nse *registry.NetworkServiceEndpoint) bool {
	return slices.Contains(nse.GetNetworkServiceNames(), s.config.ForwarderService)
}

// nodes returns the nodes as a caller may see them, the own one first, the others
// by name. A node is what has registered with one manager.
func (s *Server) nodes(who string, now time.Time) []*adminv1.Node {
	own := &adminv1.Node{
		Name: s.node, Manager: s.config.Name, Url: s.config.URL, Local: true, Labels: s.config.Labels,
		Started: timestamppb.New(s.started), Version: hop.BuildVersion(), Wires: uint32(len(s.config.Wires.Visible(who))),
	}
	byURL := make(map[string]*adminv1.Node)
	for _, nse := range s.config.Offering(s.config.ForwarderService) {
		if _, here := s.config.Here(nse, now); !here {
			continue
		}
		labels := nse.GetNetworkServiceLabels()[s.config.ForwarderService].GetLabels()
		n := byURL[nse.GetUrl()]
		switch {
		case nse.GetUrl() == s.config.URL:
			n = own
		case n == nil:
			n = &adminv1.Node{Name: s.nodeOf(nse), Url: nse.GetUrl(), Labels: maps.Clone(labels)}
			byURL[n.Url] = n
		default: // what all its forwarders say is said of the node
			maps.DeleteFunc(n.Labels, func(key, value string) bool { return labels[key] != value })
		}
		n.Forwarders = append(n.Forwarders, &adminv1.Forwarder{Name: nse.GetName(), Labels: labels, Expires: nse.GetExpirationTime()})
	}
	others := slices.SortedFunc(maps.Values(byURL), func(a, b *adminv1.Node) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetUrl(), b.GetUrl()))
	})
	return append([]*adminv1.Node{own}, others...)
}

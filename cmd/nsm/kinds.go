// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
)

// What 'nsm get' can list, and the columns of each table.

func serviceKind() kind[adminv1.ServiceEvent, adminv1.Service] {
	return kind[adminv1.ServiceEvent, adminv1.Service]{
		name:    "services",
		aliases: []string{"service", "netsvc"},
		short:   "List network services",
		long: "List network services, which clients ask for by name. MATCHES is the number of\n" +
			"rules that say which clients go to which endpoints, ENDPOINTS how many offer it.",
		example: "  nsm get services\n  nsm get service db -o yaml    # as 'nsm apply -f' takes it",
		list: func(ctx context.Context, c adminv1.AdminClient, f *adminv1.Filter) (grpc.ServerStreamingClient[adminv1.ServiceEvent], error) {
			return c.Services(ctx, &adminv1.ServicesRequest{Filter: f})
		},
		item: func(e *adminv1.ServiceEvent) (adminv1.EventType, *adminv1.Service) {
			return e.GetType(), e.GetService()
		},
		key:     (*adminv1.Service).GetName,
		missing: nserr.UnknownService,
		yaml:    manifestOf,
		columns: []column[adminv1.Service]{
			{title: "NAME", cell: func(s *adminv1.Service, _ time.Time) string { return s.GetName() }},
			{title: "PAYLOAD", cell: func(s *adminv1.Service, _ time.Time) string { return s.GetPayload() }},
			{title: "MATCHES", cell: func(s *adminv1.Service, _ time.Time) string { return strconv.Itoa(len(s.GetMatches())) }},
			{title: "ENDPOINTS", cell: func(s *adminv1.Service, _ time.Time) string { return fmt.Sprint(s.GetEndpoints()) }},
			{title: "OWNERS", wide: true, cell: func(s *adminv1.Service, _ time.Time) string { return distinct(s.GetPathIds()) }},
		},
	}
}

func endpointKind() kind[adminv1.EndpointEvent, adminv1.Endpoint] {
	return kind[adminv1.EndpointEvent, adminv1.Endpoint]{
		name:    "endpoints",
		aliases: []string{"endpoint", "nse", "nses"},
		short:   "List the endpoints that are registered",
		long: "List the endpoints that are registered in the domain, wherever they are, and the\n" +
			"forwarders of all nodes, which register as endpoints of a service of their own.\n" +
			"Each renews its registration long before it EXPIRES.",
		example: "  nsm get endpoints -l app=db -o wide",
		list: func(ctx context.Context, c adminv1.AdminClient, f *adminv1.Filter) (grpc.ServerStreamingClient[adminv1.EndpointEvent], error) {
			return c.Endpoints(ctx, &adminv1.EndpointsRequest{Filter: f})
		},
		item: func(e *adminv1.EndpointEvent) (adminv1.EventType, *adminv1.Endpoint) {
			return e.GetType(), e.GetEndpoint()
		},
		key:     (*adminv1.Endpoint).GetName,
		missing: nserr.UnknownEndpoint,
		columns: []column[adminv1.Endpoint]{
			{title: "NAME", cell: func(e *adminv1.Endpoint, _ time.Time) string { return e.GetName() }},
			{title: "SERVICES", cell: func(e *adminv1.Endpoint, _ time.Time) string {
				return joined(e.GetServices(), (*adminv1.EndpointService).GetName)
			}},
			{title: "NODE", cell: func(e *adminv1.Endpoint, _ time.Time) string { return e.GetNode() }},
			{title: "AGE", cell: func(e *adminv1.Endpoint, now time.Time) string { return since(e.GetRegistered(), now) }},
			{title: "EXPIRES", cell: func(e *adminv1.Endpoint, now time.Time) string { return until(e.GetExpires(), now) }},
			{title: "LABELS", wide: true, cell: func(e *adminv1.Endpoint, _ time.Time) string {
				return joined(e.GetServices(), func(s *adminv1.EndpointService) string { return labelText(s.GetLabels()) })
			}},
			{title: "URL", wide: true, cell: func(e *adminv1.Endpoint, _ time.Time) string { return e.GetUrl() }},
			{title: "OWNERS", wide: true, cell: func(e *adminv1.Endpoint, _ time.Time) string { return distinct(e.GetPathIds()) }},
		},
	}
}

func wireKind() kind[adminv1.WireEvent, adminv1.WireSummary] {
	type wire = adminv1.WireSummary
	return kind[adminv1.WireEvent, wire]{
		name:    "wires",
		aliases: []string{"wire"},
		arg:     "ID",
		short:   "List the wires of this node",
		long: "List the wires that begin, end or pass at this node: root sees all of them,\n" +
			"anybody else their own. MECHANISM is how a wire is made here, on the client's side\n" +
			"and on the endpoint's, once if both are the same. A wire that is DOWN says why the last\n" +
			"attempt to heal it has failed (docs/errors.md); one that is UP(no-packets) stands as it\n" +
			"should, but its client gets no answers through it. A client refreshes its wires long\n" +
			"before they EXPIRE; what has expired is not listed any more, and its client says in\n" +
			"its own log what it waits for. The beginning of an ID is enough if only one wire\n" +
			"begins so.",
		example: "  nsm get wires\n  nsm get wires -w",
		list: func(ctx context.Context, c adminv1.AdminClient, f *adminv1.Filter) (grpc.ServerStreamingClient[adminv1.WireEvent], error) {
			return c.Wires(ctx, &adminv1.WiresRequest{Filter: f})
		},
		item:    func(e *adminv1.WireEvent) (adminv1.EventType, *wire) { return e.GetType(), e.GetWire() },
		key:     (*wire).GetId,
		missing: nserr.UnknownWire,
		columns: []column[wire]{
			{title: "ID", cell: func(w *wire, _ time.Time) string { return w.GetId() }},
			{title: "SERVICE", cell: func(w *wire, _ time.Time) string { return w.GetService() }},
			{title: "CLIENT", cell: func(w *wire, _ time.Time) string { return w.GetClient().GetName() }},
			{title: "ENDPOINT", cell: func(w *wire, _ time.Time) string { return w.GetEndpoint().GetName() }},
			{title: "MECHANISM", cell: func(w *wire, _ time.Time) string { return mechanisms(w) }},
			{title: "STATE", cell: func(w *wire, _ time.Time) string { return conditionText(w) }},
			{title: "AGE", cell: func(w *wire, now time.Time) string { return since(w.GetEstablished(), now) }},
			{title: "EXPIRES", cell: func(w *wire, now time.Time) string { return until(w.GetExpires(), now) }},
			{title: "PAYLOAD", wide: true, cell: func(w *wire, _ time.Time) string { return w.GetPayload() }},
			{title: "CLIENT-IF", wide: true, cell: func(w *wire, _ time.Time) string { return w.GetClient().GetInterface() }},
			{title: "CLIENT-IP", wide: true, cell: func(w *wire, _ time.Time) string { return strings.Join(w.GetClient().GetAddresses(), ",") }},
			{title: "ENDPOINT-IF", wide: true, cell: func(w *wire, _ time.Time) string { return w.GetEndpoint().GetInterface() }},
			{title: "ENDPOINT-IP", wide: true, cell: func(w *wire, _ time.Time) string { return strings.Join(w.GetEndpoint().GetAddresses(), ",") }},
			{title: "ENDPOINT-NODE", wide: true, cell: func(w *wire, _ time.Time) string { return w.GetEndpoint().GetNode() }},
			{title: "ATTEMPTS", wide: true, cell: func(w *wire, _ time.Time) string { return attemptsText(w) }},
			{title: "LABELS", wide: true, cell: func(w *wire, _ time.Time) string { return labelText(w.GetLabels()) }},
		},
	}
}

// conditionText is a wire's state and what is wrong with it, in one word.
func conditionText(w *adminv1.WireSummary) string {
	state := stateText(w.GetState())
	switch {
	case w.GetState() == adminv1.WireState_WIRE_STATE_DOWN && w.GetLastError() != "":
		return state + "(" + w.GetLastError() + ")"
	case carriesNothing(w):
		return state + "(no-packets)"
	}
	return state
}

// carriesNothing: the wire is up, and its client gets no answers through it.
func carriesNothing(w *adminv1.WireSummary) bool {
	return w.GetState() != adminv1.WireState_WIRE_STATE_DOWN && w.GetLastError() == nserr.NoPackets.Code
}

// attemptsText is how many attempts to heal a wire have failed, and why the last did.
func attemptsText(w *adminv1.WireSummary) string {
	if w.GetAttempts() == 0 {
		return ""
	}
	return strings.TrimSpace(fmt.Sprint(w.GetAttempts(), " ", w.GetLastError()))
}

func nodeKind() kind[adminv1.NodeEvent, adminv1.Node] {
	return kind[adminv1.NodeEvent, adminv1.Node]{
		name:    "nodes",
		aliases: []string{"node"},
		short:   "List the nodes of the domain",
		long: "List the nodes of the domain: those whose manager or forwarder is registered. How\n" +
			"many WIRES a node has, the UPTIME of its manager and the VERSION of that are known\n" +
			"of this node only.",
		example: "  nsm get nodes",
		list: func(ctx context.Context, c adminv1.AdminClient, f *adminv1.Filter) (grpc.ServerStreamingClient[adminv1.NodeEvent], error) {
			return c.Nodes(ctx, &adminv1.NodesRequest{Filter: f})
		},
		item:    func(e *adminv1.NodeEvent) (adminv1.EventType, *adminv1.Node) { return e.GetType(), e.GetNode() },
		key:     (*adminv1.Node).GetName,
		missing: nserr.UnknownNode,
		columns: []column[adminv1.Node]{
			{title: "NAME", cell: func(n *adminv1.Node, _ time.Time) string { return n.GetName() }},
			{title: "MANAGER", cell: func(n *adminv1.Node, _ time.Time) string { return n.GetUrl() }},
			{title: "FORWARDERS", cell: func(n *adminv1.Node, _ time.Time) string {
				return joined(n.GetForwarders(), (*adminv1.Forwarder).GetName)
			}},
			{title: "WIRES", cell: func(n *adminv1.Node, _ time.Time) string {
				if n.GetStarted() == nil { // another node's
					return ""
				}
				return fmt.Sprint(n.GetWires())
			}},
			{title: "UPTIME", cell: func(n *adminv1.Node, now time.Time) string { return since(n.GetStarted(), now) }},
			{title: "VERSION", cell: func(n *adminv1.Node, _ time.Time) string { return n.GetVersion().GetVersion() }},
			{title: "MANAGER-NAME", wide: true, cell: func(n *adminv1.Node, _ time.Time) string { return n.GetManager() }},
			{title: "LABELS", wide: true, cell: func(n *adminv1.Node, _ time.Time) string { return labelText(n.GetLabels()) }},
		},
	}
}

// distinct is a list without repetitions, separated by commas. A registration has
// been in the hands of an identity more than once when several parts have the same.
func distinct(items []string) string {
	var list []string
	for _, x := range items {
		if !slices.Contains(list, x) {
			list = append(list, x)
		}
	}
	return strings.Join(list, ",")
}

// joined is one text of each item, separated by commas, without empty ones.
func joined[T any](items []T, text func(T) string) string {
	var list []string
	for _, x := range items {
		if s := text(x); s != "" {
			list = append(list, s)
		}
	}
	return strings.Join(list, ",")
}

// labelText is labels as a selector writes them, sorted.
func labelText(labels map[string]string) string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, key+"="+labels[key])
	}
	return strings.Join(list, ",")
}

// mechanisms is the mechanisms at both ends, or the one that both have.
func mechanisms(w *adminv1.WireSummary) string {
	left, right := w.GetClient().GetMechanism(), w.GetEndpoint().GetMechanism()
	if left == right || right == "" {
		return left
	}
	return left + "/" + right
}

// stateText is a state as the protocol calls it: "UP".
func stateText(s adminv1.WireState) string {
	return strings.TrimPrefix(s.String(), "WIRE_STATE_")
}

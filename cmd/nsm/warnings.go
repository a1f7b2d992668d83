// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"time"

	"github.com/openvwire/nsm/forwarder/plan"
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/mechanism"
)

// secondLook is how long after the first one a wire that a tunnel carries is looked at
// again: only so is to be seen that what is sent does not come back.
const secondLook = time.Second

// warnings are what is wrong with a wire although everything stands as it should: again
// is the wire as it was when it was looked at a second time, nil if it was not.
func warnings(d, again *adminv1.WireDescription, now time.Time) (out []string) {
	for _, k := range d.GetKernel() {
		if text := handshakeWarning(k, now); text != "" {
			out = append(out, text)
		}
		for _, l := range k.GetLinks() {
			if text := oneWayWarning(k, l, linkAgain(again, k, l)); text != "" {
				out = append(out, text)
			}
		}
	}
	if len(out) == 0 && !carriesNothing(d.GetSummary()) {
		return nil
	}
	for _, l := range d.GetLegs() {
		if l.GetType() != mechanism.TypeKernel {
			out = append(out, underlayWarning(l, lastHandshake(l, d.GetKernel()), now))
		}
	}
	return out
}

// underlayWarning is what is known of the way between two nodes that a leg takes. It is
// the first suspect, unless a handshake has gone there and back a while ago: then what is
// behind is.
func underlayWarning(l *adminv1.WireLeg, handshake, now time.Time) string {
	p, port := l.GetParameters(), "_port"
	if l.GetType() == mechanism.TypeShared {
		port = "_tunnel_port"
	}
	between := fmt.Sprintf("between %s and %s, in both directions",
		net.JoinHostPort(p["src_ip"], p["src"+port]), net.JoinHostPort(p["dst_ip"], p["dst"+port]))
	if age := now.Sub(handshake); !handshake.IsZero() && age <= plan.SessionLife {
		return fmt.Sprintf("UDP has passed %s (%s): WireGuard had a handshake %s ago; if it still does, see whether the workload of the endpoint answers",
			between, l.GetType(), short(max(age, 0)))
	}
	return fmt.Sprintf("UDP must pass %s (%s)", between, l.GetType())
}

// lastHandshake is when WireGuard at either end of a leg last had one, as far as its
// forwarders tell; zero if it never had, or the leg is none of WireGuard's.
func lastHandshake(l *adminv1.WireLeg, kernel []*adminv1.KernelObjects) (last time.Time) {
	for _, k := range kernel {
		if k.GetForwarder() != l.GetFrom() && k.GetForwarder() != l.GetTo() {
			continue
		}
		if at := k.GetWireguard().GetLastHandshake(); at != nil && at.AsTime().After(last) {
			last = at.AsTime()
		}
	}
	return last
}

// handshakeWarning: the two sides of WireGuard do not reach each other.
func handshakeWarning(k *adminv1.KernelObjects, now time.Time) string {
	w := k.GetWireguard()
	switch at := w.GetLastHandshake(); {
	case w.GetTxBytes() == 0: // nobody has tried
		return ""
	case at == nil:
		return fmt.Sprintf("forwarder %s: WireGuard has sent %d bytes to %s and has never had a handshake", k.GetForwarder(), w.GetTxBytes(), orNone(w.GetEndpoint()))
	case now.Sub(at.AsTime()) > plan.SessionLife && w.GetKeepalive().AsDuration() > 0: // it sends all the time
		return fmt.Sprintf("forwarder %s: WireGuard has had no handshake with %s for %s", k.GetForwarder(), orNone(w.GetEndpoint()), since(at, now))
	}
	return ""
}

// oneWay is how many packets are sent at least within secondLook before it counts that
// none is received: the kernel itself sends one or two that nobody answers, for IPv6.
const oneWay = 3

// oneWayWarning: what is sent grows, what is received does not.
func oneWayWarning(k *adminv1.KernelObjects, first, second *adminv1.Link) string {
	was, is := first.GetCounters(), second.GetCounters()
	if second == nil || !isTunnel(first) || is.GetTxPackets() < was.GetTxPackets()+oneWay || is.GetRxPackets() != was.GetRxPackets() {
		return ""
	}
	return fmt.Sprintf("forwarder %s: %d packets were sent through %s within %s, and none was received",
		k.GetForwarder(), is.GetTxPackets()-was.GetTxPackets(), first.GetName(), short(secondLook))
}

// isTunnel reports whether a link leads to another node.
func isTunnel(l *adminv1.Link) bool { return l.GetKind() != "veth" }

// worthASecondLook reports whether a tunnel carries the wire.
func worthASecondLook(d *adminv1.WireDescription) bool {
	for _, k := range d.GetKernel() {
		for _, l := range k.GetLinks() {
			if isTunnel(l) {
				return true
			}
		}
	}
	return false
}

// linkAgain is the same link as it was seen later, nil if it was not.
func linkAgain(again *adminv1.WireDescription, k *adminv1.KernelObjects, l *adminv1.Link) *adminv1.Link {
	for _, k2 := range again.GetKernel() {
		for _, l2 := range k2.GetLinks() {
			if k2.GetForwarder() == k.GetForwarder() && l2.GetNamespace() == l.GetNamespace() && l2.GetIndex() == l.GetIndex() {
				return l2
			}
		}
	}
	return nil
}
